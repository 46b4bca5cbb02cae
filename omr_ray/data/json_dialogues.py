"""Dialogues as the papers keep them: one JSON file a dialogue (OMR section 4.2).

    {"id": "000001", "intent": "a blue dress with a belt",
     "rounds": [{"utterance": "a dress, please", "prompt": "a dress", "image": "000001_1.png"}, ...]}

`image` is a path relative to the file and may be absent; a dialogue without images trains PPO, not the multi-round loss.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from omr_ray.types import Dialogue, Round, UserError


def read_dialogues(directory: Path) -> list[Dialogue]:
    """Every `*.json` of a directory, in name order. Raises UserError for the first file that is not a dialogue."""
    files = sorted(Path(directory).glob("*.json"))
    if not files:
        raise UserError(f"{directory}: no *.json dialogue in this directory; set dialogues.path to one that holds them")
    return [read_dialogue(file) for file in files]


def read_dialogue(file: Path) -> Dialogue:
    """One file as a Dialogue. Raises UserError that names the file and what is wrong with it."""
    try:
        record = json.loads(file.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        what = "is empty" if file.exists() and file.stat().st_size == 0 else f"is not JSON ({error})"
        raise UserError(f"{file}: {what}; a dialogue file is one JSON object with id, intent and rounds") from None
    if not isinstance(record, dict) or not isinstance(record.get("rounds"), list) or not record["rounds"]:
        raise UserError(
            f"{file}: a dialogue is an object whose 'rounds' is a list with at least one round; see README, 'Your own dialogues'"
        )
    rounds = tuple(_round(file, index, value) for index, value in enumerate(record["rounds"], start=1))
    return Dialogue(id=str(record.get("id", file.stem)), intent=str(record.get("intent", rounds[-1].prompt)), rounds=rounds)


def write_dialogue(dialogue: Dialogue, directory: Path) -> Path:
    """Write one dialogue and its target images; returns the JSON file's path."""
    directory.mkdir(parents=True, exist_ok=True)
    rounds = []
    for round_ in dialogue.rounds:
        value: dict[str, Any] = {"utterance": round_.utterance, "prompt": round_.prompt}
        if round_.target is not None:
            value["image"] = f"{dialogue.id}_{round_.index}.png"
            Image.fromarray(round_.target).save(directory / value["image"])
        rounds.append(value)
    file = directory / f"{dialogue.id}.json"
    file.write_text(json.dumps({"id": dialogue.id, "intent": dialogue.intent, "rounds": rounds}, indent=1))
    return file


def _round(file: Path, index: int, value: Any) -> Round:
    if not isinstance(value, dict) or not isinstance(value.get("prompt"), str):
        raise UserError(f"{file}: round {index} needs a text 'prompt', got {value!r:.80}")
    target = None
    if value.get("image"):
        try:
            with Image.open(file.parent / value["image"]) as image:
                target = np.asarray(image.convert("RGB"))
        except (OSError, UnidentifiedImageError) as error:
            raise UserError(
                f"{file}: round {index}: image {value['image']!r} cannot be read ({error}); mend it or leave the key out"
            ) from None
    return Round(index=index, utterance=str(value.get("utterance", value["prompt"])), prompt=value["prompt"], target=target)
