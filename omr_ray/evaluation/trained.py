"""The adapters of a finished sweep of variants, as models of OMR fig. 8."""

from __future__ import annotations

import re
from pathlib import Path

from omr_ray.config.comparison import Adapted
from omr_ray.evaluation.papers.result import Missing, Trained
from omr_ray.trials import Trial, Trials

LONGEST_NAME = 28


def of_sweep(directory: str) -> Trained:
    """One model for each trial that has an adapter; the others are missing by name, with why."""
    trials = Trials(Path(directory))
    known = [trial for trial in trials.known() if trial.name is not None]
    if not known:
        remedy = "make one: omr-ray sweep configs/sweep_ablations.yaml --out DIR"
        return Trained(missing=(Missing(what="Reward ablations", why=f"{directory} holds no sweep of variants", remedy=remedy),))
    variants: dict[str, tuple[Adapted, ...]] = {}
    missing = []
    for trial in known:
        name, outcome = str(trial.name), trials.outcome(trial.number)
        adapter = trials.run(trial) / "adapter"
        if outcome is not None and outcome.status == "finished" and adapter.is_dir():
            model = Adapted(name=_model_name(trial), path=str(adapter), published=None)
            variants[name] = (*variants.get(name, ()), model)
            continue
        why = "has not ended" if outcome is None else outcome.error or f"{outcome.status} at step {outcome.step}"
        remedy = f"omr-ray sweep CONFIG --out {directory} --resume"
        missing.append(Missing(what=f"Reward ablations, {name}, {_seed(trial)}", why=why, remedy=remedy))
    return Trained(variants=variants, missing=tuple(missing))


def _model_name(trial: Trial) -> str:
    """As a model may be called. Example: "2 without diversity seed 0" """
    plain = re.sub(r"[^A-Za-z0-9 .-]", "", str(trial.name))[:LONGEST_NAME].strip()
    return f"{trial.number} {plain} {_seed(trial)}"[:40]


def _seed(trial: Trial) -> str:
    return f"seed {trial.parameters.get('seed', 0)}"
