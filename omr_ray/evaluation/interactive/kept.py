"""What was talked, in Parquet parts that appear when they are complete: a simulation that was cut off goes on behind them.

OUT/manifest.json                                what the parts were made from; another config does not go on from them
OUT/talks/VARIANT/seed-0/part-00000.parquet      one row a turn
OUT/thresholds/seed-0/part-00000.parquet         one row an image
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from omr_ray.data.store import Replacing
from omr_ray.evaluation.interactive.talking import TalkedTurn
from omr_ray.evaluation.interactive.thresholds import ExcitedImage
from omr_ray.evaluation.stored import Results
from omr_ray.types import UserError

SCHEMAS = {
    TalkedTurn: pa.schema(
        [
            ("dialogue", pa.string()),
            ("turn", pa.int32()),
            ("seed", pa.int64()),
            ("utterance", pa.string()),
            ("answer", pa.string()),
            ("prompt", pa.string()),
            ("status", pa.string()),
            ("modality", pa.string()),
            ("wrong", pa.list_(pa.string())),
            ("satisfied", pa.bool_()),
            ("question", pa.string()),
            ("answered", pa.bool_()),
            ("ambiguity", pa.float64()),
            ("consistency", pa.float64()),
            ("seconds", pa.float64()),
            ("image", pa.binary()),  # PNG
        ]
    ),
    ExcitedImage: pa.schema(
        [
            ("dialogue", pa.string()),
            ("threshold", pa.float64()),
            ("used", pa.bool_()),
            ("accuracy", pa.float64()),
            ("similarity", pa.float64()),
        ]
    ),
}
THRESHOLDS = "thresholds"

Row = TypeVar("Row", TalkedTurn, ExcitedImage)


def talks(variant: str) -> str:
    return f"talks/{variant}"


class Kept(Results):
    """The directory of a simulation. `task` is `talks(VARIANT)` or THRESHOLDS."""

    def has(self, task: str, seed: int, part: int) -> bool:
        return self.folder.exists(_name(task, seed, part))

    def keep(self, task: str, seed: int, part: int, kind: type[Row], rows: Sequence[Row]) -> None:
        columns = {field.name: [getattr(row, field.name) for row in rows] for field in fields(kind)}
        with Replacing(self.folder, _name(task, seed, part)) as opened:
            pq.write_table(pa.table(columns, schema=SCHEMAS[kind]), opened, compression="zstd")

    def load(self, task: str, seed: int, part: int, kind: type[Row]) -> list[Row]:
        """Raises UserError where the part is missing or damaged."""
        name = _name(task, seed, part)
        with self.folder.open(name) as opened:
            try:
                return [kind(**_plain(row)) for row in pq.read_table(opened).to_pylist()]
            except (pa.ArrowInvalid, TypeError):
                raise UserError(f"{self.folder.shown(name)}: is damaged; delete it and start the simulation again") from None


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return row if row.get("wrong") is None else row | {"wrong": tuple(row["wrong"])}


def _name(task: str, seed: int, part: int) -> str:
    return f"{task}/seed-{seed}/part-{part:05d}.parquet"
