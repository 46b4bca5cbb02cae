"""One local Ray for every test that needs one."""

import os
from pathlib import Path

import pytest
import ray

TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="session", autouse=True)
def local_ray(tmp_path_factory):
    """Six logical CPUs. The home directory is a temporary one: Ray keeps its token there, and the user's stays untouched."""
    if ray.is_initialized():
        yield
        return
    patch = pytest.MonkeyPatch()
    patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
    patch.setenv("OMP_NUM_THREADS", "1")
    patch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)  # workers without compiled modules start in twice the time
    patch.delenv("RAY_ADDRESS", raising=False)
    # Actors that a test file defines are imported by the workers from there.
    patch.setenv("PYTHONPATH", os.pathsep.join(str(path) for path in (TESTS.parent, TESTS / "ray", TESTS / "chaos")))
    # On a busy machine Ray's agents start slowly (its raylet gives up on them after 30 s), and nicer workers starve.
    patch.setenv("RAY_agent_register_timeout_ms", "300000")
    patch.setenv("RAY_raylet_start_wait_time_s", "300")
    patch.setenv("RAY_worker_niceness", "0")
    ray.init(num_cpus=6, object_store_memory=150 * 2**20, log_to_driver=False, include_dashboard=False)
    yield
    ray.shutdown()
    patch.undo()
