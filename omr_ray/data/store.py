"""Files of the data, here or in a bucket: local paths, s3:// and gs:// alike (pyarrow.fs), written whole or not at all."""

from __future__ import annotations

import json
import os
import re
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from fnmatch import fnmatch
from functools import cached_property
from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from omr_ray.data import schema
from omr_ray.types import FULL, NoSpace, UserError

ROW_GROUP_BYTES = 32 * 2**20  # what a writer holds, and what a reader has to: rows carry images
KEPT_BYTES = 256 * 2**20  # of row groups that a reader keeps: rows are taken in any order
REACHABLE = "see that it can be reached (bucket, endpoint, credentials, rights)"


class Folder:
    """A directory on any file system. Paths given to its methods are relative, with forward slashes."""

    def __init__(self, path: str) -> None:
        self.path = str(path)
        try:
            if "://" in self.path:
                self.fs, self.root = fs.FileSystem.from_uri(self.path)
            else:
                self.fs, self.root = fs.LocalFileSystem(), os.path.abspath(self.path)
        except (pa.ArrowInvalid, OSError, ValueError) as error:
            raise UserError(f"{path}: no such place ({_line(error)}); give a directory, s3://bucket/path or gs://bucket/path") from None
        self.root = self.root.rstrip("/") or "/"
        self._place = self.path  # as a message names it: without credentials and options
        if "://" in self.path:
            self._place = re.sub(r"://[^/@]*@", "://", self.path).partition("?")[0]

    def at(self, name: str) -> str:
        return f"{self.root}/{name}"

    def shown(self, name: str) -> str:
        """The path of a file as the user would write it."""
        return f"{self._place.rstrip('/')}/{name}"

    def exists(self, name: str) -> bool:
        """Raises UserError where that cannot be known: a bucket's server may be down."""
        try:
            return self.fs.get_file_info(self.at(name)).type != fs.FileType.NotFound
        except OSError as error:
            raise UserError(f"{self.shown(name)}: cannot be looked up ({_line(error)}); {REACHABLE}") from None

    def files(self, suffixes: Sequence[str], under: str = "") -> list[tuple[str, int]]:
        """Names, sorted, and sizes of the files below `under`, hidden ones left out. Raises UserError where there is no such folder."""
        base, shown = (self.at(under), self.shown(under)) if under else (self.root, self._place)
        try:
            found = self.fs.get_file_info(fs.FileSelector(base, recursive=True))
        except FileNotFoundError:
            raise UserError(f"{shown}: no such directory; set the source's path to where it lies") from None
        except OSError as error:
            raise UserError(f"{shown}: cannot be listed ({_line(error)}); {REACHABLE}") from None
        names = [(info.path[len(self.root) + 1 :], info.size) for info in found if info.type == fs.FileType.File]
        return sorted((name, size) for name, size in names if name.lower().endswith(tuple(suffixes)) and "/." not in f"/{name}")

    def read(self, name: str) -> bytes:
        """Raises FileNotFoundError or OSError."""
        with self.fs.open_input_file(self.at(name)) as opened:
            return opened.read()

    def open(self, name: str) -> pa.NativeFile:
        """A file to read from. Raises UserError where there is none."""
        try:
            return self.fs.open_input_file(self.at(name))
        except FileNotFoundError:
            raise UserError(f"{self.shown(name)}: no such file; set the source's path to where it lies") from None
        except OSError as error:
            raise UserError(f"{self.shown(name)}: cannot be read ({_line(error)})") from None

    def delete(self, name: str) -> None:
        """Nothing happens where there is no such file."""
        try:
            self.fs.delete_file(self.at(name))
        except FileNotFoundError:
            pass
        except OSError as error:
            raise UserError(f"{self.shown(name)}: cannot be deleted ({_line(error)}); {REACHABLE}") from None

    def move(self, name: str, to: str) -> None:
        """Whatever was there before is replaced."""
        try:
            self.fs.move(self.at(name), self.at(to))
        except OSError as error:
            raise fault_of_writing(self.shown(to), error) from None

    def write(self, name: str, content: bytes) -> None:
        """The old file or the whole new one, never half of it."""
        with Replacing(self, name) as opened:
            opened.write(content)


class Replacing:
    """A file that appears under its name when it is complete; where writing fails, the old one stays.

    It is written beside its place and then moved there: on a disk by a rename, in a bucket by a copy that the server makes
    (S3: of 5 GB at most). A bucket's stream cannot be given up: whatever was sent becomes a file when it is closed, which
    therefore never has the final name.
    """

    def __init__(self, folder: Folder, name: str) -> None:
        self._folder, self._name = folder, name
        self._shown = folder.shown(name)

    def __enter__(self) -> pa.NativeFile:
        target = self._folder.at(self._name)
        try:
            if isinstance(self._folder.fs, fs.LocalFileSystem):
                self._folder.fs.create_dir(target.rsplit("/", 1)[0], recursive=True)
            self._opened = self._folder.fs.open_output_stream(f"{target}.part")
        except OSError as error:
            if error.errno in FULL:
                raise fault_of_writing(self._shown, error) from None
            raise UserError(f"{self._shown}: cannot be written ({_line(error)}); give a place that can be written to") from None
        return self._opened

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        target = self._folder.at(self._name)
        try:
            self._opened.close()  # what was held back is written now, for which there may be no space
            if error is None:
                self._folder.fs.move(f"{target}.part", target)
                return
        except OSError as fault:
            error = error or fault
        with suppress(OSError):
            self._folder.fs.delete_file(f"{target}.part")
        if isinstance(error, OSError):
            raise fault_of_writing(self._shown, error) from None


def fault_of_writing(shown: str, error: OSError) -> UserError:
    remedy = "see that there is space and that the place can be reached, or lower records_per_part, and start again"
    return (NoSpace if error.errno in FULL else UserError)(f"{shown}: cannot be written ({_line(error)}); {remedy}")


class Shard:
    """One Parquet file under construction: rows are held until they fill a row group. Use as a context manager."""

    def __init__(self, folder: Folder, name: str, table: str) -> None:
        self._schema = schema.TABLES[table]
        self._replacing = Replacing(folder, name)
        self._rows: list[Mapping[str, Any]] = []
        self._held = 0
        self.count = 0

    def __enter__(self) -> Shard:
        self._writer = pq.ParquetWriter(self._replacing.__enter__(), self._schema, compression="zstd")
        return self

    def add(self, row: Mapping[str, Any], size: int) -> None:
        """`size`: bytes of the images in it."""
        self._rows.append(row)
        self._held += size
        self.count += 1
        if self._held > ROW_GROUP_BYTES or len(self._rows) >= 10_000:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
        self._rows, self._held = [], 0

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            if error is None:
                self._flush()
            self._writer.close()
        except OSError as fault:
            error = error or fault
        self._replacing.__exit__(kind, error, trace)


class StoredTable:
    """A built table, or the rows of it that are in one split, or have one purpose: read in order, or at any place.

    Raises UserError where there is no such table, none of such rows, or a file of another schema.
    """

    def __init__(self, path: str, table: str, split: str = "*", purpose: str = "*") -> None:
        self._folder, self._table = Folder(path), table
        places = f"{table}/*.parquet" if table == "rejects" else f"{table}/{split}/{purpose}/*.parquet"
        self.files = [name for name, _ in self._folder.files((".parquet",), table) if fnmatch(name, places)]
        if not self.files:
            raise UserError(f"{self._folder.shown(places)}: no such file; make some with `omr-ray data build`")
        self._kept: OrderedDict[tuple[str, int], pa.Table] = OrderedDict()

    def rows(self, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
        """All rows in a fixed order, some at a time."""
        for name in self.files:
            with self._folder.open(name) as opened:
                for batch in self._checked(opened, name).iter_batches(batch_size=256, columns=columns):
                    yield from batch.to_pylist()

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Row `index`; a few row groups are kept, so neighbours cost little."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        place = bisect_right(self._ends, index)
        first = self._ends[place - 1] if place else 0
        return self._group(*self._groups[place]).slice(index - first, 1).to_pylist()[0]

    def take(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """The rows `indices`, in that order; every row group among them is read once."""
        found: dict[int, dict[str, Any]] = {}
        for index in sorted(set(indices)):
            found[index] = self[index]
        return [found[index] for index in indices]

    @cached_property
    def _groups(self) -> list[tuple[str, int]]:
        return [group for group, _ in self._sizes]

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(size for _, size in self._sizes))

    @cached_property
    def _sizes(self) -> list[tuple[tuple[str, int], int]]:
        """(file, number of its row group) and the rows in it."""
        found = []
        for name in self.files:
            with self._folder.open(name) as opened:
                metadata = self._checked(opened, name).metadata
                found += [((name, group), metadata.row_group(group).num_rows) for group in range(metadata.num_row_groups)]
        return found

    def _group(self, name: str, group: int) -> pa.Table:
        if (name, group) in self._kept:
            self._kept.move_to_end((name, group))
            return self._kept[name, group]
        with self._folder.open(name) as opened:
            found = self._kept[name, group] = self._checked(opened, name).read_row_group(group)
        while len(self._kept) > 1 and sum(table.nbytes for table in self._kept.values()) > KEPT_BYTES:
            self._kept.popitem(last=False)
        return found

    def _checked(self, opened: pa.NativeFile, name: str) -> pq.ParquetFile:
        try:
            file = pq.ParquetFile(opened)
        except (pa.ArrowInvalid, OSError) as error:
            raise UserError(f"{self._folder.shown(name)}: is damaged ({_line(error)}); build the data again") from None
        schema.check(file.schema_arrow, self._table, self._folder.shown(name))
        return file


def read_json(folder: Folder, name: str) -> Any:
    """A small JSON file. Raises UserError that names it."""
    with folder.open(name) as opened:
        try:
            return json.loads(opened.read())
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise UserError(f"{folder.shown(name)}: is not JSON ({_line(error)}); mend it or leave the source out") from None


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
