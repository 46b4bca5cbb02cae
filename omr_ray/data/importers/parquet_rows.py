"""Rows of a Parquet file, by row group, so that tasks share a file and none holds it whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from omr_ray.data.records import Part
from omr_ray.data.store import Folder
from omr_ray.types import UserError

BATCH = 64  # rows at a time: they may carry images


def ranges(folder: Folder, name: str, size: int) -> list[Part]:
    """Runs of row groups of about `size` rows. Raises UserError for a file that is not Parquet or holds no row."""
    with folder.open(name) as opened:
        metadata = _file(opened, folder.shown(name)).metadata
    counts = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
    if not sum(counts):
        raise UserError(f"{folder.shown(name)}: holds no row; mend it or leave the source out")
    parts: list[Part] = []
    first = held = 0
    for index, count in enumerate(counts):
        held += count
        if held >= size or index == len(counts) - 1:
            parts.append({"file": name, "groups": [first, index + 1], "row": sum(counts[:first])})
            first, held = index + 1, 0
    return parts


def rows(folder: Folder, part: Part, columns: Sequence[str], whole: str | None = None) -> Iterator[dict[str, Any]]:
    """The rows of a part. Raises UserError where a column is missing.

    `whole`: rows that share this column stay together even where a row group ends between them: a part leaves out those
    that continue the part before it, and goes on into the next row groups to the end of its last ones.
    """
    with folder.open(part["file"]) as opened:
        file = _file(opened, folder.shown(part["file"]))
        missing = [name for name in columns if name not in file.schema_arrow.names]
        if missing:
            known = ", ".join(file.schema_arrow.names)[:200]
            raise UserError(f"{folder.shown(part['file'])}: no column {', '.join(missing)}; it has {known}")
        first, stop = part["groups"]
        if whole is None:
            yield from _read(file, range(first, stop), columns)
            return
        last_before = None if first == 0 else _last(file, first - 1, whole)
        for row in _read(file, range(first, stop), columns):
            if last_before is None or row[whole] != last_before:
                last_before = None
                yield row
        end = _last(file, stop - 1, whole)
        for row in _read(file, range(stop, file.num_row_groups), columns):
            if row[whole] != end or last_before is not None:
                return
            yield row


def _read(file: pq.ParquetFile, groups: range, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    for group in groups:
        for batch in file.iter_batches(batch_size=BATCH, row_groups=[group], columns=list(columns)):
            yield from batch.to_pylist()


def _last(file: pq.ParquetFile, group: int, column: str) -> Any:
    return file.read_row_group(group, columns=[column])[column][-1].as_py()


def _file(opened: pa.NativeFile, shown: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(opened)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{shown}: is not Parquet ({' '.join(str(error).split())[:160]}); mend it or leave the source out") from None
