"""`omr-ray data look`: how many rows of which source, split and kind a build holds, and a page with samples of each."""

from __future__ import annotations

import base64
import io
from collections import Counter
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image
from rich.console import Console
from rich.table import Table

from omr_ray.data.store import Folder, StoredTable
from omr_ray.types import UserError
from omr_ray.weights import write_atomic

SAMPLES = 6  # of every source and table
THUMBNAIL = 160  # pixels


def look(path: str, page: Path) -> dict[str, Any]:
    """Print the counts, write the page, return both. Raises UserError where `path` holds no build."""
    folder = Folder(path)
    tables = [table for table in ("dialogues", "preferences") if folder.exists(table)]
    if not tables:
        raise UserError(f"{path}: neither dialogues nor preferences in it; give what `omr-ray data build` wrote")
    counts = {table: _counted(path, table) for table in tables}
    rejects = (
        Counter((row["source"], row["reason"]) for row in StoredTable(path, "rejects").rows()) if folder.exists("rejects") else Counter()
    )
    _print(counts, rejects)
    samples = {table: _samples(path, table, {key[0] for key in counts[table]}) for table in tables}
    environment = jinja2.Environment(loader=jinja2.PackageLoader("omr_ray.data", "."), autoescape=True, undefined=jinja2.StrictUndefined)
    text = environment.get_template("look.html.j2").render(
        path=path, counts=counts, rejects=rejects, samples=samples, total=sum(sum(c.values()) for c in counts.values())
    )
    write_atomic(page, text.encode())
    return {
        "page": str(page),
        "rows": {table: {"/".join(key): count for key, count in sorted(counter.items())} for table, counter in counts.items()},
        "rejects": {"/".join(key): count for key, count in sorted(rejects.items())},
    }


def _counted(path: str, table: str) -> Counter[tuple[str, ...]]:
    """(source, split, purpose, kind) -> rows; the kind of a dialogue is its number of rounds."""
    columns = (
        ["source", "split", "purpose", "negative"]
        if table == "preferences"
        else ["source", "split", "purpose", "rounds.list.element.prompt"]
    )
    counter: Counter[tuple[str, ...]] = Counter()
    for row in StoredTable(path, table).rows(columns):
        kind = row["negative"] if table == "preferences" else f"{len(row['rounds'])} rounds"
        counter[row["source"], row["split"], row["purpose"], kind] += 1
    return counter


def _samples(path: str, table: str, sources: set[str]) -> dict[str, list[dict[str, Any]]]:
    """The first rows of every source, spread over its kinds, their images as small data addresses."""
    found: dict[str, list[dict[str, Any]]] = {source: [] for source in sorted(sources)}
    seen: Counter[tuple[str, object]] = Counter()
    for row in StoredTable(path, table).rows():
        kind = row["negative"] if table == "preferences" else len(row["rounds"])
        if len(found[row["source"]]) < SAMPLES and seen[row["source"], kind] < 2:
            seen[row["source"], kind] += 1
            found[row["source"]].append(_shown(row, table))
        if all(len(rows) >= SAMPLES for rows in found.values()):
            break
    return found


def _shown(row: dict[str, Any], table: str) -> dict[str, Any]:
    if table == "preferences":
        images = [("chosen", row["chosen"]), ("rejected", row["rejected"])]
        return {"title": row["prompt"], "under": row["negative"], "images": [(name, _thumbnail(image)) for name, image in images]}
    rounds = [(turn["utterance"], _thumbnail(turn["target"])) for turn in row["rounds"]]
    return {"title": row["intent"], "under": f"{row['split']}, {row['purpose']}", "images": rounds}


def _thumbnail(image: dict[str, Any] | None) -> str | None:
    if image is None:
        return None
    held = io.BytesIO()
    with Image.open(io.BytesIO(image["bytes"])) as opened:
        small = opened.convert("RGB")
        small.thumbnail((THUMBNAIL, THUMBNAIL))
        small.save(held, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(held.getvalue()).decode()


def _print(counts: dict[str, Counter[tuple[str, ...]]], rejects: Counter[tuple[str, str]]) -> None:
    console = Console(stderr=True)
    for table, counter in counts.items():
        shown = Table("source", "split", "purpose", "kind", "rows", title=f"{table}: {sum(counter.values())}")
        for key, count in sorted(counter.items()):
            shown.add_row(*key, str(count))
        console.print(shown)
    if rejects:
        shown = Table("source", "reason", "rows", title=f"rejected: {sum(rejects.values())}")
        for (source, reason), count in sorted(rejects.items()):
            shown.add_row(source, reason, str(count))
        console.print(shown)
