"""One local Ray for every test that needs one."""

import pytest
import ray


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
    patch.setenv("RAY_raylet_start_wait_time_s", "300")  # a busy machine starts Ray slowly, and
    patch.setenv("RAY_worker_niceness", "0")  # starves workers that are nicer than the rest
    ray.init(num_cpus=6, object_store_memory=150 * 2**20, log_to_driver=False, include_dashboard=False)
    yield
    ray.shutdown()
    patch.undo()
