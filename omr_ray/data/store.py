"""Files of the data, here or in a bucket: local paths, s3:// and gs:// alike (pyarrow.fs), written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from omr_ray.data import schema
from omr_ray.types import UserError

ROW_GROUP_BYTES = 32 * 2**20  # what a writer holds, and what a reader has to: rows carry images


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

    def at(self, name: str) -> str:
        return f"{self.root}/{name}"

    def shown(self, name: str) -> str:
        """The path of a file as the user would write it."""
        return f"{self.path.rstrip('/')}/{name}"

    def exists(self, name: str) -> bool:
        return self.fs.get_file_info(self.at(name)).type != fs.FileType.NotFound

    def files(self, suffixes: Sequence[str], under: str = "") -> list[tuple[str, int]]:
        """Names, sorted, and sizes of the files below `under`, hidden ones left out. Raises UserError where there is no such folder."""
        base = self.at(under) if under else self.root
        try:
            found = self.fs.get_file_info(fs.FileSelector(base, recursive=True))
        except FileNotFoundError:
            raise UserError(
                f"{self.shown(under) if under else self.path}: no such directory; set the source's path to where it lies"
            ) from None
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

    def write(self, name: str, content: bytes) -> None:
        """The old file or the whole new one, never half of it."""
        with Replacing(self, name) as opened:
            opened.write(content)

    def remove(self, name: str) -> None:
        if self.exists(name):
            self.fs.delete_file(self.at(name))


class Replacing:
    """A file that appears under its name when it is complete; where writing fails, the old one stays.

    On a disk it is written beside its place and renamed; on a bucket it appears when the upload ends. A bucket closes a
    stream that is given up on, so what came of it is deleted.
    """

    def __init__(self, folder: Folder, name: str) -> None:
        self._folder, self._target = folder, folder.at(name)
        self._local = isinstance(folder.fs, fs.LocalFileSystem)
        self._path = f"{self._target}.part" if self._local else self._target
        self._shown = folder.shown(name)

    def __enter__(self) -> pa.NativeFile:
        try:
            if self._local:
                self._folder.fs.create_dir(self._target.rsplit("/", 1)[0], recursive=True)
            self._opened = self._folder.fs.open_output_stream(self._path)
        except OSError as error:
            raise UserError(f"{self._shown}: cannot be written ({_line(error)}); give a directory that can be written to") from None
        return self._opened

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            if error is None:
                self._opened.close()
                if self._local:
                    self._folder.fs.move(self._path, self._target)
            else:
                self._opened.close()
                self._folder.fs.delete_file(self._path)
        except OSError as fault:
            raise UserError(f"{self._shown}: cannot be written ({_line(fault)}); free some space and start again") from None
        if isinstance(error, OSError):
            raise UserError(f"{self._shown}: cannot be written ({_line(error)}); free some space and start again") from None


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


def read_rows(path: str, table: str, *, columns: Sequence[str] | None = None, **equal: str) -> Iterator[dict[str, Any]]:
    """Rows of a built table below `path`, a row group at a time, where columns equal what is given (split="train").

    Raises UserError for a file of another schema, or where there is none.
    """
    folder = Folder(path)
    names = [name for name, _ in folder.files((".parquet",), table)]
    if not names:
        raise UserError(f"{folder.shown(table)}: no Parquet file in it; make some with `omr-ray data build`")
    for name in names:
        with folder.open(name) as opened:
            file = pq.ParquetFile(opened)
            schema.check(file.schema_arrow, table, folder.shown(name))
            wanted = None if columns is None else [*columns, *(key for key in equal if key not in columns)]
            for batch in file.iter_batches(batch_size=256, columns=wanted):
                for row in batch.to_pylist():
                    if all(row[key] == value for key, value in equal.items()):
                        yield row


def read_json(folder: Folder, name: str) -> Any:
    """A small JSON file. Raises UserError that names it."""
    with folder.open(name) as opened:
        try:
            return json.loads(opened.read())
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise UserError(f"{folder.shown(name)}: is not JSON ({_line(error)}); mend it or leave the source out") from None


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
