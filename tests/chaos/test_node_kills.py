"""Machines that die, join and leave: real nodes of a real cluster (`kill_nodes`), killed as if their power was cut."""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.chaos.machines import environment

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session", autouse=True)
def local_ray():
    """Not for these tests: they start their own."""


def played(script: str, *words: str, limit: float) -> dict:
    """What the scenario printed last."""
    command = [sys.executable, "-m", f"tests.chaos.{script}", *words]
    with tempfile.TemporaryDirectory(prefix="omr", ignore_cleanup_errors=True) as place:
        process = subprocess.run(command, cwd=ROOT, env=environment(place), capture_output=True, text=True, timeout=limit)
    assert process.returncode == 0, process.stderr[-8000:]
    return json.loads(process.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_workers_and_ranks_follow_the_nodes():
    """A node dies in mid-call, another joins, one gives notice; then one dies under a learner of two ranks, another joins."""
    found = played("kill_toys", limit=2300)
    killed, alone, whole, drained, after = found["figures"]
    assert found["values"] == [[0, 1, 2, 3]] * 5
    assert killed["retries"] == 1 and (alone["up"], alone["pending"]) == (1, 1)  # no room for the second one
    assert (whole["up"], whole["pending"], whole["replacements"]) == (2, 0, 0)
    assert drained["retries"] == 0 and drained["replacements"] == 1  # who has notice finishes its call
    assert after["draining"] == 0 and found["left"]
    assert found["ranks"] == [2, 1, 2]


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_a_pool_shrinks_and_grows_with_the_cluster_and_its_samples_stay_the_same(tmp_path):
    """A node dies in mid-rollout, another joins, one gives notice: six rounds of samples."""
    found = played("kill_nodes", "pool", str(tmp_path), limit=2300)
    assert found["same"] == [True] * 6
    assert found["retries"][0] >= 1 and found["retries"][3:] == [0, 0, 0]  # who has notice finishes its call
    assert found["pending"][:3] == [1, 1, 0]  # no room for the second worker, then there is
    assert sum(found["replacements"][3:]) == 1 and found["left"]


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_a_learner_that_lost_a_machine_goes_on_with_one_rank_and_is_whole_at_its_next_restart(tmp_path):
    found = played("kill_nodes", "learner", str(tmp_path), limit=2300)
    assert found["ranks"] == [2, 1, 2]
    assert found["difference"] <= 1e-6


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_run_whose_nodes_are_killed_twenty_times_ends_as_if_nothing_had_happened(tmp_path):
    found = played("kill_nodes", "run", str(tmp_path), limit=7000)
    print("\nkilled in    kills  recovery s (median, most)")
    for phase, seconds in found["recovery_s"].items():
        print(f"{phase:<12} {len(seconds):5}  {statistics.median(seconds):6.1f} {max(seconds):6.1f}")
    print(f"usual step {found['usual_step_s']:.1f} s; last step {found['last']}")
    assert len(found["killed"]) == 20 and all(len(seconds) == 5 for seconds in found["recovery_s"].values())
    assert found["steps"] == list(range(1, 42))  # every step once
    assert found["same_samples"] and all(sizes == [1, 8, 8] for sizes in found["samples"])  # none lost, none doubled
    assert found["same_metrics"]
