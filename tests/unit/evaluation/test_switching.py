"""OMR table 2: scripts, judgements and the table, by hand; and the embedded language model."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from omr_ray.atelier import WEIGHTS, world
from omr_ray.atelier.dialogues import make_dialogues
from omr_ray.atelier.oracle import Oracle
from omr_ray.config.comparison import Base, ComparisonConfig
from omr_ray.config.dialogue import TransformersLanguage
from omr_ray.config.run import RunConfig
from omr_ray.dialogue.engine import Picture
from omr_ray.evaluation.papers.result import Context
from omr_ray.evaluation.papers.switching import modality_switching
from omr_ray.evaluation.stored import Results, SwitchedTurn
from omr_ray.evaluation.switching import KINDS, painted_together, script, switch
from omr_ray.loading import language_model_from
from omr_ray.vlm.templates import ROUTE
from tests.scripted_language import Album, ScenePainter, ScriptedLanguage, commission

DIALOGUES = make_dialogues("heldout", 3, rounds=4)


@pytest.fixture(scope="module")
def oracle():
    return Oracle.from_pretrained(WEIGHTS / "oracle")


class Eyes(Album):
    """Knows what the user brings, too."""

    def __init__(self, oracle):
        super().__init__()
        self.oracle = oracle

    def scene(self, image):
        return world.Scene(**self.oracle.read(image[None])[0])


class Painter(ScenePainter):
    """Edits what the user brought, which it has not drawn."""

    def __call__(self, asked):
        picture = super().__call__(asked)
        return replace(picture, latents=np.zeros((1, 1, 1), np.float32))


def switched(oracle, *, miss=0.0, says=None):
    album = Eyes(oracle)
    painter = Painter(album, miss)
    language = ScriptedLanguage(album, says)
    turns = switch(language, lambda asked: [painter(one) for one in asked], oracle.read, DIALOGUES, seed=0, strength=(0.8, 0.6))
    return turns, painter


def share(turns, kind, said):
    return np.mean([said(turn) for turn in turns if turn.kind == kind])


def test_every_kind_has_its_turn_in_every_round_once():
    counted = Counter((step.round, step.kind) for step in script(DIALOGUES[0], 0))
    assert counted == {(r, kind): 1 for r in (1, 2, 3) for kind in KINDS}
    assert Counter(step.kind for step in script(replace(DIALOGUES[0], rounds=DIALOGUES[0].rounds[:1]), 0)) == {"T->I": 1, "T->T": 1}


def test_a_script_goes_from_picture_to_picture_and_from_words_to_words():
    steps = script(DIALOGUES[0], 0)
    for step in steps:
        before = None if step.after is None else steps[step.after]
        if step.kind.startswith("I+"):
            assert step.brings is not None if step.round == 1 else (before.round, before.modality) == (step.round - 1, "picture")
        else:
            assert step.brings is None and (before is None) == (step.round == 1)
            assert before is None or (before.round, before.kind) == (step.round - 1, "T->T")
    third = next(step for step in steps if (step.round, step.kind) == (3, "I+T->I"))
    assert third.named == world.parse(DIALOGUES[0].rounds[2].prompt)
    assert script(DIALOGUES[0], 0)[1].utterance == steps[1].utterance


def test_what_knows_the_world_is_always_right(oracle):
    turns, painter = switched(oracle)
    assert len(turns) == 3 * 12
    assert all(turn.right for turn in turns), [turn for turn in turns if not turn.right]
    assert {turn.modality for turn in turns if turn.kind in ("T->T", "I+T->T")} == {"words"}
    strengths = {(one.parent is not None, one.strength) for one in painter.commissions}
    assert strengths == {(False, 0.8), (False, 0.6), (True, 0.8), (True, 0.6)}  # rounds 1 and 2, and round 3
    assert len(painter.commissions) == 3 * 6 and len({one.seed for one in painter.commissions}) == 3 * 6


def test_who_always_answers_in_words_is_right_about_words_alone_and_pictures_go_on_all_the_same(oracle):
    turns, painter = switched(oracle, says={ROUTE.instruction: '{"reply":"words"}'})
    for kind in ("T->I", "I+T->I"):
        assert share(turns, kind, lambda turn: turn.modality == "picture") == 0
        assert share(turns, kind, lambda turn: turn.right or turn.share is not None) == 0
    for kind in ("T->T", "I+T->T"):
        assert share(turns, kind, lambda turn: turn.right) == 1
    assert len(painter.commissions) == 3 * 2  # insisted on, where a later turn needs the picture: rounds 1 and 2


def test_a_wrong_picture_is_a_picture_and_wrong(oracle):
    turns, _ = switched(oracle, miss=1.0)
    assert share(turns, "I+T->I", lambda turn: turn.modality == "picture") == 1
    assert share(turns, "T->I", lambda turn: turn.right) < 0.5
    for turn in turns:
        if turn.kind == "T->I":
            wanted = world.parse(turn.wanted)
            assert turn.right == (turn.share == 1) and turn.share * len(wanted) == pytest.approx(round(turn.share * len(wanted)))
    assert share(turns, "I+T->T", lambda turn: turn.right) == 1  # of the picture that is there, whatever was wanted


def test_no_valid_answer_is_neither_a_picture_nor_words(oracle):
    turns, _ = switched(oracle, says={ROUTE.instruction: "hello"})
    assert {turn.modality for turn in turns} == {None}
    assert not any(turn.right for turn in turns)
    assert len(turns) == 3 * 12


def test_commissions_of_one_strength_go_together_and_a_brought_picture_is_encoded():
    calls = []

    def generate(prompts, *, seeds, from_latents, strength):
        calls.append((list(prompts), list(seeds), None if from_latents is None else from_latents[:, 0, 0, 0].tolist(), strength))
        count = len(prompts)
        return np.zeros((count, 2, 2, 3), np.uint8), np.arange(count, dtype=np.float32).reshape(count, 1, 1, 1)

    drawn = Picture(image=np.zeros((2, 2, 3), np.uint8), latents=np.full((1, 1, 1), 5, np.float32))
    brought = Picture(image=np.full((2, 2, 3), 9, np.uint8))
    asked = [
        commission("a", seed=1, strength=0.8),
        commission("b", seed=2, strength=0.8, parent=drawn),
        commission("c", seed=3, strength=0.6),
        commission("d", seed=4, strength=0.8, parent=brought),
    ]
    made = painted_together(generate, lambda images: images[:, :1, :1, :1].astype(np.float32), asked)
    assert calls == [(["a", "c"], [1, 3], None, 1.0), (["b", "d"], [2, 4], [5.0, 9.0], 0.8)]
    assert [picture.latents.item() for picture in made] == [0, 0, 1, 1]


def test_the_embedded_language_model_tells_pictures_from_words(oracle):
    album = Eyes(oracle)
    painter = Painter(album)
    language = language_model_from(TransformersLanguage(batch_size=64))
    turns = switch(language, lambda asked: [painter(one) for one in asked], oracle.read, DIALOGUES, seed=0, strength=(0.8,))
    chosen = [turn.modality == ("picture" if turn.kind.endswith("I") else "words") for turn in turns]
    assert np.mean(chosen) >= 0.8
    assert np.mean([turn.right for turn in turns]) >= 0.5


# -- the table -----------------------------------------------------------------------------------------------------------


def turn(dialogue, round_, kind, modality, right, share=None):
    told = {"utterance": "u", "prompt": None, "reply": "<b>red</b>", "wanted": "w"}
    return SwitchedTurn(dialogue=dialogue, round=round_, kind=kind, modality=modality, right=right, share=share, **told)


def test_the_table_by_hand_beside_the_papers(tmp_path):
    results = Results(str(tmp_path))
    turns = [
        turn("d1", 2, "I+T->T", "words", True),
        turn("d2", 2, "I+T->T", "words", False),
        turn("d3", 2, "I+T->T", "picture", False),
        turn("d4", 2, "I+T->T", None, False),
        turn("d1", 2, "T->I", "picture", True, 1.0),
        turn("d2", 2, "T->I", "picture", False, 0.5),
        turn("d3", 2, "T->I", "words", False),
    ]
    results.write_turns("Base", 0, turns[:3])
    results.write_turns("Base", 1, turns[3:])
    assert results.turns("Base") == turns and results.has_turns("Base", 1) and not results.has_turns("Base", 2)
    config = ComparisonConfig(name="t", run="unused", models=(Base(),))
    result = modality_switching(Context(config=config, run=RunConfig(name="t"), results=results, skipped={}))
    chosen, right, aspects = result.tables
    row = dict(zip(chosen.columns, dict(chosen.rows)["Base, round 2"], strict=True))
    assert (row["I+T→T"].value, row["paper: I+T→T"].value, row["paper: I+T→T"].published) == (0.5, 94.7, True)
    assert row["T→I"].value == pytest.approx(2 / 3) and row["T→T"].value is None
    row = dict(zip(right.columns, dict(right.rows)["Base, round 2"], strict=True))
    assert row["I+T→T"].value == 0.25 and row["T→I"].value == pytest.approx(1 / 3)
    assert dict(aspects.rows)["Base, round 2"][0].value == 0.75  # of the two that came
    (example,) = result.drawings
    assert "&lt;b&gt;red" in example.svg and example.svg.count("<tr>") == 3


def test_nobody_talked(tmp_path):
    context = Context(config=ComparisonConfig(name="t", run="unused"), run=RunConfig(name="t"), results=Results(str(tmp_path)), skipped={})
    (gap,) = modality_switching(context).missing
    assert gap.what == "Modality switching" and "type: base" in gap.remedy
