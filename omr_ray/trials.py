"""The directory of a sweep: what each trial is, how it ended, and the training runs below it. The sweep's only memory.

    OUT/  sweep.yaml  run.yaml  base/<key>/before.json  trials/0001/  results.parquet  report.html
    OUT/trials/0001/  trial.json  outcome.json (once it has ended)  error.json (of its last fault)  run-1/  run-2/ ...

A trial trains in `run-1`, an ordinary run directory. Under population-based training, one that takes over another's
weights goes on in the next one. Everything is JSON, written whole or not at all: a sweep whose driver was killed is
continued from here, and nothing that Ray Tune keeps is read again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from omr_ray.config.reading import dump, with_overrides
from omr_ray.config.run import RunConfig
from omr_ray.config.sweep import SweepConfig, as_overrides
from omr_ray.evaluation.results import Evaluation, load, step_phase
from omr_ray.runs import lock, refuse_changes, write_text_atomic
from omr_ray.tracking import TIMINGS, read_metrics
from omr_ray.types import UserError
from omr_ray.weights import write_atomic

Status = Literal["finished", "stopped", "failed"]
# What may change when a sweep goes on: everything else would make one table of two experiments.
CHANGEABLE = {"concurrency", "retries"}


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One point of a sweep. Example: Trial(number=3, parameters={"rewards.schedule.alpha": 0.2})"""

    number: int  # from 1
    parameters: Mapping[str, Any]  # dotted keys, values of the config
    name: str | None = None  # of a variant
    overrides: Sequence[str] = ()  # of a variant
    generation: int = 1  # the run directory that it is in
    history: Sequence[Mapping[str, Any]] = ()  # what it was before, under population-based training: step and parameters

    def config(self, base: RunConfig, sweep: str) -> RunConfig:
        """The config of its run."""
        return with_overrides(base, [*self.overrides, *as_overrides(self.parameters), f"name={sweep}-{self.number:04d}"])


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a trial ended. Example: Outcome(status="stopped", step=20)"""

    status: Status
    step: int  # the last one that was evaluated
    error: str | None = None


class Trials:
    """The trials of the sweep at `path`. Used by the driver and, on other machines, by the trials themselves."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def known(self) -> list[Trial]:
        """All that were ever begun or planned, by number."""
        return [self.trial(int(file.parent.name)) for file in sorted(self.path.glob("trials/*/trial.json"))]

    def trial(self, number: int) -> Trial:
        return Trial(**json.loads((self.directory(number) / "trial.json").read_text()))

    def outcome(self, number: int) -> Outcome | None:
        """None while it has not ended."""
        file = self.directory(number) / "outcome.json"
        return Outcome(**json.loads(file.read_text())) if file.exists() else None

    def error(self, number: int) -> str | None:
        """What it said when it last failed; None where its process had no time to."""
        file = self.directory(number) / "error.json"
        return json.loads(file.read_text())["error"] if file.exists() else None

    def directory(self, number: int) -> Path:
        return self.path / "trials" / f"{number:04d}"

    def run(self, trial: Trial) -> Path:
        return self.directory(trial.number) / f"run-{trial.generation}"

    def add(self, trial: Trial) -> None:
        self.directory(trial.number).mkdir(parents=True, exist_ok=True)
        write_text_atomic(self.directory(trial.number) / "trial.json", json.dumps(asdict(trial), indent=1))

    def end(self, number: int, outcome: Outcome) -> None:
        write_text_atomic(self.directory(number) / "outcome.json", json.dumps(asdict(outcome), indent=1))

    def say_error(self, number: int, error: str) -> None:
        write_text_atomic(self.directory(number) / "error.json", json.dumps({"error": error}))

    def holds(self, number: int) -> bool:
        return (self.directory(number) / "trial.json").exists()

    def evaluation(self, trial: Trial, outcome: Outcome) -> Evaluation | None:
        """What was last measured of an ended trial: in the end, or when it was stopped. None if it never came to that."""
        directory = self.run(trial) / "evaluation"
        phase = "after" if outcome.status == "finished" else step_phase(outcome.step)
        return load(directory, phase) if (directory / f"{phase}.json").exists() else None

    def seconds(self, trial: Trial) -> float:
        """Of all its training steps that count, evaluations left out."""
        files = self.directory(trial.number).glob(f"run-*/{TIMINGS}")
        return sum(line.get("seconds/step") or 0.0 for file in files for line in read_metrics(file))

    def reopen_failed(self) -> None:
        """Failed trials have not ended: they are tried again."""
        for trial in self.known():
            outcome = self.outcome(trial.number)
            if outcome is not None and outcome.status == "failed":
                (self.directory(trial.number) / "outcome.json").unlink()

    def forked(self, trial: Trial, parameters: Mapping[str, Any], config: RunConfig, checkpoint: Path) -> Trial:
        """`trial` with other parameters and another's weights: a run directory of its own that goes on from `checkpoint`.

        checkpoint: a directory as `runs.Checkpoints` writes it. The run's metrics begin there.
        """
        step = json.loads((checkpoint / "state.json").read_text())["step"]
        history = [*trial.history, {"step": step, "parameters": dict(trial.parameters)}]
        new = replace(trial, parameters=dict(parameters), generation=trial.generation + 1, history=history)
        run = self.run(new)
        shutil.rmtree(run, ignore_errors=True)  # of an attempt that was cut off before `add` below
        shutil.copytree(checkpoint, run / "checkpoints" / f"step-{step:06d}")
        write_text_atomic(run / "config.yaml", dump(config))
        self.add(new)
        return new

    # -- the untrained policy, evaluated once for all trials that share it ----------------------------------------------

    def lend_base(self, config: RunConfig, run: Path) -> None:
        """Give a run the base's evaluation, where another trial has made it."""
        kept, wanted = self.base(config), run / "evaluation"
        if (kept / "before.json").exists() and not (wanted / "before.json").exists():
            _copy_evaluation(kept, wanted)

    def keep_base(self, config: RunConfig, run: Path) -> None:
        """Keep a run's evaluation of the base for the other trials."""
        if not (self.base(config) / "before.json").exists():
            _copy_evaluation(run / "evaluation", self.base(config))

    def base(self, config: RunConfig) -> Path:
        """Where the evaluation of a config's untrained policy is kept; its name says all that it depends on."""
        trained_steps = {"window", "train_steps_per_round", "shared_window"}
        parts = [config.model, config.dialogues, config.evaluation, config.rewards.preference]
        values = [
            config.lora.start,
            config.sampler.model_dump(mode="json", exclude=trained_steps),
            *(p.model_dump(mode="json") for p in parts),
        ]
        return self.path / "base" / hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def opened(path: Path, config: SweepConfig, base: RunConfig, *, resume: bool) -> tuple[Trials, Any]:
    """The directory of a new or a resumed sweep, and the lock on it. Raises UserError where that would lose or mix results."""
    file, base_file = path / "sweep.yaml", path / "run.yaml"
    if resume and not file.exists():
        raise UserError(f"{path}: nothing to resume, there is no sweep.yaml; leave --resume out to start a sweep there")
    if not resume and file.exists():
        raise UserError(f"{path}: holds a sweep already; add --resume to continue it, or choose another --out")
    path.mkdir(parents=True, exist_ok=True)
    held = lock(path / ".lock")
    if resume:
        refuse_changes(SweepConfig.load(file), config, file, changeable=CHANGEABLE)
        refuse_changes(RunConfig.load(base_file), base, base_file)
    write_text_atomic(base_file, dump(base))
    write_text_atomic(file, dump(config))
    return Trials(path), held


def _copy_evaluation(source: Path, target: Path) -> None:
    """before.json and its pictures; the file last, because it says that they are there."""
    target.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source / "before", target / "before", dirs_exist_ok=True)
    write_atomic(target / "before.json", (source / "before.json").read_bytes())
