"""Trains every embedded model from nothing: fixed seeds, a log of losses beside the weights, resumable.

Stages run in order and each leaves its part of the weights directory. A finished stage is skipped, one that needs
another is refused before it, and an unfinished one continues from its last checkpoint in the work directory (at most a minute is lost).
"""

import hashlib
import json
import platform
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import diffusers
import torch
import transformers

from omr_ray.atelier.stages.autoencoder import BUDGET as AUTOENCODER
from omr_ray.atelier.stages.autoencoder import train_autoencoder
from omr_ray.atelier.stages.clip import BUDGET as CLIP
from omr_ray.atelier.stages.clip import train_clip
from omr_ray.atelier.stages.controlnet import BUDGET as CONTROLNET
from omr_ray.atelier.stages.controlnet import train_controlnet
from omr_ray.atelier.stages.keypoints import BUDGET as KEYPOINTS
from omr_ray.atelier.stages.keypoints import train_keypoints
from omr_ray.atelier.stages.language_model import BUDGET as LANGUAGE_MODEL
from omr_ray.atelier.stages.language_model import train_language_model
from omr_ray.atelier.stages.loop import Budget
from omr_ray.atelier.stages.oracle import BUDGET as ORACLE
from omr_ray.atelier.stages.oracle import train_oracle
from omr_ray.atelier.stages.policy import BUDGET as POLICY
from omr_ray.atelier.stages.policy import train_policy
from omr_ray.atelier.stages.reward_model import BUDGET as REWARD_MODEL
from omr_ray.atelier.stages.reward_model import train_reward_model
from omr_ray.types import UserError
from omr_ray.weights import CHECKSUMS, write_atomic

Stage = Callable[..., dict[str, float]]
STAGES: dict[str, tuple[Stage, Budget]] = {
    "autoencoder": (train_autoencoder, AUTOENCODER),
    "oracle": (train_oracle, ORACLE),
    "policy": (train_policy, POLICY),
    "reward_model": (train_reward_model, REWARD_MODEL),
    "clip": (train_clip, CLIP),
    "keypoints": (train_keypoints, KEYPOINTS),
    "controlnet": (train_controlnet, CONTROLNET),
    "language_model": (train_language_model, LANGUAGE_MODEL),
}
# What a stage starts from or is measured with.
NEEDS: dict[str, tuple[str, ...]] = {
    "policy": ("autoencoder", "oracle"),
    "reward_model": ("autoencoder",),
    "clip": ("autoencoder", "policy"),
    "controlnet": ("autoencoder", "oracle", "policy", "keypoints"),
    "language_model": ("autoencoder", "policy", "reward_model"),
}
RECORD = "pretrain.json"


def pretrain(
    out: Path,
    *,
    stages: Sequence[str] = tuple(STAGES),
    steps: Mapping[str, int] | None = None,
    seed: int = 0,
    device: str = "cpu",
    work: Path | None = None,
) -> dict[str, dict]:
    """Train the named stages into `out` and return what `out/pretrain.json` records: budget, seconds and figures of each.

    `steps` shortens or lengthens stages; `work` (default `out/.work`) holds checkpoints and renders, and is removed
    once every stage is done. Raises UserError for an unknown stage, or one whose forerunners have not run.
    """
    out = Path(out)
    unknown = sorted({*stages, *(steps or {})} - set(STAGES))
    if unknown:
        raise UserError(f"unknown stage {unknown[0]!r}; the stages are {', '.join(STAGES)}")
    work = Path(work or out / ".work")
    out.mkdir(parents=True, exist_ok=True)
    record = _read_record(out)
    for name in [name for name in STAGES if name in stages and name not in record]:
        (out / CHECKSUMS).unlink(missing_ok=True)  # what is trained anew would not match it; all is listed again at the end
        missing = [earlier for earlier in NEEDS.get(name, ()) if earlier not in record]
        if missing:
            raise UserError(f"stage {name!r} needs {missing[0]!r} first; run that stage, or all of them")
        train, budget = STAGES[name]
        budget = replace(budget, steps=(steps or {}).get(name, budget.steps))
        figures = train(out, work, budget=budget, seed=seed, device=torch.device(device))
        record[name] = {"seed": seed, "device": device, "steps": budget.steps, "batch": budget.batch} | _rounded(figures)
        record[name]["versions"] = _versions()
        write_atomic(out / RECORD, (json.dumps(record, indent=2) + "\n").encode())
    write_checksums(out)
    if set(record) == set(STAGES):
        shutil.rmtree(work, ignore_errors=True)
    return record


def write_checksums(out: Path) -> None:
    """`checksums.json`: the sha256 of every file under `out` that is not hidden, by its relative name."""
    sums = {}
    for file in sorted(path for path in out.rglob("*") if path.is_file() and path.name != CHECKSUMS):
        name = file.relative_to(out)
        if not name.parts[0].startswith("."):
            file.chmod(0o644)  # safetensors writes files that only their owner can read
            sums[name.as_posix()] = hashlib.sha256(file.read_bytes()).hexdigest()
    write_atomic(out / CHECKSUMS, (json.dumps(sums, indent=2) + "\n").encode())


def _read_record(out: Path) -> dict[str, dict]:
    path = out / RECORD
    return json.loads(path.read_text()) if path.exists() else {}


def _rounded(figures: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in figures.items()}


def _versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
    }
