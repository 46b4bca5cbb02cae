"""`omr-ray data build` on a real Ray cluster: exact counts, a build that goes on, and faults that are one line."""

import json
from pathlib import Path

import pytest

from omr_ray.config.data import DataConfig
from omr_ray.data.build import build
from omr_ray.data.look import look
from omr_ray.data.store import StoredTable
from omr_ray.types import UserError

DATA = Path(__file__).parents[1] / "data"
SOURCES = [
    {"kind": "fashioniq", "path": str(DATA / "fashioniq")},
    {"kind": "imagereward", "path": str(DATA / "imagereward")},
    {"kind": "photographs", "path": str(DATA / "clothing"), "license": "CC0-1.0"},
    {"kind": "atelier", "dialogues": 10, "pairs": 30},
]


def config(**changes):
    return DataConfig.model_validate(
        {
            "name": "test",
            "sources": SOURCES,
            "filters": {"missing_images": "keep", "max_style_words": 50},
            "records_per_part": 16,
            **changes,
        }
    )


def test_a_build_counts_every_row_and_goes_on_where_it_stopped(tmp_path):
    out = tmp_path / "out"
    manifest = build(config(), str(out))
    rows = {source: sum(n for key, n in manifest["rows"].items() if key.startswith(f"{source}/")) for source in ("imagereward", "atelier")}
    assert rows == {"imagereward": 43, "atelier": 40}
    assert manifest["rejects"]["imagereward/tie"] == 2 and manifest["rejects"]["fashioniq/text_missing"] == 1
    assert manifest["pictures"]["photographs"] == 24
    assert sum(1 for table in ("dialogues", "preferences") for _ in StoredTable(str(out), table).rows()) == sum(manifest["rows"].values())
    assert {row["license"] for row in StoredTable(str(out), "dialogues").rows() if row["source"] == "photographs"} == {"CC0-1.0"}

    before = {file: file.read_bytes() for file in sorted(out.rglob("*.parquet"))}
    victims = sorted((out / "parts").iterdir())[::3]
    for file in [*victims, out / "manifest.json"]:
        file.unlink()
    kept = {file: file.stat().st_mtime_ns for file in before}
    assert build(config(), str(out)) == manifest
    assert {file: file.read_bytes() for file in sorted(out.rglob("*.parquet"))} == before
    again = [file for file, time in kept.items() if file.stat().st_mtime_ns != time]
    assert again and {file.stem for file in again} == {file.stem for file in victims if any(file.stem in str(other) for other in before)}

    with pytest.raises(UserError, match="holds data of another config"):
        build(config(records_per_part=5), str(out))

    told = look(str(out), tmp_path / "look.html")
    assert sum(sum(table.values()) for table in told["rows"].values()) == sum(manifest["rows"].values())
    page = (tmp_path / "look.html").read_text()
    assert page.count("data:image/jpeg;base64,") > 20 and "atelier" in page and "no image" in page


def written(path, files, ids):
    """A source of preferences: `files` files with as many pairs as there are `ids`, which say where they stand."""
    path.mkdir()
    for file in range(files):
        records = [
            {"id": id_.format(file), "prompt": f"{path.name} {file} {n}", "images": ["0.png", "1.png"], "labels": [1, 0]}
            for n, id_ in enumerate(ids)
        ]
        (path / f"{file}.json").write_text(json.dumps(records))
    return {"kind": "json_preferences", "path": str(path)}


@pytest.mark.parametrize("partitions", [1, 3])
def test_of_rows_with_one_id_the_first_part_of_the_first_source_keeps_its_own(tmp_path, monkeypatch, partitions):
    monkeypatch.setattr("omr_ray.data.duplicates.IDS_PER_TASK", 10 if partitions == 3 else 1000)
    sources = [written(tmp_path / "a", 4, ["a{}", "both", "c{}"]), written(tmp_path / "b", 4, ["c{}", "b{}", "a{}"])]
    settings, out = config(sources=sources, records_per_part=3), tmp_path / "out"
    manifest = build(settings, str(out))
    found = {row["id"]: row["prompt"] for row in StoredTable(str(out), "preferences").rows(["id", "prompt"])}
    kept = {f"{id_}{n}": f"a {n} {place}" for n in range(4) for id_, place in (("a", 0), ("c", 2))}
    assert found == kept | {"both": "a 0 1"} | {f"b{n}": f"b {n} 1" for n in range(4)}
    assert manifest["rejects"] == {"json_preferences/duplicate_id": 3 + 8} and sum(manifest["rows"].values()) == len(found) == 13
    rejects = [(row["id"], row["reason"]) for row in StoredTable(str(out), "rejects").rows()]
    assert sorted(rejects) == sorted((id_, "duplicate_id") for id_ in ["both"] * 3 + [f"{id_}{n}" for n in range(4) for id_ in "ac"])

    before = {file: file.read_bytes() for file in sorted(out.rglob("*.parquet"))}
    assert sorted(manifest["files"]) == [str(file.relative_to(out)) for file in before]
    for name in ("parts/00-json_preferences-000000.json", "parts/01-json_preferences-000002.json", "manifest.json"):
        (out / name).unlink()  # a part that keeps rows, and one that leaves some out
    assert build(settings, str(out)) == manifest
    (out / "manifest.json").unlink()
    for file in (out / "duplicates").iterdir():
        file.unlink()
    (out / "parts/01-json_preferences-000001.json").unlink()  # as if it had been cut off before duplicates were looked for
    assert build(settings, str(out)) == manifest
    assert {file: file.read_bytes() for file in sorted(out.rglob("*.parquet"))} == before


def test_a_source_of_which_nothing_comes_is_one_line(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s/all.json").write_text(json.dumps([{"prompt": "a", "images": ["0.png", "1.png"], "labels": [1, 0]}]))
    settings = config(sources=[{"kind": "json_preferences", "path": str(tmp_path / "s")}], filters={})
    with pytest.raises(UserError, match=r"source 0 \(json_preferences\): not one row came of it; rejected: image_missing 1"):
        build(settings, str(tmp_path / "out"))
