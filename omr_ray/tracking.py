"""Metrics that know their own reduction, and where they are written.

A run directory holds three JSONL files; the first two have one object a step:

    metrics.jsonl   what the seed determines: two runs with one seed write the same bytes
    timings.jsonl   what the machine determines: seconds, rates, memory, retries
    spans.jsonl     who did what from when to when, one object a span: `omr-ray trace` draws it

TensorBoard is written beside them by default; Weights & Biases and MLflow only where the config names them.
"""

from __future__ import annotations

import importlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from omr_ray.types import UserError

METRICS, TIMINGS, SPANS = "metrics.jsonl", "timings.jsonl", "spans.jsonl"


class Metric(Protocol):
    """A running reduction of numbers. Non-finite numbers are left out: they would hide every finite one."""

    def add(self, value: float) -> None: ...

    def value(self) -> float | None: ...


@dataclass(slots=True)
class Mean:
    """Arithmetic mean of what was added; None before anything was.

    Example: Mean.of([1.0, 3.0]).value() == 2.0
    """

    total: float = 0.0
    count: int = 0

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Mean:
        """The mean of an iterable; None and non-finite entries are left out."""
        metric = cls()
        for value in values:
            if value is not None:
                metric.add(value)
        return metric

    def add(self, value: float) -> None:
        if math.isfinite(value):
            self.total += float(value)
            self.count += 1

    def value(self) -> float | None:
        return self.total / self.count if self.count else None


@dataclass(slots=True)
class Sum:
    """Sum of what was added; 0 before anything was."""

    total: float = 0.0

    def add(self, value: float) -> None:
        if math.isfinite(value):
            self.total += float(value)

    def value(self) -> float | None:
        return self.total


@dataclass(slots=True)
class Max:
    """Largest of what was added; None before anything was."""

    largest: float | None = None

    def add(self, value: float) -> None:
        if math.isfinite(value):
            self.largest = float(value) if self.largest is None else max(self.largest, float(value))

    def value(self) -> float | None:
        return self.largest


@dataclass(slots=True)
class Last:
    """What was added last; None before anything was."""

    latest: float | None = None

    def add(self, value: float) -> None:
        self.latest = float(value) if math.isfinite(value) else None

    def value(self) -> float | None:
        return self.latest


def reduced(metrics: Mapping[str, Metric | float | None]) -> dict[str, float | None]:
    """Every metric as one number under its name, names sorted; what is missing or not finite is None."""
    values = {}
    for name in sorted(metrics):
        metric = metrics[name]
        value = metric if metric is None or isinstance(metric, (int, float)) else metric.value()
        values[name] = None if value is None or not math.isfinite(value) else float(value)
    return values


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """What one track ("controller", "rollout 0") did for `seconds` from `begin` on, unix seconds of the controller's clock.

    Example: Span(track="rollout 0", name="sample", begin=1750000000.0, seconds=1.5)
    """

    track: str
    name: str
    begin: float
    seconds: float


class Sink(Protocol):
    """Another place for what a step measured: `values` are finite numbers by name."""

    def write(self, step: int, values: Mapping[str, float]) -> None: ...


@dataclass(slots=True)
class Tracker:
    """Writes one step at a time to every configured place, and to every one of `sinks`. `directory` is the run's own.

    Raises UserError where wandb or mlflow is configured and not installed, and where the disk takes no more.
    """

    directory: Path
    tensorboard: bool = True
    wandb: str | None = None
    mlflow: str | None = None
    sinks: Sequence[Sink] = ()
    _purge_step: int | None = field(default=None, init=False)
    _writer: Any = field(default=None, init=False)
    _wandb_run: Any = field(default=None, init=False)
    _mlflow: Any = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.directory = Path(self.directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        if self.wandb is not None:
            package = _imported("wandb", "tracking.wandb")
            self._wandb_run = package.init(project=self.wandb, name=self.directory.name, dir=str(self.directory), resume="allow")
        if self.mlflow is not None:
            self._mlflow = _imported("mlflow", "tracking.mlflow")
            self._mlflow.set_tracking_uri(self.mlflow)
            self._mlflow.start_run(run_name=self.directory.name)

    def log(self, step: int, metrics: Mapping[str, Metric | float | None]) -> None:
        """Write what the seed determines about `step`."""
        self._write(METRICS, step, reduced(metrics))

    def time(self, step: int, timings: Mapping[str, Metric | float | None]) -> None:
        """Write what the machine determines about `step`: seconds, rates, memory, retries."""
        self._write(TIMINGS, step, reduced(timings))

    def spans(self, step: int, spans: Iterable[Span]) -> None:
        """Write who did what during `step`."""
        _append(self.directory / SPANS, *({"step": step, **asdict(span)} for span in spans))

    def _write(self, name: str, step: int, values: Mapping[str, float | None]) -> None:
        _append(self.directory / name, {"step": step, **values})
        present = {key: value for key, value in values.items() if value is not None}
        if self.tensorboard:
            self._write_tensorboard(step, present)
        if self._wandb_run is not None:
            self._wandb_run.log(present, step=step)
        if self._mlflow is not None:
            self._mlflow.log_metrics(present, step=step)
        for sink in self.sinks:
            sink.write(step, present)

    def truncate_after(self, step: int) -> None:
        """Forget every step after `step`, and a last line that was cut short: what a resumed run does first."""
        for name in (METRICS, TIMINGS, SPANS):
            path = self.directory / name
            if path.exists():
                kept = [line for line in read_metrics(path) if line["step"] <= step]
                _replace(path, "".join(_line(values) for values in kept))
        self._purge_step = step + 1
        self._close_tensorboard()

    def close(self) -> None:
        """Flush and end every sink."""
        self._close_tensorboard()
        if self._wandb_run is not None:
            self._wandb_run.finish()
        if self._mlflow is not None:
            self._mlflow.end_run()

    def _write_tensorboard(self, step: int, values: Mapping[str, float]) -> None:
        if self._writer is None:
            # Only now: importing it takes seconds, and `truncate_after` may still set where to cut.
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.directory / "tensorboard"), purge_step=self._purge_step)
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def _close_tensorboard(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a JSONL file in order; a last line that was cut short by a crash is left out.

    Raises UserError for a file that is not there, and for a broken line before the last.
    """
    path = Path(path)
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        raise UserError(f"{path}: no such metrics file; give the directory of a run that has logged a step") from None
    steps: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        try:
            steps.append(json.loads(line))
        except json.JSONDecodeError:
            if number == len(lines):
                break
            raise UserError(f"{path}: line {number} is not JSON; restore the file or remove that line") from None
    return steps


def _line(values: Mapping[str, Any]) -> str:
    return json.dumps(values, sort_keys=True, allow_nan=False) + "\n"


def _append(path: Path, *lines: Mapping[str, Any]) -> None:
    try:
        with path.open("a") as file:
            file.write("".join(_line(values) for values in lines))
    except OSError as error:
        raise UserError(f"{path}: cannot write metrics: {error.strerror}; free space or change the run directory, then resume") from None


def _replace(path: Path, text: str) -> None:
    temporary = path.with_suffix(".tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _imported(package: str, key: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError:
        raise UserError(
            f"{key} is set, and the package {package!r} is not installed; pip install {package}, or set {key} to null"
        ) from None
