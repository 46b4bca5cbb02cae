import subprocess
import sys

from omr_ray.config.run import Actors, RunConfig
from omr_ray.workers.placement import bundles, learner_bundles, resources


def config(**workers) -> RunConfig:
    return RunConfig.model_validate({"name": "t", "learner": {"ranks": 2}, "workers": workers})


def test_resources_leave_out_zeros():
    assert resources(Actors(num_cpus=0.5, num_gpus=0)) == {"CPU": 0.5}
    assert resources(Actors(num_cpus=0, num_gpus=1)) == {"GPU": 1}


def test_bundles_are_learner_ranks_then_rollout_then_reward():
    found = bundles(config(rollout={"count": 2, "num_gpus": 1}, reward={"num_cpus": 0.5}, learner={"num_cpus": 4, "num_gpus": 1}))
    learner, rollout, reward = {"CPU": 4, "GPU": 1}, {"CPU": 1, "GPU": 1}, {"CPU": 0.5}
    assert found == [learner, learner, rollout, rollout, reward]


def test_a_bundle_is_never_empty():
    found = config(rollout={"num_cpus": 0}, learner={"num_cpus": 0})
    assert learner_bundles(found) == [{"CPU": 0.001}] * 2
    assert bundles(found) == [{"CPU": 0.001}] * 2 + [{"CPU": 1}]


def test_the_numbers_need_no_ray():
    code = "import sys, omr_ray.workers.placement; assert not {'ray', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
