"""The reward pool with vLLM in its actors, on real Ray."""

import numpy as np
import psutil
import pytest
import ray

from omr_ray.loading import reward_model_path
from omr_ray.vlm.reward_model import RewardModel
from omr_ray.workers.pool import RewardPool
from tests.ray.conftest import local_ray  # noqa: F401
from tests.ray.test_reward_pool import config, rollout

pytestmark = pytest.mark.timeout(900)  # a busy machine loads models slowly


def test_a_worker_scores_with_vllm_and_leaves_no_process_behind():
    settings = config("atelier", batch_size=8)
    preference = settings.rewards.preference.model_copy(update={"engine": "vllm"})
    settings = settings.model_copy(update={"rewards": settings.rewards.model_copy(update={"preference": preference})})
    made = rollout("coat", 2, 6, np.random.default_rng(0))
    pool = RewardPool(settings)
    (scores,) = pool.preferences([made])
    scorer = RewardModel.from_pretrained(reward_model_path("atelier"))
    for row, siblings in zip(scores, made.trajectories, strict=True):
        wanted = scorer.score(np.stack([t.image for t in siblings]), [t.prompt for t in siblings])
        np.testing.assert_allclose(row, wanted, atol=1e-3)
    assert pool.metrics()["reward/retries"] == 0

    (worker,) = [process for process in psutil.Process().children(recursive=True) if "ray::RewardWorker" in " ".join(process.cmdline())]
    family = [worker, *worker.children(recursive=True)]
    pool.close()
    _, alive = psutil.wait_procs(family, timeout=60)
    assert alive == []
    ray.shutdown()
