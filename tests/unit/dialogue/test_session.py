import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from omr_ray.dialogue.d2p import Exchange
from omr_ray.dialogue.feedback_reflection import AspectScore, Question
from omr_ray.dialogue.session import LONGEST_UTTERANCE, UPLOADED, Session
from omr_ray.types import Round, UserError

COLOR = AspectScore(aspect="color", wanted=None, shown="red", similarity=None)
SIZE = AspectScore(aspect="size", wanted="small", shown="large", similarity=0.3)
QUESTION = Question(aspect="color", text="Which color?", suggestions=("red", "blue"))


def start(session, utterance="", **options):
    return session.start(utterance, **{"seed": 1, "strength": 0.6} | options)


def pictured(session, utterance="", prompt="a dress", question=None, **options):
    """One more round, done, with an image named after its number."""
    session = start(session, utterance, **options)
    id = session.head
    session = session.begin(id).record(id, modality="picture").record(id, prompt=prompt).record(id, image=f"image-{id}")
    session = session.record(id, scores=(COLOR, SIZE), ambiguity=0.4)
    return (session.record(id, question=question) if question else session).finish(id)


def spoken(session, utterance, reply):
    session = start(session, utterance)
    return session.begin(session.head).record(session.head, modality="words").record(session.head, reply=reply).finish(session.head)


def dialogue():
    """1 (asks) ─ 2 (answers) ─ 3 (words) ─ 4"""
    session = pictured(Session(id="s"), "a dress", question=QUESTION)
    session = pictured(session, "in the snow", "a blue dress in the snow", answer="blue", adapter="house")
    return pictured(spoken(session, "which season is it?", "winter"), "larger", "a large blue dress in the snow", mode="scratch")


def refused(change, *words):
    with pytest.raises(UserError) as caught:
        change()
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message


def test_a_rounds_life():
    session = start(Session(id="s"), "a dress")
    assert (session.head, session.round(1).status, session.round(1).parent) == (1, "pending", None)
    session = session.begin(1)
    assert session.round(1).status == "running"
    session = session.record(1, modality="picture").record(1, prompt="a dress").record(1, image="x").finish(1)
    assert (session.round(1).status, session.head) == ("done", 1)


def test_history_holds_what_was_said_and_what_was_answered():
    session = dialogue()
    assert session.history(1) == ()
    assert session.history(4) == (
        Exchange("a dress", "a dress. Which color?"),
        Exchange("blue, in the snow", "a blue dress in the snow"),
        Exchange("which season is it?", "winter"),
    )
    assert session.round(4).said == "larger"


def test_an_edit_is_the_default_where_there_is_an_image():
    session = dialogue()
    assert [round_.mode for round_ in session.rounds] == ["scratch", "edit", "edit", "scratch"]
    assert session.images_before(1) == ()
    assert session.images_before(4) == ("image-1", "image-2")
    talk = spoken(Session(id="t"), "what can you draw?", "clothes")
    assert start(talk, "a dress").round(2).mode == "scratch"


def test_undo_and_branch_make_a_tree():
    session = dialogue().undo().undo()
    assert session.head == 2
    session = pictured(session, "red", "a red dress")
    assert [round_.id for round_ in session.path(5)] == [1, 2, 5]
    session = pictured(session.branch(1), "a hat")
    assert [round_.id for round_ in session.path(6)] == [1, 6]
    session = start(session.branch(None), "something else")
    assert session.round(7).parent is None and session.path(7) == (session.round(7),)
    assert session.rounds[:4] == dialogue().rounds  # nothing was taken out


def test_two_rounds_side_by_side():
    session = pictured(dialogue().branch(2), "red", "a red dress", seed=9)
    difference = session.compare(4, 5)
    assert difference.ancestor == 2
    assert difference.changed == {
        "utterance": ("larger", "red"),
        "mode": ("scratch", "edit"),
        "seed": (1, 9),
        "prompt": ("a large blue dress in the snow", "a red dress"),
        "image": ("image-4", "image-5"),
    }
    assert session.compare(4, 4).changed == {}
    assert pictured(session.branch(None), "a hat").compare(6, 1).ancestor is None


def test_a_dialogue_for_training():
    made = dialogue().to_dialogue(4)
    assert (made.id, made.intent) == ("s-4", "a large blue dress in the snow")
    assert made.rounds == (
        Round(index=1, utterance="a dress", prompt="a dress"),
        Round(index=2, utterance="blue, in the snow", prompt="a blue dress in the snow", reflection="Which color? blue"),
        Round(index=3, utterance="larger", prompt="a large blue dress in the snow"),
    )
    assert dialogue().to_dialogue(3).id == "s-3" and len(dialogue().to_dialogue(3).rounds) == 2
    refused(lambda: spoken(Session(id="t"), "hello?", "hello").to_dialogue(1), "no round up to 1 has made a picture", "take a later one")


def test_a_question_that_is_not_answered_is_passed_over_on_that_branch_only():
    session = pictured(Session(id="s"), "a dress", question=QUESTION)
    answered, ignored, skipped = pictured(session, answer="blue"), pictured(session, "larger"), pictured(session.skip(1), "larger")
    assert answered.passed_over(2) == ()
    assert ignored.passed_over(2) == skipped.passed_over(2) == (COLOR,)
    assert pictured(ignored, "longer").passed_over(3) == (COLOR,)
    assert session.passed_over(1) == ()  # it is still open


@pytest.mark.parametrize("end", ["cancel", "fail"])
def test_a_round_that_made_nothing_gives_the_head_back(end):
    session = start(dialogue(), "red").begin(5)
    session = session.cancel(5) if end == "cancel" else session.fail(5, "no answer")
    assert session.head == 4
    assert (session.round(5).status, session.round(5).error) == (("cancelled", None) if end == "cancel" else ("failed", "no answer"))
    assert start(session, "red").round(6).parent == 4
    elsewhere = start(dialogue(), "red").branch(1)
    assert elsewhere.cancel(5).head == 1  # the head was moved meanwhile


def test_what_a_turn_made_goes_into_the_session_as_it_then_is():
    session = start(dialogue(), "red")
    running = session.begin(5).round(5)
    grown = start(session.branch(1), "a hat").updated(running)
    assert grown.round(5) == running and len(grown.rounds) == 6 and grown.head == 6
    refused(lambda: session.cancel(5).updated(running), "round 5 is cancelled", "start another round")


def test_what_users_write_is_kept_on_one_visible_line():
    round_ = start(Session(id="s"), " a\tred\n\u202edress\x00 \u200b ").round(1)
    assert round_.utterance == "a red dress"
    family = "\U0001f469\u200d\U0001f467"
    assert start(Session(id="s"), family).round(1).utterance == family


def test_starts_that_are_refused():
    session = pictured(Session(id="s"), "a dress", question=QUESTION)
    refused(lambda: start(session), "needs an utterance or an answer", "say what to change")
    refused(lambda: start(session, "\u202e\x07"), "at least one visible character")
    refused(lambda: start(session, "blue", answer="\x00"), "at least one visible character")
    refused(lambda: start(session, "x" * (LONGEST_UTTERANCE + 1)), "at most 2000 characters, got 2001", "several rounds")
    refused(lambda: start(Session(id="s"), "a dress", mode="edit"), "mode edit needs an image", "use scratch")
    refused(lambda: start(session, "red", strength=0), "above 0 and at most 1, got 0")
    refused(lambda: start(session, "red", strength=1.5), "got 1.5")
    refused(lambda: start(session, "red", seed=-1), "must not be negative, got -1")
    refused(lambda: start(start(session, "red"), "blue"), "round 2 is pending", "wait for it or cancel it")
    refused(lambda: start(start(session, "red").begin(2), "blue"), "round 2 is running")


def test_answers_and_skips_that_are_refused():
    session = pictured(Session(id="s"), "a dress", question=QUESTION)
    refused(lambda: start(Session(id="s"), answer="blue"), "no open question to answer with 'blue'", "say it as an utterance")
    refused(lambda: start(pictured(session, "larger"), answer="blue"), "no open question")
    refused(lambda: start(session.skip(1), answer="blue"), "no open question")
    refused(lambda: session.skip(1).skip(1), "no open question to skip")
    refused(lambda: pictured(session, "larger").skip(2), "round 2 has no open question")


def test_moves_that_are_refused():
    session = dialogue()
    refused(lambda: session.round(5), "there is no round 5, it has 4")
    refused(lambda: session.round(0), "there is no round 0")
    refused(lambda: session.branch(9), "there is no round 9")
    refused(lambda: Session(id="s").undo(), "no round to undo")
    pending = start(session, "red")
    refused(lambda: pending.undo(), "round 5 is pending", "cancel it")
    refused(lambda: pending.branch(5), "round 5 is pending", "take another")
    refused(lambda: pending.cancel(5).branch(5), "round 5 is cancelled")


@pytest.mark.parametrize("status", ["pending", "running", "done", "failed", "cancelled"])
def test_every_change_of_status_that_is_not_in_the_drawing_is_refused(status):
    pending = start(Session(id="s"), "a dress")
    made = pending.begin(1).record(1, modality="picture").record(1, prompt="a dress").record(1, image="x")
    session = {"pending": pending, "running": made, "done": made.finish(1), "failed": made.fail(1, "x"), "cancelled": pending.cancel(1)}[
        status
    ]
    allowed = {"pending": {"running", "cancelled"}, "running": {"done", "failed", "cancelled"}}.get(status, set())
    moves = {
        "running": lambda: session.begin(1),
        "failed": lambda: session.fail(1, "x"),
        "cancelled": lambda: session.cancel(1),
        "done": lambda: (session if session.round(1).image else session.updated(made.round(1)).updated(session.round(1))).finish(1),
    }
    for target, move in moves.items():
        if target in allowed:
            assert move().round(1).status == target
        else:
            refused(move, f"round 1 is {status}" if target != "done" or status != "pending" else "neither an image nor words")


def test_what_a_round_cannot_have_is_refused():
    pending = start(Session(id="s"), "a dress")
    running = pending.begin(1)
    refused(lambda: pending.record(1, modality="picture"), "round 1 is pending, only a running one can get modality")
    refused(lambda: running.record(1, prompt="a dress"), "cannot have its prompt before its modality")
    picture = running.record(1, modality="picture")
    refused(lambda: picture.record(1, image="x"), "cannot have its image before its prompt")
    refused(lambda: picture.record(1, modality="words"), "has its modality already")
    refused(lambda: picture.record(1, reply="hello"), "answers with picture, so it has no reply")
    refused(lambda: picture.finish(1), "neither an image nor words")
    drawn = picture.record(1, prompt="a dress").record(1, image="x")
    refused(lambda: drawn.record(1, question=QUESTION), "cannot have its question before its scores")
    refused(lambda: drawn.record(1, image="y"), "has its image already")
    words = running.record(1, modality="words")
    refused(lambda: words.record(1, prompt="a dress"), "answers with words, so it has no prompt")
    refused(lambda: words.finish(1), "neither an image nor words")


def test_a_session_survives_json():
    kind = TypeAdapter(Session)
    assert kind.validate_json(kind.dump_json(dialogue())) == dialogue()


STEPS = st.lists(st.tuples(st.sampled_from(["start", "picture", "words", "cancel", "fail", "undo", "branch", "skip"]), st.integers(0, 9)))


@settings(max_examples=150, deadline=None)
@given(STEPS)
def test_whatever_is_tried_the_tree_stays_a_tree(steps):
    session = Session(id="s")
    for step, number in steps:
        before = session
        try:
            session = tried(session, step, number)
        except UserError:
            continue  # what is refused changes nothing
        assert len(session.rounds) - len(before.rounds) in (0, 1)
        for old, new in zip(before.rounds, session.rounds, strict=False):
            assert (old.id, old.parent, old.said, old.seed) == (new.id, new.parent, new.said, new.seed)
            assert old.image in (None, new.image) and (old.status == new.status or old.status in ("pending", "running"))
    assert [round_.id for round_ in session.rounds] == list(range(1, len(session.rounds) + 1))
    assert session.head is None or session.round(session.head).status in ("pending", "running", "done")
    for round_ in session.rounds:
        path = session.path(round_.id)
        assert path[0].parent is None and path[-1] == round_
        assert all(after.parent == earlier.id < after.id for earlier, after in zip(path, path[1:], strict=False))
        assert all(earlier.status == "done" for earlier in path[:-1])
        assert len(session.history(round_.id)) == len(path) - 1
        assert round_.mode == "scratch" or session.images_before(round_.id)


def tried(session, step, number):
    target = number % (len(session.rounds) + 1) or None
    match step:
        case "start":
            return start(session, "red", mode=("edit", "scratch", None)[number % 3])
        case "picture":
            return pictured(session, "red", question=QUESTION if number % 2 else None)
        case "words":
            return spoken(session, "what is it?", "a dress")
        case "cancel":
            return session.cancel(target or 1)
        case "fail":
            return session.begin(target or 1).fail(target or 1, "x")
        case "undo":
            return session.undo()
        case "branch":
            return session.branch(target)
        case _:
            return session.skip(target or 1)


def test_an_uploaded_picture_is_a_done_round_that_the_next_one_edits():
    session = Session(id="s").uploaded("address").start("make it blue", seed=1, strength=0.8)
    assert session.round(1).status == "done" and session.history(2) == ((UPLOADED, UPLOADED),)
    assert session.images_before(2) == ("address",) and session.round(2).mode == "edit"
