import json
from contextlib import nullcontext

import numpy as np
import pytest

from omr_ray import bench
from omr_ray.config.run import RunConfig
from omr_ray.types import Dialogue, LearnerState, Rollout, Round, Trajectory, Update, UserError


def test_the_first_call_is_not_counted(monkeypatch):
    clock = iter([10.0, 12.0, 20.0, 23.0])
    monkeypatch.setattr(bench.time, "perf_counter", lambda: next(clock))
    seconds, last = bench._timed(lambda step: step, repeats=2)
    assert (seconds, last) == ([2.0, 3.0], 3)
    assert bench._seconds(seconds) == {"seconds": {"median": 2.5, "min": 2.0, "max": 3.0}}


def test_peak_memory_sees_what_was_allocated_and_freed():
    with bench.PeakMemory() as memory:
        before = memory.peak
        block = np.ones(2**24, dtype=np.float32)  # 64 MiB, touched
        memory._look()
    assert memory.peak >= max(before, block.nbytes)
    assert memory.processes >= 1


def test_random_rewards_fit_their_rollout_and_repeat():
    dialogue = Dialogue(id="d", intent="i", rounds=(Round(index=1, utterance="u", prompt="p"),))
    rollout = Rollout(dialogue=dialogue, trajectories=(("a", "b", "c"),))
    first, second = (bench.randomly_scored([rollout], seed=3)[0].rewards for _ in range(2))
    assert [len(row) for row in first] == [3]
    assert first == second


def test_nothing_is_started_for_no_repeats():
    with pytest.raises(UserError, match="--repeats must be at least 1, got 0"):
        bench.bench(RunConfig(name="x"), what="all", repeats=0)


class Rollouts:
    """A rollout pool that makes one round of two samples a dialogue."""

    def __init__(self, config):
        self.closed = False

    def sample(self, dialogues, step):
        return [Rollout(dialogue=d, trajectories=((trajectory(d, 0), trajectory(d, 1)),)) for d in dialogues]

    def load(self, update):
        pass

    def metrics(self):
        return {"retries": 0.0}

    def spans(self):
        return []

    def close(self):
        self.closed = True


class Rewards(Rollouts):
    def terms(self, rollouts):
        return [{"mutual_information": [[0.1, 0.2]]} for _ in rollouts]


class Learner(Rollouts):
    def step(self, batch, pairs, step):
        return Update(policy_version=step, weights={}, metrics={"trained_steps": float(len(batch))})

    def state(self):
        return LearnerState(policy_version=0, weights={})


def trajectory(dialogue, sibling):
    return Trajectory(
        dialogue_id=dialogue.id,
        round=1,
        sibling=sibling,
        seed=0,
        policy_version=0,
        prompt="p",
        prompt_ids=np.zeros((1, 4), np.int64),
        latents=np.zeros((1, 1, 2, 2), np.float32),
        next_latents=np.zeros((1, 1, 2, 2), np.float32),
        timesteps=np.ones(1, np.int64),
        previous_timesteps=np.zeros(1, np.int64),
        log_probs=np.zeros(1, np.float32),
        features=np.eye(2, dtype=np.float32)[sibling],
        image=np.zeros((2, 2, 3), np.uint8),
    )


def test_all_three_measures_say_what_was_made_in_a_second(monkeypatch):
    monkeypatch.setattr("omr_ray.ray_session.connected", lambda num_cpus: nullcontext())
    monkeypatch.setattr("omr_ray.workers.pool.RolloutPool", Rollouts)
    monkeypatch.setattr("omr_ray.workers.pool.RewardPool", Rewards)
    monkeypatch.setattr("omr_ray.workers.learner.LearnerGroup", Learner)
    config = RunConfig(name="x", dialogues_per_step=3, dialogues={"kind": "atelier", "rounds": 1}, sampler={"siblings": 2})
    result = json.loads(json.dumps(bench.bench(config, what="all", repeats=2)))
    assert result["weights"] == "atelier, no adapter"
    rollout, learner, whole = (result[name] for name in ("rollout", "learner", "end-to-end"))
    assert rollout["images"] == 6
    assert rollout["images_per_s"] == pytest.approx(6 / rollout["seconds"]["median"])
    assert rollout["bytes_per_trajectory"] == 8 * 4 + 2 * 16 + 16 + 4 + 8 + 12
    assert learner["trained_steps"] == 6
    assert whole["trained_steps_per_s"] == pytest.approx(6 / whole["seconds_by_phase"]["step"])
    assert {"rollout", "reward", "learner", "weights", "controller", "step"} <= whole["seconds_by_phase"].keys()
