import numpy as np
import pytest
import torch

from omr_ray.algorithm.gaussian import log_prob
from omr_ray.diffusion.features import features
from omr_ray.diffusion.sampler import MultiRoundSampler
from omr_ray.types import Dialogue, Round, UserError

OPTIONS = {
    "steps": 5,
    "eta": 1.0,
    "guidance_scale": 2.0,
    "strength": (0.6, 0.4),
    "siblings": 2,
    "window": (1, 5),
    "train_steps_per_round": 2,
    "shared_window": True,
    "height": None,
    "width": None,
    "batch_size": 64,
}


def dialogue(name, rounds=3):
    made = tuple(Round(index=r, utterance="", prompt=f"{name} coat {r}") for r in range(1, rounds + 1))
    return Dialogue(id=name, intent=name, rounds=made)


def sampler(policy, **changes):
    return MultiRoundSampler(policy, **{**OPTIONS, **changes})


def flat(rollouts):
    return [t for rollout in rollouts for siblings in rollout.trajectories for t in siblings]


def test_every_round_and_sibling_comes_back_in_order(policy):
    rollouts = sampler(policy).sample([dialogue("a"), dialogue("b", 1)], seed=1, policy_version=7)
    assert [rollout.dialogue.id for rollout in rollouts] == ["a", "b"]
    assert [[(t.round, t.sibling) for t in row] for row in rollouts[0].trajectories] == [[(r, g) for g in (0, 1)] for r in (1, 2, 3)]
    assert len(rollouts[1].trajectories) == 1
    for t in flat(rollouts):
        assert t.latents.shape == t.next_latents.shape == (2, 4, 8, 8)
        assert t.image.shape == (16, 16, 3) and t.image.dtype == np.uint8 and t.features.shape == (128,)
        assert t.timesteps.dtype == np.int64 and (np.diff(t.timesteps) < 0).all() and (t.previous_timesteps >= 0).all()
        assert t.policy_version == 7 and t.prompt == f"{t.dialogue_id} coat {t.round}"
        np.testing.assert_array_equal(t.prompt_ids, policy.tokenize([t.prompt])[0])
    assert len({t.seed for t in flat(rollouts)}) == 8


def test_a_sample_does_not_depend_on_its_batch(policy):
    together = sampler(policy).sample([dialogue("a"), dialogue("b"), dialogue("c", 2)], seed=5, policy_version=0)
    alone = sampler(policy, batch_size=3).sample([dialogue("b")], seed=5, policy_version=0)
    for t, same in zip(flat([together[1]]), flat(alone), strict=True):
        assert t.seed == same.seed and t.timesteps.tolist() == same.timesteps.tolist()
        for name in ("latents", "next_latents", "log_probs", "features"):
            np.testing.assert_allclose(getattr(t, name), getattr(same, name), rtol=1e-5, atol=1e-5)
    other = sampler(policy).sample([dialogue("b")], seed=6, policy_version=0)
    assert np.abs(flat(other)[0].latents - flat(alone)[0].latents).max() > 0.1


def test_stored_log_probs_are_those_of_the_stored_latents(policy):
    made = flat(sampler(policy, train_steps_per_round=5).sample([dialogue("a"), dialogue("b")], seed=2, policy_version=0))

    def rows(name):
        return torch.from_numpy(np.concatenate([getattr(t, name) for t in made]))

    ids = np.concatenate([np.repeat(t.prompt_ids[None], len(t.timesteps), 0) for t in made])
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(0))
    for part in order.split(7):
        with torch.no_grad():
            text = policy.encode_text(ids[part.numpy()])
            step = rows("latents")[part], rows("timesteps")[part], rows("previous_timesteps")[part]
            mean, sigma, _ = policy.step(*step, text, eta=1.0, guidance_scale=2.0)
        ratio = (log_prob(rows("next_latents")[part], mean, sigma) - rows("log_probs")[part]).exp()
        assert (ratio - 1).abs().max() <= 1e-6


def test_steps_are_a_chain_and_later_rounds_start_from_the_last_latent(sd):
    """All steps stored: z_{t-1} of one is z_t of the next, and round 2 starts at tau_2 from the end of round 1."""
    first, second, third = (
        row[0] for row in sampler(sd, train_steps_per_round=5).sample([dialogue("a")], seed=3, policy_version=0)[0].trajectories
    )
    assert first.timesteps.tolist() == [801, 601, 401, 201, 1] and first.previous_timesteps.tolist() == [601, 401, 201, 1, 0]
    assert second.timesteps.tolist() == [401, 201, 1]  # strength 0.6 of 5 steps
    assert third.timesteps.tolist() == [201, 1]  # strength 0.4
    for t in (first, second, third):
        np.testing.assert_array_equal(t.latents[1:], t.next_latents[:-1])
    noise = np.random.Generator(np.random.Philox(second.seed)).standard_normal((4, 4, 8, 8), dtype=np.float32)
    alpha = sd.alphas_cumprod[401].item()
    np.testing.assert_allclose(second.latents[0], alpha**0.5 * first.next_latents[-1] + (1 - alpha) ** 0.5 * noise[0], atol=1e-6)
    with torch.no_grad():
        text = sd.encode_text(second.prompt_ids[None])
        mean, sigma, _ = sd.step(
            torch.tensor(second.latents[:1]), torch.tensor([401]), torch.tensor([201]), text, eta=1.0, guidance_scale=2.0
        )
    np.testing.assert_allclose(second.next_latents[0], mean[0].numpy() + sigma[0].item() * noise[1], atol=1e-5)
    np.testing.assert_allclose(features(sd, torch.tensor(third.next_latents[-1:]))[0], third.features, atol=1e-5)
    np.testing.assert_array_equal(sd.render(torch.tensor(third.next_latents[-1:]))[0], third.image)


def test_the_window_counts_from_the_last_step(sd):
    made = flat(
        sampler(sd, window=(2, 3), train_steps_per_round=1, siblings=4).sample([dialogue(n) for n in "abcd"], seed=0, policy_version=0)
    )
    assert {t for m in made for t in m.timesteps.tolist() if m.round < 3} == {401, 201}  # steps 3 and 2 of 5, counted from the last
    assert {t for m in made for t in m.timesteps.tolist() if m.round == 3} == {201}  # round 3 runs only the last two
    rounds = [[m.timesteps.tolist() for m in made if (m.dialogue_id, m.round) == (n, 1)] for n in "abcd"]
    assert all(row == [row[0]] * 4 for row in rounds)
    own = flat(
        sampler(sd, window=(2, 3), train_steps_per_round=1, siblings=4, shared_window=False).sample(
            [dialogue(n, 1) for n in "abcd"], seed=0, policy_version=0
        )
    )
    assert any(len({tuple(m.timesteps) for m in own if m.dialogue_id == n}) == 2 for n in "abcd")


def test_a_window_that_a_round_never_reaches_is_refused(sd):
    with pytest.raises(UserError, match="window .3, 5. holds no step that round 3 runs"):
        sampler(sd, window=(3, 5))


def test_a_step_without_variance_is_never_trained(sd, monkeypatch):
    monkeypatch.setattr(sd, "_spacing", ("leading", 0))  # ends at t = 0, which leads to itself
    made = flat(sampler(sd, train_steps_per_round=5).sample([dialogue("a", 2)], seed=0, policy_version=0))
    assert made[0].timesteps.tolist() == [800, 600, 400, 200] and made[-1].timesteps.tolist() == [400, 200]
    assert all(np.isfinite(t.log_probs).all() for t in made)


def test_generate_is_one_round_that_no_batch_changes(policy):
    one = sampler(policy)
    images, latents = one.generate(["a", "b", "c"], seeds=[1, 2, 3])
    assert images.shape == (3, 16, 16, 3) and images.dtype == np.uint8 and latents.shape == (3, 4, 8, 8)
    np.testing.assert_allclose(one.generate(["b"], seeds=[2])[1], latents[1:2], atol=1e-5)
    _, edited = one.generate(["b", "c"], seeds=[5, 6], from_latents=latents[1:], strength=0.4)
    np.testing.assert_allclose(
        sampler(policy, batch_size=1).generate(["c"], seeds=[6], from_latents=latents[2:], strength=0.4)[1], edited[1:], atol=1e-5
    )
    default = one.generate(["c"], seeds=[6], from_latents=latents[2:])[1]
    np.testing.assert_array_equal(default, one.generate(["c"], seeds=[6], from_latents=latents[2:], strength=0.6)[1])


def test_generate_continues_what_sample_made(sd):
    """Round 2 of a rollout, made again by `generate` from round 1's latent and round 2's seed."""
    rows = sampler(sd, train_steps_per_round=5).sample([dialogue("a", 2)], seed=3, policy_version=0)[0].trajectories
    first, second = rows[0][1], rows[1][1]
    images, latents = sampler(sd).generate([second.prompt], seeds=[second.seed], from_latents=first.next_latents[-1:])
    np.testing.assert_allclose(latents[0], second.next_latents[-1], atol=1e-5)
    assert np.abs(images[0].astype(int) - second.image).max() <= 1
