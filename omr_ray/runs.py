"""The directory of one run: resolved config, metrics, checkpoints written whole or not at all, and what came out.

runs/NAME/  config.yaml  metrics.jsonl  timings.jsonl  tensorboard/  checkpoints/step-000010/  evaluation/  adapter/  report.html
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from omr_ray.config.finetune import FinetuneRun
from omr_ray.config.reading import Config, dump
from omr_ray.config.reward_model import RewardRun
from omr_ray.config.run import RunConfig
from omr_ray.types import LearnerState, Update, UserError
from omr_ray.weights import read_safetensors, write_safetensors_atomic

# What may change between a run and its resumption: everything else would make one curve of two experiments.
CHANGEABLE = {"steps", "workers", "checkpoint", "tracking", "cluster"}


RunKind = RunConfig | RewardRun | FinetuneRun


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    step: int
    learner: LearnerState
    judge: Mapping[str, Any]
    older: tuple[Update, ...] = ()  # before the learner's own, ascending; their metrics are not kept


class RunDirectory:
    """Opens (creating or resuming) and locks a run directory. Raises UserError where that would lose or mix results."""

    def __init__(self, path: Path, config: RunKind, *, resume: bool) -> None:
        self.path = path
        config_file = path / "config.yaml"
        if resume and not config_file.exists():
            raise UserError(f"{path}: nothing to resume, there is no config.yaml; leave --resume out to start a run there")
        if not resume and config_file.exists():
            raise UserError(f"{path}: holds a run already; add --resume to continue it, or choose another --out")
        path.mkdir(parents=True, exist_ok=True)
        self._lock = lock(path / ".lock")
        if resume:
            refuse_changes(type(config).load(config_file), config, config_file)
        write_text_atomic(config_file, dump(config))
        self.checkpoints = Checkpoints(path / "checkpoints", keep=config.checkpoint.keep)

    def close(self) -> None:
        self._lock.close()


class Checkpoints:
    """`keep` newest checkpoints of a run. A damaged one is passed over for the one before it."""

    def __init__(self, directory: Path, keep: int) -> None:
        self.directory = directory
        self.keep = keep
        self.skipped: list[str] = []

    def save(self, step: int, learner: LearnerState, judge: Mapping[str, Any], older: Sequence[Update] = ()) -> None:
        """Write under a temporary name, fsync, rename. A failure leaves earlier checkpoints as they were."""
        temporary = self.directory / f".step-{step:06d}.partial"
        final = self.directory / f"step-{step:06d}"
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            for name in ("weights", "ema", "optimizer"):
                write_safetensors_atomic(temporary / f"{name}.safetensors", getattr(learner, name), metadata={"step": str(step)})
            for update in older:
                write_safetensors_atomic(temporary / f"version-{update.policy_version:06d}.safetensors", update.weights)
            state = {"step": step, "policy_version": learner.policy_version, "judge": judge}
            write_text_atomic(temporary / "state.json", json.dumps(state, sort_keys=True))
            sums = {file.name: _sha256(file) for file in sorted(temporary.iterdir())}
            write_text_atomic(temporary / "checksums.json", json.dumps(sums, indent=1))
            shutil.rmtree(final, ignore_errors=True)
            os.rename(temporary, final)
            fsync_directory(self.directory)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise UserError(
                    f"{self.directory}: no space left to write checkpoint {step}; free some and continue with --resume"
                ) from None
            raise
        for old in self._complete()[: -self.keep]:
            shutil.rmtree(old)

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint whose checksums hold; None if there is none. Damaged ones are named in `skipped`."""
        for directory in reversed(self._complete()):
            try:
                return _read(directory)
            except (UserError, OSError, ValueError, KeyError) as error:
                self.skipped.append(f"{directory.name}: {error}")
        return None

    def _complete(self) -> list[Path]:
        return sorted(self.directory.glob("step-*")) if self.directory.exists() else []


def _read(directory: Path) -> Checkpoint:
    sums = json.loads((directory / "checksums.json").read_text())
    damaged = [name for name, value in sums.items() if _sha256(directory / name) != value]
    if damaged:
        raise UserError(f"{directory}: checksum of {', '.join(damaged)} does not hold; the file was changed or cut off")
    state = json.loads((directory / "state.json").read_text())
    tensors = {name: read_safetensors(directory / f"{name}.safetensors") for name in ("weights", "ema", "optimizer")}
    older = [
        Update(policy_version=int(file.stem.partition("-")[2]), weights=read_safetensors(file), metrics={})
        for file in sorted(directory.glob("version-*.safetensors"))
    ]
    return Checkpoint(
        step=state["step"],
        learner=LearnerState(policy_version=state["policy_version"], **tensors),
        judge=state["judge"],
        older=tuple(older),
    )


def write_text_atomic(file: Path, text: str) -> None:
    """Replace `file` by `text`, or leave it as it was."""
    temporary = file.with_name(f".{file.name}.partial")
    with temporary.open("w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, file)


def fsync_directory(directory: Path) -> None:
    """Make a rename in `directory` survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def lock(file: Path) -> IO[str]:
    """Held until the stream is closed, or its process ends. Raises UserError where another process holds it."""
    stream = file.open("w")
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        stream.close()
        raise UserError(f"{file.parent}: another process is running in this directory; wait for it, or choose another --out") from None
    return stream


def refuse_changes(before: Config, after: Config, file: Path, changeable: Collection[str] = CHANGEABLE) -> None:
    """Raise UserError where a config differs from that of `file` in more than `changeable` keys of the highest level."""
    old, new = (_flat(config.model_dump(mode="json")) for config in (before, after))
    changed = sorted(key for key in old.keys() | new.keys() if key.split(".")[0] not in changeable and old.get(key) != new.get(key))
    if changed:
        what = ", ".join(f"{key}: {old.get(key)} -> {new.get(key)}" for key in changed[:5])
        raise UserError(f"{file}: a resumed run keeps its config, but {what} changed; undo that, or start a new run with another --out")


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
