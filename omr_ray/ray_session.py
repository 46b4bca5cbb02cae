"""The Ray that a command runs on, and how it is left."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray


@contextmanager
def connected(num_cpus: int = 1) -> Iterator[None]:
    """The cluster of RAY_ADDRESS (as in a submitted job), else a local one with at least `num_cpus` logical CPUs.

    Inside a worker of Ray (a trial of a sweep) it is the one that the worker belongs to.
    """
    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if "RAY_ADDRESS" not in os.environ:
        options |= {"num_cpus": max(os.cpu_count() or 1, num_cpus), "include_dashboard": False}
    ray.init(**options)
    try:
        yield
    finally:
        ray.shutdown()
