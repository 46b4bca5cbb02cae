"""`omr-ray` as a process of its own, which a test may kill with all that it started."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def started(*words: str) -> subprocess.Popen:
    """Not on a cluster that the tests themselves are connected to."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_ADDRESS")}
    return subprocess.Popen(
        [sys.executable, "-m", "omr_ray.cli", *words],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen, limit_s: float = 1200) -> dict:
    """The JSON object that is its last line."""
    out, err = process.communicate(timeout=limit_s)
    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1])
