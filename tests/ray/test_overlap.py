"""The overlapped loop as a process with real actors: without staleness it is the synchronous run, and it goes on after a SIGKILL."""

import json
import os
import signal
import time

import pytest

from omr_ray.evaluation.trace import write_trace
from tests.ray.test_train import finish, start

pytestmark = pytest.mark.timeout(1800)


def test_without_staleness_a_run_logs_the_bits_of_the_synchronous_one(tmp_path):
    finish(start(tmp_path / "plain"))
    finish(start(tmp_path / "overlapped", "overlap.max_staleness=0"))
    for file in ("metrics.jsonl", "adapter/adapter_model.safetensors"):
        assert (tmp_path / "plain" / file).read_bytes() == (tmp_path / "overlapped" / file).read_bytes()


@pytest.mark.slow
def test_a_run_with_stale_samples_that_was_killed_and_resumed_logs_the_same_bits(tmp_path):
    finish(start(tmp_path / "whole", "overlap.max_staleness=1"))
    lines = [json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()]
    assert [line["rollout/oldest_version"] for line in lines] == [0, 0, 1, 2]
    assert lines[0]["learner/first_ratio_deviation"] <= 1e-6  # its weights are those that sampled
    assert all(1e-6 < line["learner/first_ratio_deviation"] < 1 for line in lines[1:])  # the ratio covers the lag
    assert [file.name for file in (tmp_path / "whole/checkpoints/step-000004").glob("version-*")] == ["version-000003.safetensors"]
    trace = write_trace(tmp_path / "whole", tmp_path / "trace.json")
    assert trace["tracks"][:3] == ["controller", "sampling", "scoring"]
    spans = [json.loads(line) for line in (tmp_path / "whole/spans.jsonl").read_text().splitlines()]
    learner = next(s for s in spans if s["track"] == "controller" and (s["name"], s["step"]) == ("learner", 1))
    samples = [s for s in spans if s["track"].startswith("rollout ") and (s["name"], s["step"]) == ("sample", 2)]
    assert samples and min(s["begin"] for s in samples) < learner["begin"] + learner["seconds"]

    out = tmp_path / "run"
    process = start(out, "overlap.max_staleness=1")
    deadline = time.monotonic() + 600
    while not (out / "checkpoints/step-000002").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    finish(start(out, "--resume", "overlap.max_staleness=1"))
    for file in ("metrics.jsonl", "adapter/adapter_model.safetensors"):
        assert (tmp_path / "whole" / file).read_bytes() == (out / file).read_bytes()
