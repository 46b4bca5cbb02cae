"""Sweeps as processes: trials side by side in room for two, one that always fails, and a driver that is killed."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from omr_ray.trials import Trials
from tests.command import finish, started

# Two CPUs a trial, so that a local Ray for two of them has four: a group inside of a trial's own would find no room.
SMALL = [
    "steps=4",
    "dialogues_per_step=2",
    "dialogues.rounds=2",
    "sampler.siblings=2",
    "sampler.steps=4",
    "sampler.window=[1,4]",
    "checkpoint.every=1",
    "evaluation={dialogues: 2, siblings: 1, max_rounds: 2, contact_sheet: 1}",
    "tracking.tensorboard=false",
    "learner.ranks=1",
    "workers.rollout={count: 1, num_cpus: 0.75}",
    "workers.reward={count: 1, num_cpus: 0.75}",
    "workers.learner={num_cpus: 0.5}",
]
ABSENT = "rewards.terms=[{name: absent, weight: 1, scorer: {type: function, path: 'tests.user_reward:absent'}}]"


def start(config: dict, directory: Path, *more: str) -> subprocess.Popen:
    common = {"run": "configs/atelier.yaml", "overrides": SMALL, "intermediate": {"every": 2, "dialogues": 1}}
    (directory / "sweep.yaml").write_text(yaml.safe_dump(common | config, sort_keys=False))
    return started("sweep", str(directory / "sweep.yaml"), "--json", "--out", str(directory / "out"), *more)


@pytest.mark.timeout(1500)
def test_two_trials_fit_side_by_side_and_one_that_always_fails_stops_nobody(tmp_path):
    variants = {"plain": [], "no consistency": ["rewards.schedule.beta=0"], "broken": [ABSENT]}
    search = {"type": "variants", "variants": variants}
    result = finish(
        start({"name": "s", "search": search, "objectives": ["preference", "diversity"], "concurrency": 2, "retries": 1}, tmp_path)
    )
    assert result["trials"] == {"finished": 2, "failed": 1}
    rows = pq.read_table(result["results"]).to_pylist()
    assert [row["variant"] for row in rows] == ["plain", "no consistency", "broken"]
    assert "tests.user_reward has no function absent" in rows[2]["error"]
    out = tmp_path / "out/trials"
    began, ended = ((out / f"000{number}" / file).stat().st_mtime for number, file in ((2, "run-1/.lock"), (1, "outcome.json")))
    assert began < ended  # side by side
    for row in rows[:2]:
        low, value, high = (row[f"objective/preference{end}"] for end in ("_low", "", "_high"))
        assert low <= value <= high and row["step"] == 4 and row["seconds"] > 0
        assert Path(row["run"], "report.html").exists()
        look = json.loads(Path(row["run"], "evaluation/step-000002.json").read_text())
        assert len(look["held_out"]["dialogues"]) == 1 and look["intent"] is None
    assert "difference to plain" in Path(result["report"]).read_text()


@pytest.mark.timeout(1800)
def test_a_killed_driver_loses_no_finished_trial_and_the_other_goes_on(tmp_path):
    space = {"rewards.schedule.alpha": {"type": "uniform", "low": 0.0, "high": 1.0}}
    config = {"name": "s", "space": space, "search": {"type": "optuna", "trials": 2, "startup": 1}, "concurrency": 1}
    process = start(config, tmp_path)
    first, second = (tmp_path / f"out/trials/000{number}" for number in (1, 2))
    deadline = time.monotonic() + 1200
    while not (second / "run-1/checkpoints/step-000002").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    done = {file: file.stat().st_mtime_ns for file in (first / "outcome.json", first / "run-1/metrics.jsonl", first / "run-1/report.html")}
    assert not (second / "outcome.json").exists()
    points = [trial.parameters for trial in Trials(tmp_path / "out").known()]
    before = (second / "run-1/metrics.jsonl").read_text().splitlines()
    result = finish(start(config, tmp_path, "--resume"))
    assert result["trials"] == {"finished": 2}
    assert {file: file.stat().st_mtime_ns for file in done} == done
    assert [trial.parameters for trial in Trials(tmp_path / "out").known()] == points
    after = (second / "run-1/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in after] == [1, 2, 3, 4]
    assert after[:2] == before[:2]
    assert sorted(int(json.loads(line)["step"]) for line in (second / "run-1/timings.jsonl").read_text().splitlines()) == [1, 2, 3, 4]
