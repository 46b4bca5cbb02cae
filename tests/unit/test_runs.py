import errno

import numpy as np
import pytest

from omr_ray import runs
from omr_ray.config.run import RunConfig
from omr_ray.types import LearnerState, UserError


def state(version: int) -> LearnerState:
    weights = {"a.lora_A": np.full((2, 3), version, np.float32)}
    return LearnerState(policy_version=version, weights=weights, ema=weights, optimizer={"a.exp_avg": np.ones(3, np.float32) / 3})


def run_config(**changes) -> RunConfig:
    return RunConfig(name="test", sampler={"steps": 10, "window": (1, 10)}, **changes)


def test_a_checkpoint_comes_back_bit_for_bit_and_only_the_newest_are_kept(tmp_path):
    checkpoints = runs.Checkpoints(tmp_path, keep=2)
    assert checkpoints.latest() is None
    for step in (1, 2, 3):
        checkpoints.save(step, state(step), {"mean": 0.1 + 0.2})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000002", "step-000003"]
    found = checkpoints.latest()
    assert (found.step, found.learner.policy_version, found.judge) == (3, 3, {"mean": 0.1 + 0.2})
    np.testing.assert_array_equal(found.learner.weights["a.lora_A"], state(3).weights["a.lora_A"])
    np.testing.assert_array_equal(found.learner.optimizer["a.exp_avg"], state(3).optimizer["a.exp_avg"])


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path, damage):
    checkpoints = runs.Checkpoints(tmp_path, keep=2)
    checkpoints.save(1, state(1), {})
    checkpoints.save(2, state(2), {})
    file = tmp_path / "step-000002" / "optimizer.safetensors"
    content = bytearray(file.read_bytes())
    if damage == "remove":
        file.unlink()
    else:
        content[-1] ^= 1
        file.write_bytes(content if damage == "flip" else content[:-4])
    assert checkpoints.latest().step == 1
    assert "step-000002" in checkpoints.skipped[0]


def test_a_full_disk_is_one_line_and_leaves_earlier_checkpoints(tmp_path, monkeypatch):
    checkpoints = runs.Checkpoints(tmp_path, keep=2)
    checkpoints.save(1, state(1), {})

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(runs, "write_text_atomic", full)
    with pytest.raises(UserError, match="no space left to write checkpoint 2"):
        checkpoints.save(2, state(2), {})
    assert [p.name for p in tmp_path.iterdir()] == ["step-000001"]
    assert checkpoints.latest().step == 1


def test_a_run_directory_is_neither_overwritten_nor_shared_nor_changed(tmp_path):
    directory = tmp_path / "run"
    with pytest.raises(UserError, match="nothing to resume"):
        runs.RunDirectory(directory, run_config(), resume=True)
    first = runs.RunDirectory(directory, run_config(), resume=False)
    with pytest.raises(UserError, match="another process"):
        runs.RunDirectory(directory, run_config(), resume=True)
    first.close()
    with pytest.raises(UserError, match="holds a run already; add --resume"):
        runs.RunDirectory(directory, run_config(), resume=False)
    with pytest.raises(UserError, match=r"learner.learning_rate: 0.0003 -> 0.1 changed"):
        runs.RunDirectory(directory, run_config(learner={"learning_rate": 0.1}), resume=True)
    runs.RunDirectory(directory, run_config(steps=500), resume=True).close()
    assert RunConfig.load(directory / "config.yaml").steps == 500
