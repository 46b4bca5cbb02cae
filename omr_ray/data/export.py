"""`omr-ray data export`: a build in the papers' JSON forms (OMR section 4.2), which `importers/json_forms.py` reads.

OUT/dialogues/ID.json  OUT/dialogues/images/...  OUT/preferences/preferences.json  OUT/preferences/images/...
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from omr_ray.data.store import Folder, StoredTable
from omr_ray.types import UserError
from omr_ray.weights import write_atomic

SUFFIX = {b"\xff\xd8": ".jpg", b"\x89P": ".png", b"RI": ".webp"}  # by the first two bytes


def export(path: str, out: Path) -> dict[str, Any]:
    """Write every table that `path` holds; returns how many rows of each. Raises UserError where there is none."""
    folder = Folder(path)
    writers = {"dialogues": _dialogues, "preferences": _preferences}
    counts = {table: write(path, out / table) for table, write in writers.items() if folder.exists(table)}
    if not counts:
        raise UserError(f"{path}: neither dialogues nor preferences in it; give what `omr-ray data build` wrote")
    return {"out": str(out), **counts}


def _dialogues(path: str, out: Path) -> int:
    count = 0
    for row in StoredTable(path, "dialogues").rows():
        count += 1
        rounds = [
            {key: turn[key] for key in ("utterance", "prompt", "reflection") if turn[key]}
            | ({"image": _image(out, turn["target"])} if turn["target"] else {})
            for turn in row["rounds"]
        ]
        content = {"id": row["id"], "intent": row["intent"], "rounds": rounds}
        write_atomic(out / f"{file_name(row['id'])}.json", json.dumps(content, indent=1).encode())
    return count


def _preferences(path: str, out: Path) -> int:
    """One file, written as it is read: it may be larger than memory."""
    out.mkdir(parents=True, exist_ok=True)
    target, count = out / "preferences.json", 0
    part = target.with_suffix(".part")
    with part.open("w") as opened:
        for row in StoredTable(path, "preferences").rows():
            if row["chosen"] is None or row["rejected"] is None:
                continue  # the form has a place for paths only
            images = [_image(out, row[name]) for name in ("chosen", "rejected")]
            content = {"id": row["id"], "prompt": row["prompt"], "images": images, "labels": [1, 0], "negative": row["negative"]}
            opened.write(("[\n" if count == 0 else ",\n") + json.dumps(content))
            count += 1
        opened.write("\n]\n" if count else "[]\n")
    part.replace(target)
    return count


def _image(out: Path, image: dict[str, Any]) -> str:
    """Write the bytes under a name that follows from them; returns the path relative to `out`."""
    content = image["bytes"]
    name = f"images/{hashlib.sha256(content).hexdigest()[:24]}{SUFFIX.get(content[:2], '')}"
    if not (out / name).exists():
        write_atomic(out / name, content)
    return name


def file_name(id_: str) -> str:
    """An id as a file name: where characters had to go, a hash keeps it unique."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", id_)[:100].strip(".") or "_"
    return plain if plain == id_ else f"{plain}-{hashlib.sha256(id_.encode()).hexdigest()[:8]}"
