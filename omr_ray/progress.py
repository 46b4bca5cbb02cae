"""The progress bar of a run: step, phase, reward, time left. On a terminal it is redrawn; in a log it is a line a step."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class ProgressBar:
    """Steps `start` .. `total` on standard error. Use as a context manager."""

    def __init__(self, start: int, total: int) -> None:
        self._console = Console(stderr=True)
        columns = ("step", MofNCompleteColumn(), BarColumn(), TextColumn("{task.description:10}"), TextColumn("{task.fields[figures]}"))
        self._bar = Progress(
            *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=self._console, disable=not self._console.is_terminal
        )
        self._task = self._bar.add_task("start", total=total, completed=start, figures="")
        self._start, self._done, self._total = start, start, total
        self._began: float | None = None  # of the first step: the evaluation before it says nothing about the time left

    def __enter__(self) -> ProgressBar:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()

    def phase(self, name: str) -> None:
        if self._began is None and name != "evaluate":
            self._began = time.monotonic()
        self._bar.update(self._task, description=name)

    def advance(self, metrics: Mapping[str, float]) -> None:
        self._done += 1
        total, preference = (metrics.get(name, float("nan")) for name in ("reward/total", "reward/mutual_information"))
        figures = f"total {total:+.3f}  preference {preference:+.4f}"
        self._bar.update(self._task, advance=1, figures=figures)
        if not self._console.is_terminal and self._began is not None:
            left = (time.monotonic() - self._began) / (self._done - self._start) * (self._total - self._done)
            self._console.print(f"step {self._done}/{self._total}  {figures}  {left:.0f} s left", highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        self._console.print(text, highlight=False, soft_wrap=True)


class Counting:
    """How many of `total` things are done, on standard error; in a log a line every few seconds. Use as a context manager."""

    LOG_EVERY_S = 5.0

    def __init__(self, total: int, things: str) -> None:
        self._console, self._total, self._things = Console(stderr=True), total, things
        columns = (
            things,
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=self._console, disable=not self._console.is_terminal)
        self._task = self._bar.add_task("", total=total, figures="")
        self._done, self._said = 0, time.monotonic()

    def __enter__(self) -> Counting:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()

    def advance(self, figures: str) -> None:
        self._done += 1
        self._bar.update(self._task, advance=1, figures=figures)
        if not self._console.is_terminal and (time.monotonic() - self._said > self.LOG_EVERY_S or self._done == self._total):
            self._said = time.monotonic()
            self._console.print(f"{self._things} {self._done}/{self._total}  {figures}", highlight=False, soft_wrap=True)


@contextmanager
def following(metrics: Path) -> Iterator[None]:
    """Show the last line of a run's metrics while others write it: its "progress" (0 to 1), loss and time left."""
    console, stop = Console(stderr=True), threading.Event()
    columns = (BarColumn(), TextColumn("{task.percentage:.0f}%"), TextColumn("{task.fields[figures]}"), TimeRemainingColumn())

    def follow(bar: Progress) -> None:
        task, said = bar.add_task("", total=1.0, figures="starting the workers"), time.monotonic()
        while not stop.wait(1.0):
            line = _last_line(metrics)
            if line is None:
                continue
            figures = f"update {line['step']}  loss {line.get('loss', float('nan')):.4f}"
            bar.update(task, completed=line["progress"], figures=figures)
            if not console.is_terminal and time.monotonic() - said > Counting.LOG_EVERY_S:
                said = time.monotonic()
                console.print(f"{100 * line['progress']:.0f}%  {figures}", highlight=False, soft_wrap=True)

    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        thread = threading.Thread(target=follow, args=(bar,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def _last_line(file: Path) -> dict | None:
    """The last whole line of a JSONL file; None while there is none."""
    if not file.exists():
        return None
    with file.open("rb") as stream:
        stream.seek(max(0, file.stat().st_size - 4096))
        lines = stream.read().split(b"\n")[:-1]
    return json.loads(lines[-1]) if lines else None
