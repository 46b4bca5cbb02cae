import numpy as np

from omr_ray.atelier import world
from omr_ray.dialogue.simulated_user import SimulatedUser, wrong_aspects
from omr_ray.types import Dialogue, Round

INTENT = {"content": "dress", "color": "blue", "size": "small", "others": "belt"}


def user(first="a red dress"):
    round_ = Round(index=1, utterance="i want a red dress", prompt=first)
    return SimulatedUser.of(Dialogue(id="d", intent=world.prompt_of(INTENT), rounds=(round_,)), world)


def rng():
    return np.random.default_rng(0)


def test_the_user_starts_with_the_dialogue_and_knows_its_intent():
    assert user().target == INTENT
    assert user().named == {"content": "dress", "color": "red"}
    assert user().prompt == "a red dress"


def test_satisfied_when_every_wanted_aspect_is_right_whatever_the_rest():
    assert user().satisfied({**INTENT, "background": "snow"})
    assert not user().satisfied({**INTENT, "color": "red"})


def test_at_most_two_wrong_aspects_are_stated_and_the_prompt_accumulates():
    seen = {"content": "dress", "color": "red", "size": "large", "others": "none"}
    after = user().look(seen, rng())
    wrong = wrong_aspects(INTENT, seen)
    assert len(wrong) == 3
    assert world.parse(after.utterance) == {aspect: INTENT[aspect] for aspect in wrong[:2]}
    assert after.named == {"content": "dress", "color": "red"} | {aspect: INTENT[aspect] for aspect in wrong[:2]}
    assert world.parse(after.prompt) == after.named


def test_what_was_asked_for_and_is_still_wrong_comes_first():
    seen = {"content": "hat", "color": "red", "size": "large", "others": "none"}
    after = user().look(seen, rng())
    assert world.parse(after.utterance)["content"] == "dress"
    assert after.utterance.startswith("that is still not right")


def test_a_first_prompt_that_named_another_value_is_a_new_wish_not_a_repetition():
    after = user().look({**INTENT, "color": "red"}, rng())
    assert not after.utterance.startswith("that is still")
    assert after.named["color"] == "blue"


def test_a_question_is_answered_from_the_hidden_target_and_the_prompt_accumulates():
    after, said = user().answer("size", rng())
    assert world.parse(said) == {"size": "small"}
    assert after.named == {"content": "dress", "color": "red", "size": "small"}
    assert world.parse(after.prompt) == after.named
    assert after.look({**INTENT, "size": "large"}, rng()).utterance.startswith("that is still")  # it was asked for


def test_what_was_answered_is_not_said_twice_in_one_breath():
    seen = {**INTENT, "color": "red", "size": "large"}
    assert world.parse(user().look(seen, rng()).utterance) == {"color": "blue", "size": "small"}
    answering, answer = user().answer("color", rng())
    rest = answering.look(seen, rng(), answered="color")
    assert (world.parse(answer), world.parse(rest.utterance)) == ({"color": "blue"}, {"size": "small"})
    assert rest.named == {"content": "dress", "color": "blue", "size": "small"}
    assert answering.look({**INTENT, "color": "red"}, rng(), answered="color").utterance == ""


def test_who_was_shown_no_image_says_everything_again():
    again = user().again(rng())
    assert again.named == user().named == world.parse(again.utterance)


def test_a_question_is_skipped_with_a_probability_and_where_the_user_does_not_care():
    draws = np.random.default_rng(0)
    answers = [user().answer("size", draws, skip_probability=0.25)[1] for _ in range(400)]
    assert 70 <= answers.count(None) <= 130
    assert user().answer("size", draws, skip_probability=1.0) == (user(), None)
    assert user().answer("background", draws) == (user(), None)
