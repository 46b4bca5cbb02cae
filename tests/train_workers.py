"""What the tests of both jobs under Ray Train do to a run: read its metrics, and kill one of its workers."""

import json
import os
import signal
import time
from pathlib import Path

import psutil


def lines(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def changed(settings: dict, changes: dict) -> dict:
    """`settings` with `changes`, which reach one level into what is a mapping."""
    return settings | {name: {**settings.get(name, {}), **value} if isinstance(value, dict) else value for name, value in changes.items()}


def kill_a_worker_after(directory: Path, step: int) -> None:
    """SIGKILL one training worker of this session as soon as checkpoint `step` is there."""
    deadline = time.monotonic() + 240
    while not list((directory / "checkpoints").glob(f"step-{step:06d}")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    for process in psutil.process_iter(["pid", "cmdline"]):
        if any("RayTrainWorker" in word for word in process.info["cmdline"] or ()):
            os.kill(process.pid, signal.SIGKILL)
            return
    raise AssertionError("no training worker found")
