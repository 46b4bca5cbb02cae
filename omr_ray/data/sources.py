"""Where a training run takes its dialogues from. Those of a step follow from the step's number, so a resumed run goes on alike."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from PIL import Image

from omr_ray.atelier.dialogues import dialogue_at, make_dialogues
from omr_ray.data.store import StoredTable
from omr_ray.types import Dialogue, Round, UserError

HELD_OUT_SHARE = 5  # every fifth dialogue of a directory of files


class Source(Protocol):
    def next(self, step: int, count: int) -> list[Dialogue]: ...

    def held_out(self, count: int) -> list[Dialogue]: ...


class AtelierSource:
    """Dialogues of the embedded world, made on the fly."""

    def __init__(self, rounds: int, seed: int) -> None:
        self._rounds, self._seed = rounds, seed

    def next(self, step: int, count: int) -> list[Dialogue]:
        first = (step - 1) * count
        return [dialogue_at("train", index, rounds=self._rounds, seed=self._seed) for index in range(first, first + count)]

    def held_out(self, count: int) -> list[Dialogue]:
        return make_dialogues("heldout", count, rounds=self._rounds)


class FileSource:
    """Dialogues read from files: every fifth is held out, the others come in a new order each epoch."""

    def __init__(self, dialogues: Sequence[Dialogue], seed: int) -> None:
        self._held_out, self._seed = dialogues[::HELD_OUT_SHARE], seed
        self._train = [dialogue for index, dialogue in enumerate(dialogues) if index % HELD_OUT_SHARE]
        if not self._train:
            raise UserError(f"dialogues.path holds {len(dialogues)} dialogue; at least 2 are needed, one of them is held out; add some")

    def next(self, step: int, count: int) -> list[Dialogue]:
        return [self._train[place] for place in places(step, count, len(self._train), self._seed)]

    def held_out(self, count: int) -> list[Dialogue]:
        return list(self._held_out[:count])


class TableSource:
    """Dialogues of a built table (`omr-ray data build`): its train split for steps, its test split for judging."""

    def __init__(self, path: str, seed: int) -> None:
        self._train, self._test = (StoredTable(path, "dialogues", split, "dialogue") for split in ("train", "test"))
        self._seed = seed

    def next(self, step: int, count: int) -> list[Dialogue]:
        return [dialogue_of(self._train[place]) for place in places(step, count, len(self._train), self._seed)]

    def held_out(self, count: int) -> list[Dialogue]:
        return [dialogue_of(self._test[place]) for place in range(min(count, len(self._test)))]


def places(step: int, count: int, size: int, seed: int) -> list[int]:
    """Which of `size` dialogues step `step` (from 1) takes: each once an epoch, in an order of the epoch's own.

    The order is i -> (a i + b) mod size with a, b drawn for the epoch: a table of any size needs no list.
    """
    chosen = []
    for index in range((step - 1) * count, step * count):
        epoch, place = divmod(index, size)
        rng = np.random.default_rng((seed, epoch))
        a = int(rng.integers(1, size + 1))
        while math.gcd(a, size) != 1:
            a = int(rng.integers(1, size + 1))
        chosen.append((a * place + int(rng.integers(size))) % size)
    return chosen


def dialogue_of(row: dict[str, Any]) -> Dialogue:
    """A row of the dialogues table, its targets decoded."""
    rounds = tuple(
        Round(
            index=index, utterance=turn["utterance"], prompt=turn["prompt"], reflection=turn["reflection"], target=_pixels(turn["target"])
        )
        for index, turn in enumerate(row["rounds"], start=1)
    )
    return Dialogue(id=row["id"], intent=row["intent"], rounds=rounds)


def _pixels(image: dict[str, Any] | None) -> np.ndarray | None:
    if image is None:
        return None
    with Image.open(io.BytesIO(image["bytes"])) as opened:
        return np.asarray(opened.convert("RGB"))
