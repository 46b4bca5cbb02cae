"""A Ray cluster of several nodes on this machine, for scripts that kill some of them. The head, where the driver is, stays."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Iterator
from typing import Any

import psutil
import ray
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2

LIMIT = 900.0
# A dead node is noticed in seconds. On a busy machine Ray's agents start slowly, and nicer workers starve; how long a node may
# take stays as it is, because one that failed is only found by that limit.
SETTINGS = {
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "10000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_agent_register_timeout_ms": "600000",
    "RAY_worker_register_timeout_seconds": "600",
    "RAY_worker_niceness": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "OMP_NUM_THREADS": "1",
}


def environment(place: str) -> dict[str, str]:
    """For the process that connects: Ray reads its token once, as it is imported.

    `place`, a directory with a short name (sockets have paths of at most 107 bytes), takes all that Ray writes; in the
    common one it would leave this cluster's address to whoever starts Ray next.
    """
    kept = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "PYTHONDONTWRITEBYTECODE")}
    return {**kept, **SETTINGS, "RAY_TMPDIR": place, "HOME": place, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


class Machines:
    """A head without CPUs, to which this process is connected, and nodes that come and go."""

    def __init__(self, cpus: float) -> None:
        self._cpus = cpus
        self._cluster = Cluster()
        self._start(num_cpus=0, include_dashboard=False)
        ray.init(address=self._cluster.address, log_to_driver=False)

    def add(self, **labels: str) -> Any:
        return self._start(num_cpus=self._cpus, labels=labels or None)

    def nodes(self) -> list[Any]:
        return list(self._cluster.worker_nodes)

    def kill(self, node: Any) -> None:
        """As if its power was cut: every process of it, at once."""
        self._cluster.worker_nodes.discard(node)
        _kill([psutil.Process(info.process.pid) for kind in node.all_processes.values() for info in kind])

    def drain(self, node: Any, seconds: float) -> None:
        """The notice of a spot machine."""
        reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        deadline = int((time.time() + seconds) * 1e3)
        accepted, why = ray._private.worker.global_worker.gcs_client.drain_node(node.node_id, reason, "spot", deadline)
        assert accepted, why

    def close(self) -> None:
        ray.shutdown()
        _kill(psutil.Process().children())

    def _start(self, **options: Any) -> Any:
        """Ray gives a node 30 s to start, which a busy machine may miss: then it is tried again."""
        deadline = time.monotonic() + LIMIT
        while True:
            before = {child.pid for child in psutil.Process().children()}
            try:
                return self._cluster.add_node(object_store_memory=100 * 2**20, **options)
            except Exception:
                _kill([child for child in psutil.Process().children() if child.pid not in before])
                if time.monotonic() > deadline:
                    raise


def _kill(roots: list[psutil.Process]) -> None:
    """These and all that they started."""
    processes = list(roots)
    for root in roots:
        with contextlib.suppress(psutil.NoSuchProcess):
            processes += root.children(recursive=True)
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=LIMIT)


@contextlib.contextmanager
def machines(cpus: float) -> Iterator[Machines]:
    found = Machines(cpus)
    try:
        yield found
    finally:
        found.close()
