import itertools

import numpy as np
import pytest
from PIL import Image

from omr_ray.atelier.dialogues import contact_sheet, dialogue_at, make_dialogues, split_of
from omr_ray.atelier.world import ASPECTS, Scene, all_scenes, parse, prompt_of
from omr_ray.types import UserError


def test_dialogues_are_determined_by_split_seed_and_index():
    first, again = make_dialogues("train", 3, seed=5), make_dialogues("train", 2, seed=5)
    for one, other in zip(first, again, strict=False):
        assert (one.id, one.intent) == (other.id, other.intent)
        assert [turn.utterance for turn in one.rounds] == [turn.utterance for turn in other.rounds]
        assert all(np.array_equal(a.target, b.target) for a, b in zip(one.rounds, other.rounds, strict=True))
    assert dialogue_at("train", 2, seed=5).intent == first[2].intent
    assert first[0].id == "train-5-000000"
    assert dialogue_at("train", 0, seed=6).intent != first[0].intent


def test_prompts_accumulate_what_the_utterances_say():
    for dialogue in make_dialogues("train", 30, rounds=5):
        named: dict[str, str] = {}
        for turn in dialogue.rounds:
            said = parse(turn.utterance)
            assert (2 <= len(said) <= 4 and "content" in said) if turn.index == 1 else 1 <= len(said) <= 2
            named |= said
            assert parse(turn.prompt) == named and turn.prompt == prompt_of(named)
        intent = parse(dialogue.intent)
        assert len(intent) == 7 and all(intent[aspect] == value for aspect, value in named.items())


def test_minds_are_changed():
    overwritten = 0
    for dialogue in make_dialogues("train", 40):
        prompts = [parse(turn.prompt) for turn in dialogue.rounds]
        overwritten += any(a[aspect] != b[aspect] for a, b in itertools.pairwise(prompts) for aspect in a)
    assert 10 <= overwritten <= 38


def test_consecutive_targets_are_edits_of_one_picture():
    for dialogue in make_dialogues("train", 10):
        for before, after in itertools.pairwise(dialogue.rounds):
            assert not np.array_equal(before.target, after.target)
            if "background" not in parse(after.utterance):
                corner = (slice(0, 6), slice(0, 6))
                assert np.array_equal(before.target[corner], after.target[corner])


def test_no_intent_is_in_both_splits():
    for split in ("train", "heldout"):
        for dialogue in make_dialogues(split, 50):
            assert split_of(Scene(**parse(dialogue.intent))) == split
    held_out = sum(split_of(scene) == "heldout" for scene in all_scenes())
    assert abs(held_out / 48_384 - 0.2) < 0.01


def test_bad_requests_are_user_errors():
    with pytest.raises(UserError, match="one of train, heldout, got 'test'"):
        dialogue_at("test", 0)
    with pytest.raises(UserError, match="rounds=0"):
        make_dialogues("train", 1, rounds=0)


def test_contact_sheet_is_a_picture(tmp_path):
    path = contact_sheet(tmp_path / "new" / "sheet.png", count=2, rounds=3)
    assert Image.open(path).size == (3 * 192, 2 * 232)


def test_aspects_are_named_in_a_fixed_order():
    for dialogue in make_dialogues("heldout", 5):
        names = list(parse(dialogue.rounds[-1].prompt))
        assert names == [aspect for aspect in ASPECTS if aspect in names]
