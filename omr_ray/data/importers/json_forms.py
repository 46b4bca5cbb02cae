"""The papers' own two forms (OMR section 4.2): one JSON file a dialogue, and all preferences in one large JSON file.

    PATH/**/*.json    {"id", "intent", "rounds": [{"utterance", "prompt", "image", "reflection"}, ...]}
    PATH/*.json       [{"id", "prompt", "images": [path, path], "labels": [1, 0], "negative"}, ...]

Images are paths relative to PATH. In a dialogue everything but the prompts may be absent; of a preference, id and negative.
`export.py` writes both forms.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from omr_ray.data.filters import Rejected
from omr_ray.data.importers import json_stream
from omr_ray.data.importers.json_stream import fields
from omr_ray.data.importers.pairs import preferred
from omr_ray.data.records import Broken, Look, Pair, Part, Record, Talk, Turn
from omr_ray.data.store import Folder
from omr_ray.types import UserError


class JsonDialogues:
    name, license = "json_dialogues", "unknown"

    def __init__(self, path: str) -> None:
        self.folder = Folder(path)

    def parts(self, size: int) -> list[Part]:
        names = [name for name, _ in self.folder.files((".json",))]
        if not names:
            raise UserError(f"{self.folder.path}: no *.json dialogue in it; give the directory that holds them")
        return [{"names": names[start : start + size]} for start in range(0, len(names), size)]

    def records(self, part: Part, look: Look) -> Iterator[Record]:
        for name in part["names"]:
            try:
                yield self._talk(name, json.loads(self.folder.read(name)))
            except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
                yield Broken(id=name, why=Rejected("json_broken", " ".join(str(error).split())[:200]))
            except Rejected as why:
                yield Broken(id=name, why=why)

    def _talk(self, name: str, item: Any) -> Talk:
        (rounds,) = fields(item, rounds=list)
        if not rounds:
            raise Rejected("malformed", "a dialogue needs at least one round")
        turns = tuple(self._turn(name, value) for value in rounds)
        id_ = str(item.get("id") or name.removesuffix(".json"))
        intent = str(item.get("intent") or turns[-1].prompt)
        return Talk(id=id_, group=intent, intent=intent, turns=turns, placed=not item.get("id"))

    def _turn(self, name: str, value: Any) -> Turn:
        (prompt,) = fields(value, prompt=str)
        said, image, reflection = (value.get(key) for key in ("utterance", "image", "reflection"))
        if any(item is not None and not isinstance(item, str) for item in (said, image, reflection)):
            raise Rejected("malformed", "utterance, image and reflection must be texts")
        folder = name.rsplit("/", 1)[0] + "/" if "/" in name else ""
        return Turn(utterance=said or prompt, prompt=prompt, target=folder + image if image else None, reflection=reflection)


class JsonPreferences:
    name, license = "json_preferences", "unknown"

    def __init__(self, path: str) -> None:
        self.folder = Folder(path)

    def parts(self, size: int) -> list[Part]:
        names = [name for name, _ in self.folder.files((".json",))]
        if not names:
            raise UserError(f"{self.folder.path}: no *.json in it; give the directory that holds the preference file")
        return [part for name in names for part in json_stream.ranges(self.folder, name, size)]

    def records(self, part: Part, look: Look) -> Iterator[Record]:
        yield from json_stream.items(self.folder, part, lambda number, item: self._record(f"{part['file']}#{number}", item))

    def _record(self, place: str, item: Any) -> Iterator[Record]:
        prompt, images, labels = fields(item, prompt=str, images=list, labels=list)
        if len(images) != 2 or len(labels) != 2 or not all(isinstance(image, str) for image in images):
            raise Rejected("malformed", f"two image paths and two labels were expected, got {len(images)} and {len(labels)}")
        first = preferred(*labels)
        yield Pair(
            id=str(item.get("id") or place),
            group=prompt,
            prompt=prompt,
            negative=str(item.get("negative") or "ranked"),
            chosen=images[first],
            rejected=images[1 - first],
            placed=not item.get("id"),
        )
