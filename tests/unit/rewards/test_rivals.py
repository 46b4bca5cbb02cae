"""Which samples compete in the InfoNCE form of the mutual information, and what becomes of their scores."""

from math import log

import numpy as np

from omr_ray.rewards.mutual_information import rival_credits, rival_pairs
from omr_ray.types import Dialogue, Rollout, Round, Trajectory

NONE = np.zeros(0, np.float32)


def rollout(name: str, rounds: int) -> Rollout:
    """Two siblings a round, under the prompt "name round"."""

    def trajectory(r: int, g: int) -> Trajectory:
        return Trajectory(
            dialogue_id=name, round=r, sibling=g, seed=0, policy_version=0, prompt=f"{name}{r}", prompt_ids=NONE, latents=NONE,
            next_latents=NONE, timesteps=NONE, previous_timesteps=NONE, log_probs=NONE, features=NONE, image=NONE,
        )  # fmt: skip

    turns = range(1, rounds + 1)
    dialogue = Dialogue(id=name, intent="i", rounds=tuple(Round(index=r, utterance="u", prompt=f"{name}{r}") for r in turns))
    return Rollout(dialogue=dialogue, trajectories=tuple(tuple(trajectory(r, g) for g in range(2)) for r in turns))


LONG, SHORT = rollout("a", 2), rollout("b", 1)


def test_every_prompt_of_a_round_meets_every_image_of_its_sibling_index():
    pairs = [(image.dialogue_id, image.round, image.sibling, prompt) for image, prompt in rival_pairs([LONG, SHORT])]
    assert pairs == [
        ("a", 1, 0, "a1"), ("b", 1, 0, "a1"), ("a", 1, 0, "b1"), ("b", 1, 0, "b1"),
        ("a", 1, 1, "a1"), ("b", 1, 1, "a1"), ("a", 1, 1, "b1"), ("b", 1, 1, "b1"),
        ("a", 2, 0, "a2"), ("a", 2, 1, "a2"),
    ]  # fmt: skip
    assert rival_pairs([]) == [] and rival_credits([], []) == []


def test_a_term_is_log_d_and_the_log_softmax_over_the_images_of_its_row():
    def score(image, prompt):
        known = {("a1", "a", 0): log(3), ("b1", "b", 1): log(7), ("a1", "b", 1): None}
        return known.get((prompt, image.dialogue_id, image.sibling), 0.0)

    first, second = rival_credits([LONG, SHORT], [score(*pair) for pair in rival_pairs([LONG, SHORT])])
    # Row a1 of sibling 0: 3 / (3 + 1) of the mass on its own image. A score is missing in the row of sibling 1.
    np.testing.assert_allclose(first[0], [log(2 * 3 / 4), np.nan])
    np.testing.assert_allclose(second[0], [log(2 * 1 / 2), log(2 * 7 / 8)], atol=1e-12)
    assert first[1] == [0.0, 0.0]  # nobody to be told from
    assert [len(siblings) for siblings in second] == [2]


def test_the_order_of_the_dialogues_does_not_matter():
    rng = np.random.default_rng(0)
    table = {(image.dialogue_id, image.round, image.sibling, prompt): rng.normal() for image, prompt in rival_pairs([LONG, SHORT])}

    def credits(rollouts):
        scores = [table[image.dialogue_id, image.round, image.sibling, prompt] for image, prompt in rival_pairs(rollouts)]
        return rival_credits(rollouts, scores)

    np.testing.assert_allclose(np.concatenate(credits([LONG, SHORT])), np.concatenate(credits([SHORT, LONG])[::-1]), atol=1e-12)
