"""`omr-ray data build`: sources to sharded Parquet, on Ray Data, so that a cluster does the same job on any number of rows.

    OUT/config.yaml  dialogues/{train,test}/*.parquet  preferences/{train,test}/*.parquet  rejects/*.parquet  parts/*.json  manifest.json

Every part of a source is one task, which writes files of its own and then a line in `parts/`: what is held in memory is a
row group a task, whatever the number of rows. A build that was cut off goes on with the parts that have no such line, and
the manifest, with all counts, is written last.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import ray
import yaml

from omr_ray.config.data import DataConfig
from omr_ray.config.reading import dump
from omr_ray.data.rows import Counts, importer_of, write_part
from omr_ray.data.splits import Shares
from omr_ray.data.store import Folder, read_json
from omr_ray.progress import Counting
from omr_ray.types import UserError


def build(config: DataConfig, out: str) -> dict[str, Any]:
    """Build, or go on with a build, below `out`; returns the manifest. Raises UserError for a source that yields nothing.

    Ray must be initialised. `out` must be reachable from every node.
    """
    folder = Folder(out)
    _claim(folder, config)
    todo = list(_parts(config))
    done = {name for name, _ in folder.files((".json",), "parts")} if folder.exists("parts") else set()
    counts = Counts()
    with Counting(len(todo), "parts") as progress:
        for name in sorted(done & {item["name"] for item in todo}):
            counts.add(read_json(folder, name))
            progress.advance(_figures(counts))
        for result in _run(config, [item for item in todo if item["name"] not in done], out):
            counts.add(result)
            progress.advance(_figures(counts))
    _refuse_barren(config, counts)
    manifest = {"name": config.name, "parts": len(todo), **counts.to_json()}
    folder.write("manifest.json", json.dumps(manifest, indent=1).encode())
    return manifest


def _run(config: DataConfig, todo: list[dict[str, Any]], out: str) -> Iterator[dict[str, Any]]:
    """The counts of every part, in any order, each when it is written."""
    if not todo:
        return
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # the progress is ours to say, and a failed task is raised
    context.execution_options.preserve_order = False
    dumped = dump(config)

    def work(item: dict[str, Any]) -> dict[str, Any]:
        told = DataConfig.model_validate(yaml.safe_load(dumped))
        counts = write_part(told, item["source"], item["number"], json.loads(item["part"]), out)
        Folder(out).write(item["name"], json.dumps(counts).encode())  # last: the part is done
        return {"counts": json.dumps(counts)}

    dataset = ray.data.from_items(todo, override_num_blocks=len(todo)).map(work, num_cpus=1)
    for row in dataset.iter_rows():
        yield json.loads(row["counts"])


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
