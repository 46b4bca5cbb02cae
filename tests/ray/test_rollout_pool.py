"""The rollout pool with real actors and a tiny Stable Diffusion: same samples whoever makes them."""

import numpy as np
import pytest

from omr_ray.config.run import RunConfig
from omr_ray.loading import policy_from, sampler_from
from omr_ray.types import Dialogue, Rollout, Round, Update, UserError
from omr_ray.workers.pool import RolloutPool, step_seed
from tests.tiny import make_tiny_sd

pytestmark = pytest.mark.timeout(900)  # a busy machine loads models slowly


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(make_tiny_sd(tmp_path_factory.mktemp("sd")))


def config(model, workers=1, batch_size=4) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "t",
            "model": {"kind": "diffusers", "path": model, "dtype": "float32", "channels_last": False},
            "sampler": {"steps": 4, "siblings": 2, "window": [1, 4], "train_steps_per_round": 2, "batch_size": batch_size},
            "workers": {"rollout": {"count": workers, "num_cpus": 0.5}, "timeout_s": 240, "start_timeout_s": 240},
        }
    )


def dialogues(count: int) -> list[Dialogue]:
    return [
        Dialogue(
            id=f"d{i}", intent="x", rounds=tuple(Round(index=r, utterance="u", prompt=f"{r} coat {i}") for r in range(1, 2 + i % 2 + 1))
        )
        for i in range(count)
    ]


def arrays(rollouts: list[Rollout]) -> list[np.ndarray]:
    names = ("latents", "next_latents", "timesteps", "log_probs", "features", "image", "prompt_ids")
    return [getattr(t, name) for rollout in rollouts for siblings in rollout.trajectories for t in siblings for name in names]


def same(left: list[Rollout], right: list[Rollout]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(arrays(left), arrays(right), strict=True))


def test_the_number_of_workers_changes_nothing(model):
    asked = dialogues(5)
    one, two = RolloutPool(config(model, workers=1)), RolloutPool(config(model, workers=2))
    alone, shared = one.sample(asked, step=3), two.sample(asked, step=3)
    assert [rollout.dialogue.id for rollout in shared] == ["d0", "d1", "d2", "d3", "d4"]
    assert same(alone, shared)  # three shares of at most one batch either way: bit for bit
    assert not same(alone, one.sample(asked, step=4))

    metrics = two.metrics()
    assert metrics["rollout/images_per_s"] > 0
    assert metrics["rollout/retries"] == 0
    assert "rollout/images_per_s" not in two.metrics()  # nothing since
    one.close(), two.close()


def test_a_pool_gives_what_its_sampler_gives_and_follows_the_weights(model):
    settings = config(model, workers=2)
    asked = dialogues(2)
    policy = policy_from(settings.model, settings.lora)
    local = sampler_from(policy, settings.sampler)
    pool = RolloutPool(settings)
    untrained = pool.sample(asked, step=1)
    assert same(untrained, [local.sample([d], seed=step_seed(settings.seed, 1), policy_version=0)[0] for d in asked])

    weights = {name: value + 0.05 for name, value in policy.lora_weights().items()}
    pool.load(Update(policy_version=7, weights=weights, metrics={}))
    trained = pool.sample(asked, step=1)
    policy.load_lora(weights)
    assert same(trained, [local.sample([d], seed=step_seed(settings.seed, 1), policy_version=7)[0] for d in asked])
    assert {t.policy_version for rollout in trained for siblings in rollout.trajectories for t in siblings} == {7}
    assert not same(trained, untrained)

    images, latents = pool.generate(["a", "b", "c"], seeds=[1, 2, 3])
    expected_images, expected_latents = local.generate(["a", "b", "c"], seeds=[1, 2, 3])
    np.testing.assert_allclose(latents, expected_latents, atol=1e-5)
    assert abs(images.astype(int) - expected_images).max() <= 1
    _, edited = pool.generate(["a", "b"], seeds=[4, 5], from_latents=latents[:2], strength=0.5)
    np.testing.assert_allclose(edited, local.generate(["a", "b"], seeds=[4, 5], from_latents=latents[:2], strength=0.5)[1], atol=1e-5)

    pool.load(None)
    assert same(pool.sample(asked, step=1), untrained)

    pool.load(Update(policy_version=8, weights={"strange": np.zeros(1, np.float32)}, metrics={}))
    with pytest.raises(UserError, match="names differ"):
        pool.sample(asked, step=2)
    pool.close()


def test_a_model_that_is_not_there_is_the_users_fault(tmp_path):
    pool = RolloutPool(config(str(tmp_path / "absent")))
    with pytest.raises(UserError, match="absent"):
        pool.sample(dialogues(1), step=1)
    pool.close()
