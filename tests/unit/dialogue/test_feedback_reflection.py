import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from omr_ray.atelier import world
from omr_ray.atelier.answers import described
from omr_ray.config.dialogue import AspectWeights, DialogueConfig, DialogueToPrompt, FeedbackReflection
from omr_ray.dialogue.feedback_reflection import (
    AspectScore,
    Question,
    ambiguity,
    aspect_scores,
    aspect_to_ask,
    clarification,
    describe,
    split,
)
from omr_ray.vlm.templates import ASPECTS, CLARIFY, DESCRIBE
from tests.scripted_language import Album, ScenePainter, ScriptedLanguage, commission

SHOWN = {aspect: f"shown {aspect}" for aspect in ASPECTS}
WANTED = {"content": "dress", "background": "beach", "color": "blue", "others": "belt"}
SIMILARITIES = {"dress": 0.9, "beach": 0.3, "blue": 0.7, "belt": -0.2}
WEIGHTS = {"content": 0.4, "style": 0.1, "background": 0.1, "size": 0.1, "color": 0.1, "perspective": 0.1, "others": 0.1}


def similarity(wanted, shown):
    assert list(shown) == [SHOWN[aspect] for aspect in ASPECTS if aspect in WANTED]
    return np.array([SIMILARITIES[text] for text in wanted])


def scores():
    return aspect_scores(WANTED, SHOWN, similarity)


def asked(scores, *, ambiguity=1.0, threshold=0.5, passed_over=(), draws=300):
    rng = np.random.default_rng(0)
    limits = {"ambiguity": ambiguity, "threshold": threshold, "unnamed_similarity": 0.5}
    found = (aspect_to_ask(scores, passed_over=passed_over, rng=rng, **limits) for _ in range(draws))
    return Counter(score.aspect if score else None for score in found)


def test_the_worlds_aspects_are_tdris():
    assert ASPECTS == world.ASPECTS == tuple(DESCRIBE) == tuple(AspectWeights().by_aspect())


def test_scores_by_hand_and_an_aspect_that_is_not_named_has_none():
    assert [score.similarity for score in scores()] == [0.9, None, 0.3, None, 0.7, None, -0.2]
    assert scores()[2] == AspectScore(aspect="background", wanted="beach", shown="shown background", similarity=0.3)
    assert scores()[1].wanted is None


def test_ambiguity_by_hand():
    # 1 - (0.4 * 0.9 + 0.1 * (0.5 + 0.3 + 0.5 + 0.7 + 0.5 - 0.2))
    assert ambiguity(scores(), WEIGHTS, unnamed_similarity=0.5) == pytest.approx(0.41)
    # 1 - (0.4 * 0.9 + 0.1 * (0.3 + 0.7 - 0.2))
    assert ambiguity(scores(), WEIGHTS, unnamed_similarity=0.0) == pytest.approx(0.56)


def test_ambiguity_between_nothing_named_and_everything_right():
    equal = AspectWeights().by_aspect()
    nothing, everything = (aspect_scores(wanted, SHOWN, lambda a, b: np.ones(len(a))) for wanted in ({}, SHOWN))
    assert ambiguity(nothing, equal, unnamed_similarity=0.5) == pytest.approx(0.5)
    assert ambiguity(everything, equal, unnamed_similarity=0.5) == pytest.approx(0.0)


def test_a_similarity_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="must be finite, got {'color': nan}"):
        aspect_scores({"color": "blue"}, SHOWN, lambda a, b: np.array([np.nan]))


def test_the_draw_covers_exactly_the_three_lowest():
    found = asked(scores())  # -0.2, 0.3, and the first of those that count as 0.5
    assert set(found) == {"others", "background", "style"}
    assert min(found.values()) > 70  # of 100 expected


def test_no_question_unless_the_ambiguity_is_above_the_threshold():
    assert asked(scores(), ambiguity=0.5, threshold=0.5) == {None: 300}
    assert None not in asked(scores(), ambiguity=0.500001, threshold=0.5)


def test_what_was_skipped_is_not_asked_again_until_something_changes():
    before = {score.aspect: score for score in scores()}
    skipped = [before["others"], before["background"]]
    assert set(asked(before.values(), passed_over=skipped)) == {"style", "size", "perspective"}
    shown_anew = before | {"others": replace(before["others"], shown="a pocket")}
    assert set(asked(shown_anew.values(), passed_over=skipped)) == {"others", "style", "size"}
    wanted_anew = before | {"background": replace(before["background"], wanted="by the sea")}
    assert set(asked(wanted_anew.values(), passed_over=skipped)) == {"background", "style", "size"}
    assert asked(before.values(), passed_over=before.values()) == {None: 300}


def test_an_image_is_described_with_seven_templates_and_a_prompt_split():
    album = Album()
    model, picture = ScriptedLanguage(album), ScenePainter(album)(commission("a small blue dress seen from the left")).image
    shown = describe(model, picture)
    scene = album.scene(picture)
    assert shown == {aspect: described(aspect, scene) for aspect in ASPECTS} and shown["perspective"] == "seen from the left"
    assert [conversation[0].text for conversation in model.heard] == [DESCRIBE[aspect].instruction for aspect in ASPECTS]
    assert all(conversation[1].images[0] is picture and conversation[1].text == "" for conversation in model.heard)
    assert split(model, "a blue dress at night") == {"content": "dress", "background": "at night", "color": "blue"}


def test_the_question_is_the_models_with_what_it_needs_to_know():
    model = ScriptedLanguage(Album())
    question = clarification(model, "a dress", AspectScore(aspect="color", wanted=None, shown="red", similarity=None))
    assert question == Question(aspect="color", text="Which color would you like?", suggestions=world.VALUES["color"][:4])
    ((system, user),) = model.heard
    assert system.text == CLARIFY.instruction
    assert json.loads(user.text) == {"prompt": "a dress", "aspect": "color", "wanted": "", "shown": "red"}


def test_weights_and_limits_that_cannot_be_are_refused():
    assert DialogueConfig().reflection.weights.by_aspect() == dict.fromkeys(ASPECTS, 1 / 7)
    with pytest.raises(ValueError, match="must sum to 1, they sum to 1.35714"):
        AspectWeights(color=0.5)
    with pytest.raises(ValueError, match="less than or equal to 2"):
        FeedbackReflection(threshold=3)
    with pytest.raises(ValueError, match="nothing would be left to sum up"):
        DialogueToPrompt(w_h=0, w_u=0)
