"""The main job as a process: it ends with a report, repeats bit for bit, and goes on after a SIGKILL."""

import json
import math
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from omr_ray.diffusion.adapters import load_adapter
from omr_ray.evaluation.trace import write_trace
from omr_ray.workers.metrics import METRICS, sample
from tests.command import finish, started

SMALL = [
    "steps=4",
    "dialogues_per_step=2",
    "dialogues.rounds=2",
    "sampler.siblings=2",
    "sampler.steps=4",
    "sampler.window=[1,4]",
    "checkpoint.every=1",
    "evaluation.dialogues=2",
    "evaluation.siblings=1",
    "evaluation.max_rounds=2",
    "evaluation.contact_sheet=1",
    "noise_loss.weight=1",
    "noise_loss.pairs_per_step=2",
]


def start(out: Path, *more: str) -> subprocess.Popen:
    return started("train", "configs/atelier.yaml", "--json", "--out", str(out), *SMALL, *more)


REDNESS = "{name: redness, weight: 0.5, scorer: {type: function, path: 'tests.user_reward:redness'}}"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole") / "run"
    return out, finish(start(out))


@pytest.mark.timeout(900)
def test_a_run_leaves_everything_a_person_needs(whole):
    out, result = whole
    page = Path(result["report"]).read_text()
    assert page.startswith("<!doctype html>") and "http://" not in page.replace("http://www.w3.org", "")
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert lines[0]["learner/first_ratio_deviation"] <= 1e-6
    assert lines[0]["rollout/samples"] == 8 and lines[0]["reward/missing"] == 0
    assert {"reward/diversity/round_1", "reward/consistency/round_2", "reward/mutual_information/round_2"} <= lines[0].keys()
    assert set(result["comparison"]["last_round_gain"]) == {"value", "low", "high"}
    assert load_adapter(out / "adapter").rank == 4
    assert any((out / "tensorboard").iterdir())
    timings = [json.loads(line) for line in (out / "timings.jsonl").read_text().splitlines()]
    emitted = {found.name for line in lines + timings for key in line if (found := sample(key, 0.0, "run"))}
    assert emitted == set(METRICS)  # every metric of Prometheus has a source in a real run
    trace = write_trace(out, out / "trace.json")
    assert trace["tracks"] == ["controller", "learner 0", "learner 1", "reward 0", "rollout 0", "rollout 1"]
    assert trace["steps"] == 4
    assert sorted(p.name for p in (out / "checkpoints").iterdir()) == ["step-000003", "step-000004"]


@pytest.mark.timeout(900)
def test_a_run_that_was_killed_and_resumed_logs_the_same_bits(whole, tmp_path):
    """Also shows that two runs of one seed agree: the steps before the kill are those of another process."""
    out = tmp_path / "run"
    process = start(out)
    deadline = time.monotonic() + 300
    while not (out / "checkpoints/step-000002").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)  # the driver; Ray's own processes notice and end
    process.communicate(timeout=60)
    assert not (out / "report.html").exists()
    finish(start(out, "--resume"))
    assert (out / "metrics.jsonl").read_bytes() == (whole[0] / "metrics.jsonl").read_bytes()
    assert (out / "adapter/adapter_model.safetensors").read_bytes() == (whole[0] / "adapter/adapter_model.safetensors").read_bytes()


@pytest.mark.timeout(900)
def test_a_users_reward_and_infonce_are_lines_of_a_run(tmp_path):
    out = tmp_path / "run"
    options = [f"rewards.terms=[{REDNESS}]", "rewards.mutual_information={type: infonce}", "steps=2", "noise_loss.weight=0"]
    page = Path(finish(start(out, *options))["report"]).read_text()
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["weight/redness/round_2"] for line in lines] == [0.5, 0.5]
    assert all(0 < line[f"reward/redness/round_{r}"] < 3 for line in lines for r in (1, 2))
    assert [line["reward/redness/missing"] for line in lines] == [0, 0] and [line["reward/missing"] for line in lines] == [0, 0]
    assert all(line["reward/mutual_information"] <= math.log(2) for line in lines)  # two dialogues compete
    assert page.count("redness") >= 3  # a plot, the legend of the schedule, the config
    state = json.loads((out / "checkpoints/step-000002/state.json").read_text())
    assert state["judge"]["redness"]["count"] == 2 * 2 * 2 * 2  # its statistics go on after a resume


@pytest.mark.timeout(900)
def test_a_function_that_is_not_there_ends_the_run_before_it_samples(tmp_path):
    process = start(tmp_path / "run", f"rewards.terms=[{REDNESS.replace('redness', 'absent')}]")
    _, err = process.communicate(timeout=400)
    assert process.returncode == 2
    assert "module tests.user_reward has no function absent" in err
    assert not (tmp_path / "run/evaluation/before.json").exists()
