"""`omr-ray serve` as a process of its own."""

import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def served(place, config="config.yaml", *options):
    """Started in the directory `place`, which holds the config, and is its home: Ray keeps its token there."""
    environment = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "PYTHONDONTWRITEBYTECODE")}
    # As in tests/ray/conftest.py: Ray's agents start slowly on a busy machine.
    environment |= {"HOME": str(place), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "RAY_agent_register_timeout_ms": "300000"}
    environment |= {"RAY_raylet_start_wait_time_s": "300", "RAY_worker_niceness": "0"}
    return subprocess.Popen(
        [sys.executable, "-m", "omr_ray.cli", "serve", config, *options],
        cwd=place,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests in the background of a shell ignore it
    )
