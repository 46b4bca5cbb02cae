"""D3PO on votes: what is drawn again, what is learned, and what judges it."""

from dataclasses import replace

import numpy as np
import pytest

from omr_ray.config.dialogue import AdaptiveOptimization
from omr_ray.diffusion.generation import generate_guided
from omr_ray.diffusion.policy import Policy
from omr_ray.diffusion.sampler import MultiRoundSampler
from omr_ray.training.adaptive_optimization import Drawing, DrawnPair, held_out, judge, learn, redraw
from omr_ray.types import UserError
from tests.tiny import make_tiny_sd

CONFIG = AdaptiveOptimization(learning_rate=1e-3, beta=100.0, batch=4, passes=3)


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return Policy.from_pretrained(str(make_tiny_sd(tmp_path_factory.mktemp("sd") / "model")), rank=2, alpha=2.0)


@pytest.fixture
def sampler(policy):
    return sampler_of(policy, steps=4)


def sampler_of(policy, steps):
    return MultiRoundSampler(
        policy,
        steps=steps,
        eta=1.0,
        guidance_scale=1.0,
        strength=(0.5,),
        siblings=1,
        window=(1, steps),
        train_steps_per_round=1,
        shared_window=True,
        batch_size=8,
    )


@pytest.fixture
def base(policy):
    """The adapter that changes nothing, back again after the test."""
    weights = {name: np.zeros_like(value) if ".lora_B." in name else value for name, value in policy.lora_weights().items()}
    policy.load_lora(weights)
    yield weights
    policy.load_lora(weights)


def drawing(seed, *, prompt="a red dress", parent=None, strength=1.0, adapter=None):
    return Drawing(prompt=prompt, seed=seed, parent=parent, strength=strength, adapter=adapter)


def votes(count):
    return [DrawnPair(id=str(n), winner=drawing(2 * n), loser=drawing(2 * n + 1)) for n in range(count)]


def test_an_image_is_drawn_again_as_it_was(sampler, base):
    found = redraw(sampler, votes(1), lambda key: base)
    drawn = generate_guided(sampler, ["a red dress"] * 2, seeds=[0, 1], kept=[0, 1, 2])
    assert found.pair.tolist() == [0, 0, 0]  # the last of the 4 steps is left out
    np.testing.assert_allclose(found.latents.reshape(2, 3, 4, 8, 8), drawn.stored_latents, atol=1e-5)
    np.testing.assert_allclose(found.next_latents.reshape(2, 3, 4, 8, 8), drawn.stored_next_latents, atol=1e-5)
    assert found.timesteps.tolist() == [*sampler.timesteps[:3], *sampler.timesteps[:3]]


def test_an_edit_and_a_first_image_meet_in_the_steps_that_both_ran(sampler, base):
    parent = np.random.default_rng(0).standard_normal((4, 8, 8)).astype(np.float32)
    edit = drawing(7, prompt="a blue dress", parent=parent, strength=0.5)
    found = redraw(sampler, [DrawnPair(id="0", winner=edit, loser=drawing(8))], lambda key: base)
    assert found.timesteps.tolist() == [sampler.timesteps[2]] * 2  # of 4 steps the edit runs 2 and 3, and 3 is the last
    drawn = generate_guided(sampler, ["a blue dress"], seeds=[7], from_latents=parent[None], strength=0.5, kept=[2])
    np.testing.assert_allclose(found.latents[0], drawn.stored_latents[0, 0], atol=1e-5)


def test_each_image_is_drawn_under_the_adapter_it_was_made_with(sampler, base):
    other = {name: value + 0.5 for name, value in base.items()}
    pair = DrawnPair(id="0", winner=drawing(3, adapter="other"), loser=drawing(3))
    found = redraw(sampler, [pair], lambda key: other if key == "other" else base)
    np.testing.assert_array_equal(found.latents[0], found.latents[3])  # they start from the same noise
    assert np.abs(found.next_latents[0] - found.next_latents[3]).max() > 1e-3


def test_learning_leans_to_the_winners_and_the_base_leans_nowhere(sampler, base):
    found = redraw(sampler, votes(2), lambda key: base)
    assert judge(sampler, found, base).wins.tolist() == [0.5, 0.5] and judge(sampler, found, base).drift == 0.0
    weights, figures = learn(sampler, found, base, CONFIG.model_copy(update={"passes": 8}), seed=0)
    assert judge(sampler, found, weights).wins.tolist() == [1.0, 1.0]
    assert figures["updates"] == 16.0 and figures["rows"] == 6.0 and figures["left_out"] == 0.0
    assert figures["loss"] < np.log(2)  # what a policy loses that leans nowhere
    swapped = [DrawnPair(id=vote.id, winner=vote.loser, loser=vote.winner) for vote in votes(2)]
    assert judge(sampler, redraw(sampler, swapped, lambda key: base), weights).wins.tolist() == [0.0, 0.0]


def test_what_makes_all_unlikely_drifts(sampler, base):
    found = redraw(sampler, votes(2), lambda key: base)
    assert judge(sampler, found, {name: value + 5 for name, value in base.items()}).drift > 0.1
    verdict = judge(sampler, found, {name: np.full_like(value, np.nan) for name, value in base.items()})
    assert verdict.wins.tolist() == [0.0, 0.0] and np.isnan(verdict.drift)


def test_the_same_votes_give_the_same_adapter(sampler, base):
    found = redraw(sampler, votes(2), lambda key: base)
    one, other = (learn(sampler, found, base, CONFIG, seed=5)[0] for _ in range(2))
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_steps_that_are_not_finite_are_left_out(sampler, base):
    found = redraw(sampler, votes(2), lambda key: base)
    latents = found.latents.copy()
    latents[0, 0, 0, 0] = np.nan
    weights, figures = learn(sampler, replace(found, latents=latents), base, CONFIG, seed=0)
    assert figures["left_out"] == 3.0  # one row, three passes
    assert all(np.isfinite(value).all() for value in weights.values())


def test_a_schedule_without_a_step_to_learn_from_is_refused(policy, base):
    with pytest.raises(UserError, match=r"painting.steps to 2 or more"):
        redraw(sampler_of(policy, steps=1), votes(1), lambda key: base)


def test_a_vote_is_held_out_by_its_id_alone():
    learned, kept = held_out(votes(10), 0.2)
    # SHA-256 of "8" and "9" begin with 2c62... and 1958..., 0.173 and 0.099 of the largest number; the other eight lie above 0.2.
    assert [vote.id for vote in kept] == ["8", "9"]
    assert [vote.id for vote in learned] == list("01234567")
    assert [vote.id for vote in held_out(votes(10)[8:], 0.2)[1]] == ["8", "9"]
