"""What an evaluation found, and its files: `<phase>.json` and one PNG a picture of the contact sheet in `<phase>/`."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from omr_ray.evaluation.metrics import Interval
from omr_ray.types import UserError

SHEET_PIXELS = 256  # longest side of a contact sheet's picture on disk


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """Figures by dialogue and round, means over siblings; NaN where a dialogue has no such round or nothing is known."""

    dialogues: tuple[str, ...]  # D ids, the key of every paired comparison
    accuracy: np.ndarray  # f64 [D R], share of the aspects named by the round's prompt that the image shows
    preference: np.ndarray  # f64 [D R], the reward model's score
    diversity: np.ndarray  # f64 [D R], OMR eq. 6 over the siblings
    consistency: np.ndarray  # f64 [D R], cosine to the round before (OMR eq. 7); round 1 has none


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundsToIntent:
    """Rounds until a simulated user was satisfied; `max_rounds` + 1 stands for never."""

    dialogues: tuple[str, ...]
    rounds: np.ndarray  # i64 [D G]
    max_rounds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SheetRound:
    """One picture of the contact sheet, and what was asked for."""

    utterance: str
    prompt: str
    image: np.ndarray  # u8 [H W 3]
    target: np.ndarray | None
    wrong: tuple[str, ...] | None  # aspects the prompt names and the image does not show; None without an oracle


@dataclass(frozen=True, slots=True, kw_only=True)
class SheetRow:
    """One dialogue of the contact sheet, sibling 0."""

    dialogue: str
    intent: str
    rounds: tuple[SheetRound, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """One policy on the held-out dialogues."""

    phase: str  # "before", "after", or as `step_phase` says
    weights: str  # which weights made it, in words
    seed: int
    held_out: HeldOut
    intent: RoundsToIntent | None
    sheet: tuple[SheetRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """After minus before (or over before), paired by dialogue, with 95% bootstrap intervals; None where it was not measured."""

    accuracy_by_round: tuple[Interval, ...]
    last_round_gain: Interval | None  # accuracy in each dialogue's last round
    preference_gain: Interval | None
    consistency_gain: Interval | None
    diversity_ratio: Interval | None
    rounds_to_intent_change_percent: Interval | None


def step_phase(step: int) -> str:
    """The phase of an evaluation in the middle of a run, "step-000010": the name of that step's checkpoint."""
    return f"step-{step:06d}"


def save(result: Evaluation, directory: str | Path) -> Path:
    """Write `<directory>/<phase>.json` and the contact sheet's pictures; returns the JSON file's path."""
    directory = Path(directory)
    pictures = directory / result.phase
    pictures.mkdir(parents=True, exist_ok=True)
    values = {
        "phase": result.phase,
        "weights": result.weights,
        "seed": result.seed,
        "held_out": _plain(asdict(result.held_out)),
        "intent": None if result.intent is None else _plain(asdict(result.intent)),
        "sheet": [_saved_row(row, pictures, f"{index:02d}") for index, row in enumerate(result.sheet, start=1)],
    }
    path = directory / f"{result.phase}.json"
    path.write_text(json.dumps(values, indent=1, allow_nan=False) + "\n")
    return path


def load(directory: str | Path, phase: str) -> Evaluation:
    """Read back what `save` wrote. Raises UserError where the file is missing or not an evaluation."""
    path = Path(directory) / f"{phase}.json"
    try:
        values = json.loads(path.read_text())
        held = values["held_out"]
        figures = {name: _array(held[name]) for name in ("accuracy", "preference", "diversity", "consistency")}
        intent = values["intent"]
        return Evaluation(
            phase=values["phase"],
            weights=values["weights"],
            seed=values["seed"],
            held_out=HeldOut(dialogues=tuple(held["dialogues"]), **figures),
            intent=None
            if intent is None
            else RoundsToIntent(
                dialogues=tuple(intent["dialogues"]), rounds=np.array(intent["rounds"], dtype=np.int64), max_rounds=intent["max_rounds"]
            ),
            sheet=tuple(_loaded_row(row, path.parent / phase) for row in values["sheet"]),
        )
    except FileNotFoundError as error:
        raise UserError(f"{error.filename}: no such evaluation file; run the evaluation of this run again") from None
    except (json.JSONDecodeError, KeyError, TypeError, ValueError, OSError) as error:
        raise UserError(f"{path}: not an evaluation of this version ({type(error).__name__}: {error}); run the evaluation again") from None


def _saved_row(row: SheetRow, pictures: Path, name: str) -> dict[str, Any]:
    rounds = [_saved_round(round_, pictures, f"{name}_round{index}") for index, round_ in enumerate(row.rounds, start=1)]
    return {"dialogue": row.dialogue, "intent": row.intent, "rounds": rounds}


def _loaded_row(values: dict[str, Any], pictures: Path) -> SheetRow:
    rounds = tuple(_loaded_round(round_, pictures) for round_ in values["rounds"])
    return SheetRow(dialogue=values["dialogue"], intent=values["intent"], rounds=rounds)


def _saved_round(round_: SheetRound, pictures: Path, name: str) -> dict[str, Any]:
    _save_png(round_.image, pictures / f"{name}.png")
    if round_.target is not None:
        _save_png(round_.target, pictures / f"{name}_target.png")
    return {
        "utterance": round_.utterance,
        "prompt": round_.prompt,
        "image": f"{name}.png",
        "target": None if round_.target is None else f"{name}_target.png",
        "wrong": None if round_.wrong is None else list(round_.wrong),
    }


def _loaded_round(values: dict[str, Any], pictures: Path) -> SheetRound:
    return SheetRound(
        utterance=values["utterance"],
        prompt=values["prompt"],
        image=_load_png(pictures / values["image"]),
        target=None if values["target"] is None else _load_png(pictures / values["target"]),
        wrong=None if values["wrong"] is None else tuple(values["wrong"]),
    )


def _save_png(pixels: np.ndarray, path: Path) -> None:
    image = Image.fromarray(pixels)
    image.thumbnail((SHEET_PIXELS, SHEET_PIXELS))
    image.save(path, optimize=True)


def _load_png(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def _plain(value: Any) -> Any:
    """The same with arrays as lists and what is not finite as None, so that it is strict JSON."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _array(rows: list[list[float | None]]) -> np.ndarray:
    return np.array([[np.nan if value is None else value for value in row] for row in rows], dtype=np.float64)
