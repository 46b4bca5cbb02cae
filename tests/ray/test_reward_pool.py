"""The reward pool with real actors and a tiny Qwen-VL."""

import numpy as np
import pytest
import torch

from omr_ray.config.run import PreferenceModel, RunConfig
from omr_ray.types import Dialogue, Rollout, Round, Trajectory, UserError
from omr_ray.workers.loading import reward_model_from
from omr_ray.workers.pool import RewardPool
from omr_ray.workers.reward import RewardWorker
from tests.tiny_qwen import make_tiny_qwen

pytestmark = pytest.mark.timeout(900)  # a busy machine loads models slowly

NONE = np.zeros(0, np.float32)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(make_tiny_qwen(tmp_path_factory.mktemp("qwen")))


def config(model, workers=1, batch_size=4) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "t",
            "rewards": {"preference": {"path": model, "batch_size": batch_size}},
            "workers": {"reward": {"count": workers, "num_cpus": 0.5}, "timeout_s": 240, "start_timeout_s": 240},
        }
    )


def rollout(name: str, rounds: int, siblings: int, rng: np.random.Generator) -> Rollout:
    dialogue = Dialogue(
        id=name, intent="x", rounds=tuple(Round(index=r, utterance="u", prompt=f"{r} {name}") for r in range(1, rounds + 1))
    )

    def trajectory(round_: int, sibling: int) -> Trajectory:
        return Trajectory(
            dialogue_id=name, round=round_, sibling=sibling, seed=0, policy_version=0, prompt=f"{round_} {name}", prompt_ids=NONE,
            latents=NONE, next_latents=NONE, timesteps=NONE, previous_timesteps=NONE, log_probs=NONE, features=NONE,
            image=rng.integers(0, 256, (16, 16, 3), dtype=np.uint8),
        )  # fmt: skip

    return Rollout(dialogue=dialogue, trajectories=tuple(tuple(trajectory(r, g) for g in range(siblings)) for r in range(1, rounds + 1)))


def test_scores_come_back_in_place_whoever_made_them(model):
    rng = np.random.default_rng(0)
    rollouts = [rollout("coat", 2, 3, rng), rollout("hat", 1, 3, rng), rollout("dress in a meadow", 3, 1, rng)]
    one, two = RewardPool(config(model)), RewardPool(config(model, workers=2))
    scores = one.preferences(rollouts)
    assert [[len(siblings) for siblings in rounds] for rounds in scores] == [[3, 3], [3], [1, 1, 1]]
    assert scores == two.preferences(rollouts)  # three batches of four either way

    scorer = reward_model_from(PreferenceModel(path=model))
    for rounds, made in zip(scores, rollouts, strict=True):
        for row, siblings in zip(rounds, made.trajectories, strict=True):
            alone = [scorer.score(t.image[None], [t.prompt]).item() for t in siblings]
            np.testing.assert_allclose(row, alone, atol=1e-5)
    assert len({score for rounds in scores for row in rounds for score in row}) == 12
    assert two.metrics()["reward/retries"] == 0
    assert one.preferences([]) == []
    one.close(), two.close()


def test_a_score_that_is_not_finite_is_missing():
    class Broken:
        def score(self, images, prompts, batch_size):
            return torch.tensor([1.5, float("nan"), float("inf")])

    worker = RewardWorker(config("unused"))
    worker._model = Broken()
    assert worker.score(np.zeros((3, 8, 8, 3), np.uint8), ["a", "b", "c"])[0] == [1.5, None, None]


def test_a_pickled_reward_model_is_the_users_fault(tmp_path):
    (tmp_path / "pytorch_model.bin").touch()
    pool = RewardPool(config(str(tmp_path)))
    with pytest.raises(UserError, match="safetensors"):
        pool.preferences([rollout("coat", 1, 1, np.random.default_rng(0))])
    pool.close()
