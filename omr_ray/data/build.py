"""`omr-ray data build`: sources to sharded Parquet, on Ray Data, so that a cluster does the same job on any number of rows.

    OUT/config.yaml  dialogues/{train,test}/*.parquet  preferences/{train,test}/*.parquet  rejects/*.parquet
        parts/*.json  duplicates/*.json  manifest.json

Every part of a source is one task, which writes files of its own and then a line in `parts/`: what is held in memory is a
row group a task, whatever the number of rows. When all are written, ids that several parts have are found, and every part
but the first that has one is done again without it. A build that was cut off goes on with the parts that have no line, and the
manifest, with all counts, is written last.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray
import yaml

from omr_ray.config.data import DataConfig
from omr_ray.config.reading import dump
from omr_ray.data import duplicates
from omr_ray.data.rows import Counts, importer_of, write_part
from omr_ray.data.splits import Shares
from omr_ray.data.store import Folder, read_json
from omr_ray.progress import Counting
from omr_ray.types import UserError

PARTS_PER_TASK = 64  # whose ids one task reads
SHUFFLED_BYTES = 64 * 2**20  # of ids that one task spreads by their hash


def build(config: DataConfig, out: str) -> dict[str, Any]:
    """Build, or go on with a build, below `out`; returns the manifest. Raises UserError for a source that yields nothing.

    Ray must be initialised. `out` must be reachable from every node.
    """
    folder = Folder(out)
    _claim(folder, config)
    parts = list(_parts(config))
    done = {name for name, _ in folder.files((".json",), "parts")} if folder.exists("parts") else set()
    todo = [item for item in parts if item["name"] not in done]
    if not todo and folder.exists("manifest.json"):
        return read_json(folder, "manifest.json")
    folder.delete("manifest.json")
    counts = Counts()
    with Counting(len(parts), "parts") as progress:
        for name in sorted(done & {item["name"] for item in parts}):
            counts.add(read_json(folder, name))
            progress.advance(_figures(counts))
        for result in _write(config, todo, out):
            counts.add(result)
            progress.advance(_figures(counts))
    _leave_out_duplicates(config, parts, counts, out)
    _refuse_barren(config, counts)
    manifest = {"name": config.name, "parts": len(parts), **counts.to_json()}
    folder.write("manifest.json", json.dumps(manifest, indent=1).encode())
    return manifest


def _write(config: DataConfig, todo: list[dict[str, Any]], out: str) -> Iterator[dict[str, Any]]:
    """The counts of every part, in any order, each when it is written."""
    if not todo:
        return
    dumped = dump(config)

    def work(item: dict[str, Any]) -> dict[str, Any]:
        told, folder = DataConfig.model_validate(yaml.safe_load(dumped)), Folder(out)
        left_out = duplicates.left_out(folder, item["name"])
        if left_out:
            folder.delete(item["name"])  # first: it is not done until its line is there again
        counts = write_part(told, item["source"], item["number"], json.loads(item["part"]), out, left_out)
        folder.write(item["name"], json.dumps(counts).encode())  # last: the part is done
        return {"counts": json.dumps(counts)}

    _prepare_ray()
    dataset = ray.data.from_items(todo, override_num_blocks=len(todo)).map(work, num_cpus=1)
    for row in _rows_of(dataset):
        yield json.loads(row["counts"])


def _leave_out_duplicates(config: DataConfig, parts: list[dict[str, Any]], counts: Counts, out: str) -> None:
    """Do those parts again that have a row whose id an earlier part has; `counts` follow."""
    if len(parts) < 2:
        return  # no part has an id twice
    items, again = {item["name"]: item for item in parts}, []
    for name, found in _with_duplicates(list(items), sum(counts.rows.values()), out):
        again.append(items[name])
        counts.remove(found)
    with Counting(len(again), "parts with duplicate ids") as progress:
        for result in _write(config, again, out):
            counts.add(result)
            progress.advance(_figures(counts))


def _with_duplicates(names: list[str], rows: int, out: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and counts of every part that has a row whose id an earlier part has; what it must leave out is noted by then.

    Two shuffles: keys that are equal come together to be compared, then those of one part to be noted. Where one process
    holds all keys it is done here: a shuffle takes seconds before the first row.
    """

    def read(batch: pa.Table) -> Iterator[pa.Table]:
        for name in batch["name"].to_pylist():
            yield duplicates.keys_of(Folder(out), name)

    def note(group: pa.Table) -> pa.Table:
        folder, name = Folder(out), group["part"][0].as_py()
        duplicates.leave_out(folder, name, group["key"].to_pylist())
        return pa.table({"name": [name], "counts": [json.dumps(read_json(folder, name))]})

    partitions = rows // duplicates.IDS_PER_TASK + 1
    if partitions == 1:
        found = duplicates.later(pa.concat_tables(read(pa.table({"name": names}))))
        for part in pc.unique(found["part"]):
            yield _row(note(found.filter(pc.equal(found["part"], part))).to_pylist()[0])
        return
    _prepare_ray()
    dataset = (
        ray.data.from_items([{"name": name} for name in names], override_num_blocks=-(-len(names) // PARTS_PER_TASK))
        .map_batches(read, batch_size=None, batch_format="pyarrow")
        .repartition(partitions, keys=["key"])
        .map_batches(duplicates.later, batch_size=None, batch_format="pyarrow")
        .groupby("part", num_partitions=partitions)
        .map_groups(note, batch_format="pyarrow")
    )
    yield from map(_row, _rows_of(dataset))


def _row(noted: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    return noted["name"], json.loads(noted["counts"])


def _prepare_ray() -> None:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # the progress is ours to say, and a failed task is raised
    context.execution_options.preserve_order = False
    context.raise_original_map_exception = True
    context.shuffle_input_batch_bytes = SHUFFLED_BYTES


def _rows_of(dataset: ray.data.Dataset) -> Iterator[dict[str, Any]]:
    """Its rows, each when it is made; a UserError of a task is raised as one."""
    try:
        yield from dataset.iter_rows()
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise UserError(str(error.cause).splitlines()[0]) from None  # Ray puts lines of its own behind it
        raise


def _parts(config: DataConfig) -> Iterator[dict[str, Any]]:
    shares = Shares(**config.split.model_dump())
    for index, source in enumerate(config.sources):
        importer = importer_of(source, shares)
        for number, part in enumerate(importer.parts(config.records_per_part)):
            name = f"parts/{index:02d}-{importer.name}-{number:06d}.json"
            yield {"source": index, "number": number, "part": json.dumps(part), "name": name}


def _claim(folder: Folder, config: DataConfig) -> None:
    """Write the config, or see that the one that lies there is the same."""
    if folder.exists("config.yaml"):
        with folder.open("config.yaml") as opened:
            if opened.read().decode() != dump(config):
                raise UserError(f"{folder.path}: holds data of another config (its config.yaml differs); give another --out, or remove it")
    else:
        folder.write("config.yaml", dump(config).encode())


def _refuse_barren(config: DataConfig, counts: Counts) -> None:
    fruitful = {name.split("/")[0] for name in counts.rows}
    for index, source in enumerate(config.sources):
        name = importer_of(source, Shares()).name
        if name not in fruitful:
            reasons = ", ".join(f"{key.split('/')[1]} {count}" for key, count in counts.rejects.most_common() if key.startswith(f"{name}/"))
            raise UserError(f"source {index} ({name}): not one row came of it; rejected: {reasons or 'nothing, it is empty'}; see rejects/")


def _figures(counts: Counts) -> str:
    return f"rows {sum(counts.rows.values())}  rejected {sum(counts.rejects.values())}"
