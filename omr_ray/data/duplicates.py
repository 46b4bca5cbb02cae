"""Ids that occur more than once in a table, across parts and sources: the row of the first part stays.

The first by name, and names follow the order of the sources, and of the parts in them; timing decides nothing. Ids of one
part are compared while it is written (`rows.py`). Those of several are when all are written: they come together by their
hash (`build.py`), and a process holds about `IDS_PER_TASK` of them. What a part has to leave out is noted, for good:
a part that is done again, after a crash, leaves out the same.

    duplicates/NAME.json    ["preferences/ID", ...]
"""

from __future__ import annotations

import json
from collections.abc import Iterable

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from omr_ray.data.store import Folder, read_json

IDS_PER_TASK = 500_000  # about how many one process sorts at a time


def key_of(table: str, id_: str) -> str:
    """What must be unique in a build. Example: key_of("dialogues", "000001") == "dialogues/000001"."""
    return f"{table}/{id_}"


def keys_of(folder: Folder, name: str) -> pa.Table:
    """Columns key and part: the keys of all rows of a part, beside its name (that of its line, "parts/NAME.json")."""
    keys = [pa.chunked_array([[]], pa.string())]
    for file in read_json(folder, name)["files"]:
        table = file.split("/")[0]
        if table != "rejects":
            with folder.open(file) as opened:
                ids = pq.read_table(opened, columns=["id"])["id"]
            keys.append(pc.binary_join_element_wise(table, ids, "/"))
    key = pa.chunked_array([chunk for column in keys for chunk in column.chunks], pa.string())
    return pa.table({"key": key, "part": pa.repeat(name, len(key))})


def later(keys: pa.Table) -> pa.Table:
    """Of the rows with one key all but that of the first part by name. `keys` must hold all rows of every key in it."""
    keys = keys.select(["key", "part"]).sort_by([("key", "ascending"), ("part", "ascending")]).combine_chunks()
    key = keys["key"].combine_chunks()
    return keys.slice(1).filter(pc.equal(key[1:], key[:-1])) if len(key) else keys


def leave_out(folder: Folder, name: str, keys: Iterable[str]) -> None:
    """Note that part `name` must not have the rows `keys`, beside what it leaves out already."""
    folder.write(_list(name), json.dumps(sorted(left_out(folder, name).union(keys))).encode())


def left_out(folder: Folder, name: str) -> frozenset[str]:
    return frozenset(read_json(folder, _list(name))) if folder.exists(_list(name)) else frozenset()


def _list(name: str) -> str:
    return f"duplicates/{name.rsplit('/', 1)[-1]}"
