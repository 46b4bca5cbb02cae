"""Ids of several parts: which row stays, and a part that is done again without the others."""

import json

import pyarrow as pa

from omr_ray.config.data import DataConfig
from omr_ray.data import duplicates, rows
from omr_ray.data.splits import Shares
from omr_ray.data.store import Folder, StoredTable


def test_of_equal_keys_all_but_that_of_the_first_part_are_later():
    keys = pa.table({"key": ["d/a", "d/b", "d/a", "p/a", "d/a"], "part": ["01-x-2", "00-y-7", "00-y-9", "00-y-7", "01-x-0"]})
    assert duplicates.later(keys).to_pylist() == [{"key": "d/a", "part": "01-x-0"}, {"key": "d/a", "part": "01-x-2"}]
    assert duplicates.later(keys.slice(0, 2)).num_rows == duplicates.later(keys.slice(0, 0)).num_rows == 0


def test_what_a_part_leaves_out_is_noted_beside_what_it_left_out_before(tmp_path):
    folder, name = Folder(str(tmp_path)), "parts/00-x-000001.json"
    assert duplicates.left_out(folder, name) == set()
    duplicates.leave_out(folder, name, ["dialogues/b"])
    duplicates.leave_out(folder, name, ["dialogues/a", "dialogues/b"])
    assert duplicates.left_out(folder, name) == {"dialogues/a", "dialogues/b"}
    assert json.loads((tmp_path / "duplicates/00-x-000001.json").read_text()) == ["dialogues/a", "dialogues/b"]


def test_a_part_is_done_again_without_rows_and_files_that_became_empty_are_gone(tmp_path):
    config = DataConfig(name="test", sources=[{"kind": "atelier", "dialogues": 5, "pairs": 3}], filters={"min_side": 16})
    folder, name, part = Folder(str(tmp_path)), "parts/00-atelier-000000.json", {"what": "dialogues", "start": 0, "stop": 5}
    before = rows.write_part(config, 0, 0, part, str(tmp_path))
    folder.write(name, json.dumps(before).encode())
    keys = duplicates.keys_of(folder, name)
    held_out = "dialogues/heldout-0-000004"  # the only row of the test split
    assert sorted(keys["key"].to_pylist()) == [held_out, *(f"dialogues/train-0-00000{n}" for n in range(4))]
    assert keys["part"].to_pylist() == [name] * 5

    after = rows.write_part(config, 0, 0, part, str(tmp_path), {held_out, "preferences/nothing"})
    assert after["rejects"] == {"atelier/duplicate_id": 1} and sum(after["rows"].values()) == 4
    assert not [file for file in after["files"] if "/test/" in file]
    assert not list(tmp_path.glob("dialogues/test/*/*.parquet"))
    assert f"dialogues/{next(StoredTable(str(tmp_path), 'rejects').rows())['id']}" == held_out

    counts = rows.Counts()
    counts.add(before)
    counts.remove(before)
    counts.add(after)
    assert counts.to_json() == after


def test_a_row_that_was_rejected_takes_no_id(tmp_path):
    (tmp_path / "s").mkdir()
    record = {"id": "a", "prompt": "a dress", "images": ["0.png", "1.png"], "labels": [1, 0]}
    (tmp_path / "s/all.json").write_text(json.dumps([{**record, "prompt": "x" * 9999}, record, {**record, "id": " a"}]))
    source = {"kind": "json_preferences", "path": str(tmp_path / "s")}
    config = DataConfig(name="test", sources=[source], filters={"missing_images": "keep"})
    (part,) = rows.importer_of(config.sources[0], Shares()).parts(10)
    counts = rows.write_part(config, 0, 0, part, str(tmp_path / "out"))
    assert counts["rejects"] == {"json_preferences/duplicate_id": 1, "json_preferences/text_too_long": 1}
    assert sum(counts["rows"].values()) == 1


def test_places_of_two_sources_are_two_ids_and_names_are_one(tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "all.json").write_text(
            json.dumps([{"prompt": name, "images": ["0.png", "1.png"], "labels": [1, 0], **named} for named in ({}, {"id": "given"})])
        )
    sources = [{"kind": "json_preferences", "path": str(tmp_path / name)} for name in ("first", "second")]
    config = DataConfig(name="test", sources=sources, filters={"missing_images": "keep"})
    for index, source in enumerate(config.sources):
        (part,) = rows.importer_of(source, Shares()).parts(10)
        rows.write_part(config, index, 0, part, str(tmp_path / "out"))
    ids = sorted(row["id"] for row in StoredTable(str(tmp_path / "out"), "preferences").rows(["id"]))
    assert ids == ["00-json_preferences/all.json#0", "01-json_preferences/all.json#0", "given", "given"]
