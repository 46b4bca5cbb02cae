"""Dialogues as a diffusion model sees them, encoded once: latents and text embeddings in Parquet, by bucket.

    CACHE/cache.json  latents/{train,test}/HEIGHTxWIDTH/part-000000.parquet  parts/train-000000.json

A part is a run of dialogues of one split; a line in `parts/` says that it is whole, and goes last. Another rank, or a run
that was cut off, goes on with the parts that have none. Everything that shapes the numbers is in cache.json.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np

from omr_ray.data.buckets import Size
from omr_ray.data.sources import places
from omr_ray.data.store import Folder, Shard, StoredTable, read_json
from omr_ray.types import UserError

PART = 256  # dialogues


@dataclass(frozen=True, slots=True, kw_only=True)
class Shapes:
    """What the bytes of a cache stand for.

    Example: Shapes(dtype="float16", channels=4, factor=8, hidden=(77, 1024), pooled=None)
    """

    dtype: str  # "float32" or "float16"
    channels: int
    factor: int  # pixels to one latent's side
    hidden: tuple[int, int]  # L, D
    pooled: int | None  # D'


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One round of a dialogue, encoded."""

    latent: np.ndarray  # [C H W]
    hidden: np.ndarray  # [L D]
    pooled: np.ndarray | None  # [D']
    conditioning: Sequence[int]  # buckets.Fitted


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """A dialogue, encoded: its rounds that have an image."""

    id: str
    rounds: tuple[Frame, ...]
    consecutive: tuple[bool, ...]  # [R - 1]


def claim(folder: Folder, told: Mapping[str, Any]) -> None:
    """Write what the cache is made from (model, data, sizes), or see that the one that lies there is made from the same."""
    if not folder.exists("cache.json"):
        folder.write("cache.json", json.dumps(told, indent=1).encode())
        return
    told, found = json.loads(json.dumps(told)), read_json(folder, "cache.json")  # JSON has no tuples
    changed = [key for key in sorted(told.keys() | found.keys()) if told.get(key) != found.get(key)]
    if changed:
        what = ", ".join(f"{key} {found.get(key)} instead of {told.get(key)}" for key in changed[:3])
        raise UserError(f"{folder.path}: was encoded with {what}; give another data.cache, or remove it")


def missing_parts(folder: Folder, split: str, count: int) -> list[int]:
    """Which of the parts of `count` dialogues are not there yet."""
    done = {name for name, _ in folder.files((".json",), "parts")} if folder.exists("parts") else set()
    return [part for part in range(-(-count // PART)) if f"parts/{split}-{part:06d}.json" not in done]


def write_part(folder: Folder, split: str, part: int, dialogues: Iterator[tuple[Size, Encoded]], dtype: str) -> None:
    """Write one part: its dialogues by bucket, then the line that says so."""
    shards: dict[Size, Shard] = {}
    with ExitStack() as stack:
        for size, dialogue in dialogues:
            if size not in shards:
                name = f"latents/{split}/{size[0]}x{size[1]}/part-{part:06d}.parquet"
                shards[size] = stack.enter_context(Shard(folder, name, "latents"))
            rounds = [_stored(frame, dtype) for frame in dialogue.rounds]
            held = sum(len(value) for round_ in rounds for value in round_.values() if isinstance(value, bytes))
            shards[size].add({"id": dialogue.id, "rounds": rounds, "consecutive": list(dialogue.consecutive)}, held)
    counts = {f"{height}x{width}": shard.count for (height, width), shard in shards.items()}
    folder.write(f"parts/{split}-{part:06d}.json", json.dumps(counts).encode())


class LatentTable:
    """The encoded dialogues of one split. A batch is of one bucket; which one an update takes follows from its number.

    Raises UserError where no dialogue of the split has an image.
    """

    def __init__(self, path: str, split: str, shapes: Shapes, batch: int) -> None:
        self.shapes, self._batch = shapes, batch
        if not Folder(path).exists(f"latents/{split}"):
            raise UserError(f"no dialogue of the {split} split has an image: nothing to train on; build the data with images")
        found = sorted({name.split("/")[2] for name in StoredTable(path, "latents", split).files})
        self.buckets: list[Size] = [(int(height), int(width)) for height, width in (name.split("x") for name in found)]
        self._tables = [StoredTable(path, "latents", split, name) for name in found]
        self._batches = list(accumulate(-(-len(table) // batch) for table in self._tables))

    def __len__(self) -> int:
        """Dialogues."""
        return sum(len(table) for table in self._tables)

    @property
    def batches(self) -> int:
        """Of one epoch. The last one of a bucket is filled up with dialogues of its next turn."""
        return self._batches[-1]

    def rows_of(self, update: int, seed: int) -> tuple[int, list[int]]:
        """Place of a bucket in `buckets`, and the `batch` rows in it that update `update` (from 1) takes.

        Every batch comes once an epoch, buckets mixed; rows of a bucket come once in as many batches as hold it.
        """
        epoch = (update - 1) // self.batches
        batch = places(update, 1, self.batches, seed)[0]
        bucket = next(index for index, end in enumerate(self._batches) if batch < end)
        first = self._batches[bucket - 1] if bucket else 0
        turn = epoch * (self._batches[bucket] - first) + batch - first + 1
        return bucket, places(turn, self._batch, len(self._tables[bucket]), seed + 1)

    def take(self, bucket: int, rows: Sequence[int]) -> list[Encoded]:
        """Rows of a bucket, in that order."""
        size = self.buckets[bucket]
        return [self._read(row, size) for row in self._tables[bucket].take(rows)]

    def _read(self, row: Mapping[str, Any], size: Size) -> Encoded:
        shapes = self.shapes
        latent = (shapes.channels, size[0] // shapes.factor, size[1] // shapes.factor)
        frames = tuple(
            Frame(
                latent=self._array(turn["latent"], latent),
                hidden=self._array(turn["hidden"], shapes.hidden),
                pooled=None if shapes.pooled is None else self._array(turn["pooled"], (shapes.pooled,)),
                conditioning=turn["conditioning"],
            )
            for turn in row["rounds"]
        )
        return Encoded(id=row["id"], rounds=frames, consecutive=tuple(row["consecutive"]))

    def _array(self, content: bytes, shape: tuple[int, ...]) -> np.ndarray:
        return np.frombuffer(content, np.dtype(self.shapes.dtype).newbyteorder("<")).reshape(shape).astype(np.float32)


def _stored(frame: Frame, dtype: str) -> dict[str, Any]:
    little = np.dtype(dtype).newbyteorder("<")
    numbers = {"latent": frame.latent, "hidden": frame.hidden, "pooled": frame.pooled}
    told = {name: None if value is None else value.astype(little).tobytes() for name, value in numbers.items()}
    return {**told, "conditioning": list(frame.conditioning)}
