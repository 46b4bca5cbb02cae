"""A learner rank that is killed or stopped in mid-step: the group comes back, and nobody can see it in the result."""

import os
import signal

import pytest

from omr_ray.workers.call import WorkersFailed
from omr_ray.workers.learner import LearnerGroup
from tests.chaos.test_worker_kills import Sniper
from tests.ray.test_learner import batch_for, config, difference, make_tiny_sd


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(make_tiny_sd(tmp_path_factory.mktemp("sd")))


def group_of_two(model, **limits) -> LearnerGroup:
    """Steps long enough to be hit: one row a forward."""
    workers = {"learner": {"num_cpus": 0.5}, "timeout_s": 120, "start_timeout_s": 240} | limits
    algorithm = {"type": "ppo", "clip_range": 1e-2, "minibatches": 2, "passes": 2}
    return LearnerGroup(config(model, algorithm=algorithm, workers=workers, learner={"ranks": 2, "zero_stage": 2, "micro_batch": 1}))


@pytest.fixture(scope="module")
def undisturbed(model):
    group = group_of_two(model)
    for step in (1, 2):
        group.step(batch_for(model, 20), None, step)
    state = group.state()
    group.close()
    return state


@pytest.mark.timeout(900)
def test_ranks_lost_in_mid_step_leave_no_trace(model, undisturbed):
    shared_memory = set(os.listdir("/dev/shm"))
    group = group_of_two(model, timeout_s=30)
    for step, how in ((1, signal.SIGKILL), (2, signal.SIGSTOP)):
        restarts, sniper = group.restarts, Sniper("LearnerWorker.step", how)
        update = group.step(batch_for(model, 20), None, step)
        assert sniper.done() == 1
        assert group.restarts > restarts
        assert update.policy_version == step
    assert difference(group.state(), undisturbed) == 0
    group.close()
    assert not [name for name in set(os.listdir("/dev/shm")) - shared_memory if "deepspeed" in name]


@pytest.mark.timeout(900)
def test_it_gives_up_after_max_attempts(model):
    group = group_of_two(model)
    group.config = group.config.model_copy(update={"workers": group.config.workers.model_copy(update={"max_attempts": 1})})
    sniper = Sniper("LearnerWorker.step", signal.SIGKILL)
    with pytest.raises(WorkersFailed, match="learner step 1 failed 1 times"):
        group.step(batch_for(model, 20), None, 1)
    assert sniper.done() == 1
