"""What models under comparison made, and what metrics said of it: Parquet parts below one directory, here or in a bucket.

    OUT/manifest.json                        what the parts were made from; another config does not go on from them
    OUT/images/MODEL/TASK/part-00000.parquet one row an image
    OUT/values/MODEL/TASK/METRIC-00000.parquet one row an image and measure, for the part of the same number
    OUT/turns/MODEL/part-00000.parquet       one row a turn of a dialogue that was answered with a picture or with words

A part appears when it is complete, so a run that was cut off goes on behind the last one. Every protocol reads cubes of values
and nothing else. Axis letters: D dialogues, R rounds, G siblings.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from omr_ray.data.store import Folder, Replacing, read_json
from omr_ray.types import UserError

IMAGES = pa.schema(
    [
        ("dialogue", pa.string()),
        ("round", pa.int32()),
        ("sibling", pa.int32()),
        ("seed", pa.int64()),
        ("utterance", pa.string()),
        ("prompt", pa.string()),
        ("intent", pa.string()),
        ("image", pa.binary()),  # PNG
        ("seconds", pa.float64()),  # its share of the call that made it
        ("excited", pa.float64()),  # 1 where Attend-and-Excite acted, 0 where it did not, null where nobody looked
    ]
)
VALUES = pa.schema(
    [
        ("dialogue", pa.string()),
        ("round", pa.int32()),
        ("sibling", pa.int32()),
        ("measure", pa.string()),
        ("value", pa.float64()),
        ("vector", pa.list_(pa.float32())),
    ]
)
TURNS = pa.schema(
    [
        ("dialogue", pa.string()),
        ("round", pa.int32()),
        ("kind", pa.string()),
        ("utterance", pa.string()),
        ("modality", pa.string()),
        ("prompt", pa.string()),
        ("reply", pa.string()),
        ("wanted", pa.string()),
        ("share", pa.float64()),
        ("right", pa.bool_()),
        ("image", pa.binary()),  # PNG
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeImage:
    """One image of one model. Example: MadeImage(dialogue="heldout-0-000001", round=2, sibling=0, seed=7, prompt="a red dress", ...)"""

    dialogue: str
    round: int  # from 1
    sibling: int  # from 0
    seed: int
    utterance: str
    prompt: str  # the round's own, whatever a model made of it
    intent: str
    image: bytes  # PNG
    seconds: float
    excited: float | None = None

    @property
    def pixels(self) -> np.ndarray:
        """u8 [H W 3]."""
        with Image.open(io.BytesIO(self.image)) as opened:
            return np.asarray(opened.convert("RGB"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """What one metric says of one image: a number, or a vector (an embedding)."""

    dialogue: str
    round: int
    sibling: int
    measure: str  # "prompt", "intent", "target", "previous", "satisfied" or "embedding"
    value: float | None = None
    vector: Sequence[float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SwitchedTurn:
    """One turn in which the dialogue engine chose between a picture and words (OMR table 2)."""

    dialogue: str
    round: int  # from 1
    kind: str  # "T->T", "T->I", "I+T->I", "I+T->T"
    utterance: str
    modality: str | None  # what was chosen; None where the language model gave no valid answer
    prompt: str | None  # of the picture
    reply: str | None
    wanted: str  # the right prompt, or the right answer
    share: float | None  # of the aspects of `wanted` that the picture shows
    right: bool  # the right modality, and the right thing in it
    image: bytes | None = None


def png(pixels: np.ndarray) -> bytes:
    """u8 [H W 3] as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def at_size(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """u8 [H W 3] at (width, height): images of other models may have any size."""
    return pixels if pixels.shape[1::-1] == size else np.asarray(Image.fromarray(pixels).resize(size))


class Results:
    """The directory of a comparison. Raises UserError where it holds parts of another config, or a damaged file."""

    def __init__(self, path: str) -> None:
        self.folder = Folder(path)
        self._cubes: dict[tuple[str, ...], np.ndarray] = {}

    def claim(self, made_from: Mapping[str, Any]) -> None:
        """Note what the parts are made from. Raises UserError where those that are there were made from something else."""
        if self.folder.exists("manifest.json"):
            known = read_json(self.folder, "manifest.json")
            wanted = json.loads(json.dumps(made_from))
            changed = sorted(key for key in known.keys() & wanted.keys() if known[key] != wanted[key])
            if changed:
                raise UserError(
                    f"{self.folder.shown('manifest.json')}: the images there were made with other settings ({', '.join(changed)}); "
                    "set them back, or choose another --out"
                )
            made_from = {**known, **wanted}
        self.folder.write("manifest.json", json.dumps(made_from, indent=1, sort_keys=True).encode())

    # -- images --------------------------------------------------------------------------------------------------------

    def has_images(self, model: str, task: str, part: int) -> bool:
        return self.folder.exists(_images(model, task, part))

    def write_images(self, model: str, task: str, part: int, rows: Sequence[MadeImage]) -> None:
        self._write(_images(model, task, part), IMAGES, rows, MadeImage)

    def images(self, model: str, task: str, part: int) -> list[MadeImage]:
        return [MadeImage(**row) for row in self._read(_images(model, task, part)).to_pylist()]

    def all_images(self, model: str, task: str) -> Iterator[MadeImage]:
        for part in self.parts(model, task):
            yield from self.images(model, task, part)

    def parts(self, model: str, task: str) -> list[int]:
        """Numbers of the parts that are complete."""
        below = f"images/{slug(model)}/{task}"
        if not self.folder.exists(below):
            return []
        return [int(name.rsplit("-", 1)[1].removesuffix(".parquet")) for name, _ in self.folder.files((".parquet",), below)]

    # -- turns ---------------------------------------------------------------------------------------------------------

    def has_turns(self, model: str, part: int) -> bool:
        return self.folder.exists(_turns(model, part))

    def write_turns(self, model: str, part: int, rows: Sequence[SwitchedTurn]) -> None:
        self._write(_turns(model, part), TURNS, rows, SwitchedTurn)

    def turns(self, model: str) -> list[SwitchedTurn]:
        """Those of all parts; none where the model was not asked."""
        below = f"turns/{slug(model)}"
        names = self.folder.files((".parquet",), below) if self.folder.exists(below) else []
        return [SwitchedTurn(**row) for name, _ in names for row in self._read(name).to_pylist()]

    # -- values --------------------------------------------------------------------------------------------------------

    def has_values(self, model: str, task: str, metric: str, part: int) -> bool:
        return self.folder.exists(_values(model, task, metric, part))

    def write_values(self, model: str, task: str, metric: str, part: int, rows: Sequence[Value]) -> None:
        self._write(_values(model, task, metric, part), VALUES, rows, Value)

    def cube(self, model: str, task: str, metric: str, measure: str) -> np.ndarray | None:
        """f64 [D R G], dialogues in the order of their ids, NaN where there is no value; None where nothing was measured."""
        key = (model, task, metric, measure)
        if key not in self._cubes:
            places, table = self._places(model, task), self._table(model, task, metric)
            rows = [] if table is None else [row for row in table if row["measure"] == measure and row["value"] is not None]
            if not rows:
                return None
            dialogues, rounds, siblings = places
            cube = np.full((len(dialogues), rounds, siblings), np.nan)
            for row in rows:
                cube[dialogues[row["dialogue"]], row["round"] - 1, row["sibling"]] = row["value"]
            self._cubes[key] = cube
        return self._cubes[key]

    def vectors(self, model: str, task: str, metric: str) -> list[dict[str, Any]]:
        """Rows (dialogue, round, sibling, vector) of a metric that embeds."""
        table = self._table(model, task, metric) or []
        return [row for row in table if row["vector"] is not None]

    def seconds(self, model: str, task: str) -> np.ndarray | None:
        """Seconds an image, f64 [D R G]; None without images."""
        return self._own(model, task, "seconds")

    def excited(self, model: str, task: str) -> np.ndarray | None:
        """Whether Attend-and-Excite acted, f64 [D R G] of 0 and 1; None without images."""
        return self._own(model, task, "excited")

    def prompts(self, model: str, task: str) -> dict[tuple[str, int], str]:
        """(dialogue, round) -> prompt."""
        return {(row["dialogue"], row["round"]): row["prompt"] for row in self._rows(model, task)}

    def dialogues(self, model: str, task: str) -> list[str]:
        return list(self._places(model, task)[0])

    def _own(self, model: str, task: str, column: str) -> np.ndarray | None:
        dialogues, rounds, siblings = self._places(model, task)
        if not dialogues:
            return None
        cube = np.full((len(dialogues), rounds, siblings), np.nan)
        for row in self._rows(model, task):
            if row[column] is not None:
                cube[dialogues[row["dialogue"]], row["round"] - 1, row["sibling"]] = row[column]
        return cube

    def _places(self, model: str, task: str) -> tuple[dict[str, int], int, int]:
        """Row of each dialogue, and how many rounds and siblings there are."""
        rows = self._rows(model, task)
        names = {name: index for index, name in enumerate(sorted({row["dialogue"] for row in rows}))}
        return names, max((row["round"] for row in rows), default=0), 1 + max((row["sibling"] for row in rows), default=-1)

    @lru_cache(maxsize=64)  # noqa: B019 - one object a process, which ends with it
    def _rows(self, model: str, task: str) -> list[dict[str, Any]]:
        """Every column of all parts but the pictures."""
        columns = [name for name in IMAGES.names if name != "image"]
        return [row for part in self.parts(model, task) for row in self._read(_images(model, task, part), columns).to_pylist()]

    @lru_cache(maxsize=64)  # noqa: B019
    def _table(self, model: str, task: str, metric: str) -> list[dict[str, Any]] | None:
        parts = [part for part in self.parts(model, task) if self.has_values(model, task, metric, part)]
        return [row for part in parts for row in self._read(_values(model, task, metric, part)).to_pylist()] or None

    def _write(self, name: str, schema: pa.Schema, rows: Sequence[Any], kind: type) -> None:
        columns = {field.name: [getattr(row, field.name) for row in rows] for field in fields(kind)}
        with Replacing(self.folder, name) as opened:
            pq.write_table(pa.table(columns, schema=schema), opened, compression="zstd")

    def _read(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        with self.folder.open(name) as opened:
            try:
                return pq.read_table(opened, columns=None if columns is None else list(columns))
            except pa.ArrowInvalid:
                raise UserError(f"{self.folder.shown(name)}: is damaged; delete it and start the evaluation again") from None


def slug(name: str) -> str:
    """A model's name as a folder's; names hold no "_" of their own. Example: slug("Ours r4") == "Ours_r4" """
    return name.replace(" ", "_")


def _images(model: str, task: str, part: int) -> str:
    return f"images/{slug(model)}/{task}/part-{part:05d}.parquet"


def _turns(model: str, part: int) -> str:
    return f"turns/{slug(model)}/part-{part:05d}.parquet"


def _values(model: str, task: str, metric: str, part: int) -> str:
    return f"values/{slug(model)}/{task}/{metric}-{part:05d}.parquet"
