"""Calls, and the workers that do them, as a supervisor keeps track of them."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from math import inf
from typing import Any


class WorkersFailed(RuntimeError):
    """A call that no worker could do; says what was waited for, how long, and what happened last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """`method(*args)` of any worker. `what` names the work in messages: "step 3: dialogues 'a' to 'd'"."""

    method: str
    args: tuple
    what: str


@dataclass(slots=True, eq=False)
class Job:
    call: Call
    attempts: int = 0
    since: float = field(default_factory=time.monotonic)
    result: Any = None
    done: bool = False  # answered, or nobody waits for it any more


@dataclass(slots=True, eq=False)
class Worker:
    index: int
    handle: Any = None
    ref: Any = None  # what it is working on; None: it is free
    job: Job | None = None  # None with a ref: it is loading its models
    begin: float = 0.0  # unix seconds: when it was given what it is working on
    deadline: float = inf
    busy: float = 0.0  # seconds since the last metrics()
    placed: bool = False  # some machine has room for it: the limit of its start counts from there
    leaving: bool = False  # its machine goes, and another worker has its index: it only finishes its call
    failed_starts: int = 0
    lost: bool = False  # given up for this run
    last_fault: str = ""


def one_line(error: BaseException) -> str:
    """Type and last line: Ray's own errors carry a whole traceback, and end with what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    return f"{type(error).__name__}: {lines[-1][:300]}"
