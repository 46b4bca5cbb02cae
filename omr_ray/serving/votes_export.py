"""`omr-ray votes export`: what users and annotators have judged as the preference pairs of data/schema.py, images inside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any, get_args

from omr_ray.config.serve import ServeConfig
from omr_ray.data import filters
from omr_ray.data.splits import Purpose, Shares, Split, place_of
from omr_ray.data.store import Folder, Shard
from omr_ray.serving.judged import Judged, judged
from omr_ray.serving.label_studio import write_tasks
from omr_ray.serving.pictures import PictureStore, to_png
from omr_ray.serving.store.database import Database

FILE = "votes.parquet"  # beside what `data build` may have written to the same place


def export(config: ServeConfig, out: Path, label_studio: Path | None = None) -> dict[str, Any]:
    """Write the pairs below OUT/preferences and, where it is wanted, everything for Label Studio; returns counts by what became of it.

    A file that an earlier export wrote to the same place is replaced.
    """
    database, pictures = Database(config.database), PictureStore(config.images)
    database.migrate()
    counts: Counter[str] = Counter(dict.fromkeys(("pairs", "tie", "both_bad", "image_missing"), 0))
    with ExitStack() as stack:
        stack.callback(database.close)
        folder, shards = Folder(str(out)), dict[str, Shard]()
        for row in _rows(judged(database), pictures, counts):
            name = f"preferences/{row['split']}/{row['purpose']}/{FILE}"
            if name not in shards:
                shards[name] = stack.enter_context(Shard(folder, name, "preferences"))
            shards[name].add(row, len(row["chosen"]["bytes"]) + len(row["rejected"]["bytes"]))
        for split, purpose in product(get_args(Split), get_args(Purpose)):
            if (name := f"preferences/{split}/{purpose}/{FILE}") not in shards:
                folder.delete(name)
        written = {} if label_studio is None else {"label_studio": write_tasks(database, pictures, label_studio)}
    return {"out": str(out), **counts, **written}


def _rows(found: list[Judged], pictures: PictureStore, counts: Counter[str]) -> Iterator[dict[str, Any]]:
    for one in found:
        if one.choice in ("tie", "both_bad"):
            counts[one.choice] += 1
            continue
        chosen, rejected = (one.left, one.right) if one.choice == "left" else (one.right, one.left)
        try:
            images = {"chosen": _image(pictures, chosen), "rejected": _image(pictures, rejected)}
        except FileNotFoundError:
            counts["image_missing"] += 1
            continue
        counts["pairs"] += 1
        place = place_of(one.prompt, Shares())
        origin = {"id": one.id, "source": one.source, "group": one.prompt, **asdict(place), "license": "unknown"}
        yield {**origin, "prompt": one.prompt, "negative": "ranked", **images}


def _image(pictures: PictureStore, address: str) -> dict[str, Any]:
    """An IMAGE of data/schema.py. Raises FileNotFoundError."""
    image = pictures.get(address).image
    height, width = image.shape[:2]
    everything = filters.Limits(max_prompt=0, max_style_words=0, min_side=1, max_pixels=width * height, min_sharpness=0.0)
    return asdict(filters.look(to_png(image), everything))
