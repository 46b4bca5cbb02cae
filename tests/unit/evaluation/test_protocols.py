from dataclasses import replace

import numpy as np
import pytest

from omr_ray.atelier import world
from omr_ray.evaluation import protocols
from omr_ray.evaluation.protocols import Evaluation, HeldOut, RoundsToIntent, SheetRound, SheetRow
from omr_ray.types import Dialogue, Rollout, Round, Trajectory, UserError


def dialogue(name="d1"):
    rounds = (Round(index=1, utterance="a dress", prompt="a dress"), Round(index=2, utterance="blue", prompt="a blue dress"))
    return Dialogue(id=name, intent="a blue dress", rounds=rounds)


def trajectory(round_, sibling, features, value=0):
    empty, one = np.zeros((1, 1, 1, 1), np.float32), np.zeros(1, np.int64)
    return Trajectory(
        dialogue_id="d1",
        round=round_,
        sibling=sibling,
        seed=0,
        policy_version=0,
        prompt="a blue dress",
        prompt_ids=np.zeros((1, 2), np.int64),
        latents=empty,
        next_latents=empty,
        timesteps=one,
        previous_timesteps=one,
        log_probs=np.zeros(1, np.float32),
        features=np.array(features, np.float32),
        image=np.full((2, 2, 3), value, np.uint8),
    )


def test_held_out_averages_siblings_and_keeps_dialogues_apart():
    first = (trajectory(1, 0, [1, 0], 0), trajectory(1, 1, [0, 1], 100))
    second = (trajectory(2, 0, [1, 0], 50), trajectory(2, 1, [1, 0], 50))
    rollout = Rollout(dialogue=dialogue(), trajectories=(first, second))
    result = protocols.held_out(
        [dialogue()], [rollout], [[[1.0, None], [2.0, 4.0]]], lambda images, prompts: images.mean(axis=(1, 2, 3)) / 100
    )
    assert result.accuracy.tolist() == [[0.5, 0.5]]
    assert result.preference.tolist() == [[1.0, 3.0]]
    assert result.diversity.tolist() == [[1.0, 0.0]]
    assert np.isnan(result.consistency[0, 0])
    assert result.consistency[0, 1] == 0.5


class Painter:
    """Draws what the last prompt names, one aspect more a round; an image is the number of its round."""

    def __init__(self, obedient=True):
        self.calls, self.obedient = [], obedient

    def generate(self, prompts, *, seeds, from_latents=None, strength=1.0):
        self.calls.append((tuple(prompts), tuple(seeds), None if from_latents is None else from_latents.tolist(), strength))
        self.prompts = prompts
        return np.zeros((len(prompts), 2, 2, 3), np.uint8), np.arange(len(prompts))[:, None] + 10 * len(self.calls)

    def read(self, images):
        return [world.parse(prompt) if self.obedient else {} for prompt in self.prompts]


def test_an_obedient_policy_satisfies_in_the_round_that_completes_the_prompt():
    long = Dialogue(
        id="d2",
        intent="a small blue striped dress with a belt in the snow",
        rounds=(Round(index=1, utterance="a dress", prompt="a dress"),),
    )
    painter = Painter()
    result = protocols.rounds_to_intent(painter.generate, painter.read, [dialogue(), long], 8, 7, strength=(0.7, 0.5))
    assert result.rounds.tolist() == [[2], [4]]
    assert [call[3] for call in painter.calls] == [1.0, 0.7, 0.5, 0.5]
    assert [len(call[0]) for call in painter.calls] == [2, 2, 1, 1]
    assert painter.calls[2][2] == [[21]]  # the second session's own latent, after the first session ended


def test_a_deaf_policy_counts_one_round_more_than_allowed():
    painter = Painter(obedient=False)
    result = protocols.rounds_to_intent(painter.generate, painter.read, [dialogue()], 3, 7, siblings=2)
    assert result.rounds.tolist() == [[4, 4]]
    assert len(set(painter.calls[0][1])) == 2  # siblings get noise of their own


def test_seeds_depend_on_the_dialogue_and_not_on_its_place_in_the_batch():
    alone, together = Painter(), Painter()
    protocols.rounds_to_intent(alone.generate, alone.read, [dialogue("b")], 1, 7)
    protocols.rounds_to_intent(together.generate, together.read, [dialogue("a"), dialogue("b")], 1, 7)
    assert alone.calls[0][1][0] == together.calls[0][1][1]


def test_an_intent_that_names_nothing_is_refused():
    vague = Dialogue(id="x", intent="something nice", rounds=dialogue().rounds)
    with pytest.raises(UserError, match="names no aspect"):
        protocols.rounds_to_intent(Painter().generate, Painter().read, [vague], 3, 7)


def evaluation(phase, shift=0.0, rounds=4, sheet=()):
    base = np.array([[0.9, 0.6], [0.7, 0.4], [0.8, np.nan]])
    held = HeldOut(dialogues=("a", "b", "c"), accuracy=base + shift, preference=base, diversity=base * (1 - shift), consistency=base)
    intent = RoundsToIntent(dialogues=("a", "b", "c"), rounds=np.full((3, 2), rounds), max_rounds=8)
    return Evaluation(phase=phase, weights="base", seed=7, held_out=held, intent=intent, sheet=sheet)


def test_compare_pairs_every_figure():
    result = protocols.compare(evaluation("before"), evaluation("after", shift=0.1, rounds=3))
    assert [i.value for i in result.accuracy_by_round] == pytest.approx([0.1, 0.1])
    assert result.last_round_gain.value == pytest.approx(0.1)
    assert result.diversity_ratio.value == pytest.approx(0.9)
    assert result.rounds_to_intent_change_percent.value == pytest.approx(-25)
    assert result.preference_gain.value == 0


def test_compare_refuses_different_dialogues():
    before, after = evaluation("before"), evaluation("after")
    other = replace(after, held_out=replace(after.held_out, dialogues=("a", "b", "x")))
    with pytest.raises(UserError, match="same held-out dialogues"):
        protocols.compare(before, other)


def test_last_round_is_each_dialogues_own():
    assert protocols.last_round(np.array([[0.9, 0.6], [0.8, np.nan]])).tolist() == [0.6, 0.8]


def test_an_evaluation_survives_its_files(tmp_path):
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    round_ = SheetRound(utterance="u", prompt="p", image=image, target=image[::-1], wrong=("color",))
    sheet = (SheetRow(dialogue="a", intent="i", rounds=(round_,)),)
    written = evaluation("before", sheet=sheet)
    protocols.save(written, tmp_path)
    read = protocols.load(tmp_path, "before")
    np.testing.assert_array_equal(read.held_out.accuracy, written.held_out.accuracy)
    np.testing.assert_array_equal(read.intent.rounds, written.intent.rounds)
    np.testing.assert_array_equal(read.sheet[0].rounds[0].target, image[::-1])
    assert read.sheet[0].rounds[0].wrong == ("color",)
    with pytest.raises(UserError, match="no such evaluation"):
        protocols.load(tmp_path, "after")
