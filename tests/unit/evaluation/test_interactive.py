"""Simulated users and the real engine, with scripted models."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from omr_ray.atelier import world
from omr_ray.atelier.dialogues import make_dialogues
from omr_ray.config.serve import ServeConfig
from omr_ray.evaluation.interactive.in_process import EngineSystem
from omr_ray.evaluation.interactive.talking import FULL, VARIANTS, talk
from omr_ray.evaluation.interactive.together import Together
from omr_ray.types import UserError
from omr_ray.vlm.templates import DESCRIBE, ROUTE
from tests.scripted_models import ScriptedModels

DIALOGUES = make_dialogues("heldout", 5, rounds=1)
CONFIG = ServeConfig()


def talked(variant=FULL, models=None, *, adapter=None, turns=20, skip=0.0, dialogues=DIALOGUES, seed=0):
    models = models or ScriptedModels(miss=0.25)
    system = EngineSystem(models, CONFIG, variant, adapter)
    rows = talk(system, models.read, dialogues, variant=variant, seed=seed, max_turns=turns, skip_probability=skip, pictures=1)
    return [replace(row, seconds=0.0) for row in rows]


# -- calls that are made together --------------------------------------------------------------------------------------


def test_calls_of_one_kind_go_out_together_in_the_order_of_the_threads():
    batches = []

    def double(items, common):
        batches.append((tuple(items), common))
        return [2 * item for item in items]

    def work(number):
        def run(ask):
            (first,) = ask("double", [number], "a")
            return first if number == 1 else ask("double", [first, 100], "a" if number else "b")

        return run

    assert Together({"double": double}).run([work(number) for number in range(3)]) == [[0, 200], 2, [8, 200]]
    assert batches == [((0, 1, 2), "a"), ((4, 100), "a"), ((0, 100), "b")]


def test_what_one_is_to_blame_for_does_not_end_the_others():
    def half(items, _):
        if 3 in items:
            raise ValueError("odd")
        return [item // 2 for item in items]

    def work(number):
        def run(ask):
            try:
                return ask("half", [number])[0]
            except ValueError as error:
                return str(error)

        return run

    assert Together({"half": half}).run([work(number) for number in (2, 3, 4)]) == [1, "odd", 2]
    with pytest.raises(ValueError, match="odd"):
        Together({"half": half}).run([lambda ask: ask("half", [3])])


# -- dialogues ---------------------------------------------------------------------------------------------------------


def test_users_reach_their_intents_in_shared_batches_and_answer_what_they_are_asked():
    models = ScriptedModels(miss=0.25)
    full = talked(models=models)
    assert sum(row.satisfied for row in full) == len(DIALOGUES)
    assert models.asked["paint"][:1] == [5] and len(models.asked["paint"]) == max(row.turn for row in full)  # all that go on, at once
    assert 7 * 5 in models.asked["complete"]  # seven descriptions of five pictures
    assert full == talked()  # the same users, the same words, the same images
    assert full != talked(seed=1)
    assert {row.question for row in talked(VARIANTS["no-questions"])} == {None}
    asking = [row for row in full if row.question is not None and not row.satisfied]
    assert asking and all(row.answered for row in asking)
    following = {(row.dialogue, row.turn): row for row in full}
    for row in asking:
        target = world.parse(next(dialogue.intent for dialogue in DIALOGUES if dialogue.id == row.dialogue))
        next_ = following[row.dialogue, row.turn + 1]
        assert world.parse(next_.answer) == {row.question: target[row.question]}
        assert row.question not in world.parse(next_.utterance)  # not twice in one breath


def test_questions_shorten_the_way():
    dialogues = make_dialogues("heldout", 20, rounds=1)
    asking, silent = (talked(variant, dialogues=dialogues) for variant in (FULL, VARIANTS["no-questions"]))
    assert sum(row.satisfied for row in asking) == sum(row.satisfied for row in silent) == 20
    assert len(asking) < 0.95 * len(silent)


def test_who_never_asks_does_not_look_at_its_pictures():
    models = ScriptedModels(miss=0.25)
    talked(VARIANTS["no-questions"], models)
    heard = {conversation[0].text for conversation in models.language.heard}
    assert not heard & {template.instruction for template in DESCRIBE.values()}


def test_who_skips_every_question_is_as_one_who_was_never_asked():
    skipping, silent = talked(skip=1.0), talked(VARIANTS["no-questions"])
    assert {row.answered for row in skipping if row.question and not row.satisfied and row.turn < 20} == {False}
    assert [(row.turn, row.utterance, row.image) for row in skipping] == [(row.turn, row.utterance, row.image) for row in silent]


def test_what_a_turn_tells():
    (dialogue,), models = DIALOGUES[:1], ScriptedModels(miss=0.25)
    rows = talked(models=models, dialogues=[dialogue])
    target = world.parse(dialogue.intent)
    assert rows[0].utterance == dialogue.rounds[0].utterance and rows[0].consistency is None
    assert rows[-1].satisfied and rows[-1].wrong == () and rows[-1].answered is None
    assert all(row.wrong for row in rows[:-1])
    assert [row.turn for row in rows] == list(range(1, len(rows) + 1))
    colors = [image.mean((0, 1), dtype=np.float64) for image in models.painted]
    cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in pairwise(colors)]
    assert [row.consistency for row in rows[1:]] == pytest.approx(cosines, abs=1e-5)
    assert set(world.parse(rows[-1].prompt)) <= set(target)


def test_prompt_augmentation_says_the_whole_wish_each_time_and_paints_it_on_its_own():
    models = ScriptedModels(miss=0.25)
    rows = talked(VARIANTS["augmentation"], models, adapter="shared/simulated", turns=6)
    commissions = models.painter.commissions
    assert all(c.parent is None and c.pose_from is None and c.adapter is None for c in commissions)
    assert ROUTE.instruction not in {conversation[0].text for conversation in models.language.heard}
    for row in rows:
        assert world.parse(row.utterance) == world.parse(row.prompt)
    by_turn = {(row.dialogue, row.turn): world.parse(row.utterance) for row in rows}
    assert all(set(by_turn[d, t - 1]) <= set(named) for (d, t), named in by_turn.items() if t > 1)


def test_edits_and_adapters_are_the_variants_own():
    for name, mode, adapter in (("full", "edit", "a"), ("no-adapter", "edit", None), ("scratch", "scratch", "a")):
        models = ScriptedModels(miss=0.5)
        talked(VARIANTS[name], models, adapter="a", turns=2)
        later = models.painter.commissions[5:]
        assert later and all((c.parent is not None) == (mode == "edit") and c.adapter == adapter for c in later)


def test_a_user_who_is_answered_in_words_asks_again_for_all():
    models = ScriptedModels(says={ROUTE.instruction: '{"reply": "words"}'})
    rows = talked(models=models, dialogues=DIALOGUES[:2], turns=3)
    assert len(rows) == 6 and all((row.modality, row.wrong, row.satisfied, row.image) == ("words", None, False, None) for row in rows)
    for dialogue in DIALOGUES[:2]:
        said = [world.parse(row.utterance) for row in rows if row.dialogue == dialogue.id]
        assert said == [said[0]] * 3


def test_a_system_that_cannot_paint_at_all_is_a_fault(caplog):
    models = ScriptedModels()
    models.painter = lambda commission: 1 / 0
    with pytest.raises(UserError, match="every round of turn 1 failed, the first with: internal error"):
        talked(models=models)
    assert "division by zero" in caplog.text


def test_an_intent_that_names_nothing_is_refused():
    with pytest.raises(UserError, match="names no aspect that can be judged"):
        talked(dialogues=[replace(DIALOGUES[0], intent="something nice")])


def test_images_of_the_first_users_are_kept():
    rows = talked(turns=2)
    assert {row.dialogue for row in rows if row.image} == {DIALOGUES[0].id}
    assert np.array([row.image[:4] == b"\x89PNG" for row in rows if row.image]).all()
