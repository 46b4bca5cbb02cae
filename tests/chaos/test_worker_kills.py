"""Workers that are killed or stopped in mid-call, from outside. The run goes on, and nobody can see it in the result."""

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from omr_ray.config.reading import with_overrides
from omr_ray.loading import policy_from
from omr_ray.types import Update
from omr_ray.workers.call import WorkersFailed
from omr_ray.workers.pool import RewardPool, RolloutPool
from tests.ray import test_reward_pool as reward
from tests.ray import test_rollout_pool as rollout

pytestmark = pytest.mark.timeout(900)  # a busy machine loads models slowly

LIMIT = 60.0


@pytest.fixture(scope="module")
def sd_model(tmp_path_factory):
    return str(rollout.make_tiny_sd(tmp_path_factory.mktemp("sd")))


@pytest.fixture(scope="module")
def qwen_model(tmp_path_factory):
    return str(reward.make_tiny_qwen(tmp_path_factory.mktemp("qwen")))


class Sniper(threading.Thread):
    """Sends `signal_` to the first `shots` processes that work in `title` ("RolloutWorker.sample"), once each.

    Ray names a process after the call it works on. Only processes of this session's Ray are looked at: they share its HOME.
    """

    def __init__(self, title: str, signal_: signal.Signals, shots: int = 1):
        super().__init__(daemon=True)
        self.title, self.signal, self.shots = f"ray::{title}".encode(), signal_, shots
        self.hit: set[int] = set()
        self.over = threading.Event()
        self.start()

    def run(self):
        home = f"HOME={os.environ['HOME']}".encode()
        while len(self.hit) < self.shots and not self.over.wait(0.001):
            for process in Path("/proc").iterdir():
                pid = int(process.name) if process.name.isdigit() else None
                try:
                    if pid is None or pid in self.hit or not (process / "cmdline").read_bytes().startswith(self.title):
                        continue
                    if home in (process / "environ").read_bytes().split(b"\0"):
                        os.kill(pid, self.signal)
                        self.hit.add(pid)
                        break
                except (FileNotFoundError, ProcessLookupError, PermissionError):
                    continue

    def done(self) -> int:
        self.over.set()
        self.join(LIMIT)
        return len(self.hit)


def long_rollouts(model, workers, *overrides):
    """Calls long enough to be hit: hundreds of milliseconds."""
    return with_overrides(rollout.config(model, workers=workers), ["sampler.steps=20", "sampler.window=[1,20]", *overrides])


@pytest.fixture(scope="module")
def undisturbed(sd_model):
    pool = RolloutPool(long_rollouts(sd_model, 1))
    pool.load(trained(sd_model))
    result = pool.sample(rollout.dialogues(8), step=1)
    pool.close()
    return result


def patience(work) -> float:
    """A time limit for one call of `work` that a busy machine does not reach: five times what all its calls take now."""
    start = time.monotonic()
    work()
    return max(10.0, 5 * (time.monotonic() - start))


def trained(model) -> Update:
    settings = rollout.config(model)
    weights = policy_from(settings.model, settings.lora).lora_weights()
    return Update(policy_version=5, weights={name: value + 0.05 for name, value in weights.items()}, metrics={})


@pytest.mark.parametrize("workers", [1, 2])
def test_a_rollout_worker_killed_in_mid_call(sd_model, undisturbed, workers):
    pool = RolloutPool(long_rollouts(sd_model, workers))
    pool.load(trained(sd_model))
    sniper = Sniper("RolloutWorker.sample", signal.SIGKILL)
    result = pool.sample(rollout.dialogues(8), step=1)
    assert sniper.done() == 1
    metrics = pool.metrics()
    assert (metrics["rollout/retries"], metrics["rollout/replacements"]) == (1, 1)
    assert rollout.same(result, undisturbed)  # the new worker has the weights of version 5 too
    assert rollout.same(pool.sample(rollout.dialogues(8), step=1), undisturbed)
    assert pool.metrics()["rollout/retries"] == 0
    pool.close()


def test_a_rollout_worker_that_hangs_is_found_by_the_time_limit(sd_model, undisturbed):
    first = RolloutPool(long_rollouts(sd_model, 1))
    first.sample(rollout.dialogues(1), step=9)  # its models are loaded
    limit = patience(lambda: first.sample(rollout.dialogues(8), step=1))
    first.close()
    pool = RolloutPool(long_rollouts(sd_model, 2, f"workers.timeout_s={limit}"))
    pool.load(trained(sd_model))
    sniper = Sniper("RolloutWorker.sample", signal.SIGSTOP)
    start = time.monotonic()
    result = pool.sample(rollout.dialogues(8), step=1)
    assert sniper.done() == 1
    assert time.monotonic() - start >= limit
    assert rollout.same(result, undisturbed)
    metrics = pool.metrics()
    assert (metrics["rollout/retries"], metrics["rollout/replacements"]) == (1, 1)
    pool.close()


def test_a_worker_killed_between_two_calls_is_back(sd_model, undisturbed):
    pool = RolloutPool(long_rollouts(sd_model, 1))
    pool.load(trained(sd_model))
    pool.sample(rollout.dialogues(1), step=9)
    sniper = Sniper("RolloutWorker", signal.SIGKILL)  # idle: named after its class alone
    deadline = time.monotonic() + LIMIT
    while not sniper.hit and time.monotonic() < deadline:
        time.sleep(0.01)
    assert sniper.done() == 1
    assert rollout.same(pool.sample(rollout.dialogues(8), step=1), undisturbed)
    pool.close()


def test_a_call_that_kills_every_worker_ends_in_one_clear_error(sd_model, undisturbed):
    pool = RolloutPool(long_rollouts(sd_model, 1, "workers.max_attempts=2"))
    sniper = Sniper("RolloutWorker.sample", signal.SIGKILL, shots=2)
    with pytest.raises(WorkersFailed, match=r"rollout: step 1: 2 from 'd0' to 'd1': 2 of 2 attempts failed .* \d+\.\d s after"):
        pool.sample(rollout.dialogues(8), step=1)
    assert sniper.done() == 2
    pool.load(trained(sd_model))
    assert rollout.same(pool.sample(rollout.dialogues(8), step=1), undisturbed)  # the pool is still of use
    pool.close()


@pytest.mark.parametrize("signal_", [signal.SIGKILL, signal.SIGSTOP])
def test_a_reward_worker_killed_or_stopped_in_mid_call(qwen_model, signal_):
    settings = reward.config(qwen_model, workers=2, batch_size=32)
    rng = np.random.default_rng(0)
    rollouts = [reward.rollout(f"coat {i}", 2, 32, rng) for i in range(4)]
    first = RewardPool(settings)
    undisturbed = first.preferences(rollouts)
    limit = patience(lambda: first.preferences(rollouts))
    first.close()
    pool = RewardPool(with_overrides(settings, [f"workers.timeout_s={limit}"]))
    sniper = Sniper("RewardWorker.score", signal_)
    disturbed = pool.preferences(rollouts)
    assert sniper.done() == 1
    assert disturbed == undisturbed
    metrics = pool.metrics()
    assert (metrics["reward/retries"], metrics["reward/replacements"]) == (1, 1)
    pool.close()
