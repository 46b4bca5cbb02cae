"""`omr-ray data build` into a bucket, on a real S3-compatible server and a real Ray."""

import pytest

from omr_ray.config.data import DataConfig
from omr_ray.data.build import build
from omr_ray.data.look import look
from omr_ray.data.store import Folder, StoredTable
from omr_ray.types import UserError
from tests.s3_server import s3_server

CONFIG = {
    "name": "test",
    # The second source draws some of the first one's pairs again.
    "sources": [{"kind": "atelier", "dialogues": 6, "pairs": 12}, {"kind": "atelier", "pairs": 4}],
    "records_per_part": 6,
}


@pytest.fixture(scope="module")
def options():
    """The rest of a bucket's address: Ray's workers have no environment of this test."""
    with s3_server("bucket") as address:
        yield f"?endpoint_override={address}&scheme=http&region=us-east-1"


def contents(folder):
    return {name: folder.read(name) for name, _ in folder.files(("",))}


def test_a_build_in_a_bucket_is_that_of_a_disk_and_goes_on_where_it_stopped(tmp_path, options):
    config, out = DataConfig.model_validate(CONFIG), f"s3://test:test@bucket/atelier{options}"
    manifest = build(config, out)
    assert build(config, str(tmp_path / "disk")) == manifest
    before = contents(Folder(out))
    assert before == contents(Folder(str(tmp_path / "disk")))
    assert manifest["rejects"] == {"atelier/duplicate_id": 4} and manifest["parts"] == 4
    assert not [name for name in before if name.endswith(".part")]

    for name in ("parts/00-atelier-000001.json", "parts/01-atelier-000000.json", "manifest.json"):
        Folder(out).delete(name)
    assert build(config, out) == manifest and contents(Folder(out)) == before

    ids = [row["id"] for row in StoredTable(out, "preferences").rows(["id"])]
    assert sorted(ids) == [f"atelier-0-{n:09d}" for n in range(12)]
    told = look(out, tmp_path / "look.html")
    assert {table: sum(counts.values()) for table, counts in told["rows"].items()} == {"dialogues": 6, "preferences": 12}


def test_a_bucket_that_is_not_there_is_one_line(options):
    with pytest.raises(UserError, match=r"^s3://absent/x/config.yaml: cannot be written \(.*NO_SUCH_BUCKET.*\); give a place"):
        build(DataConfig.model_validate(CONFIG), f"s3://test:test@absent/x{options}")


def test_a_place_that_a_worker_cannot_write_to_is_one_line(tmp_path):
    (tmp_path / "dialogues").write_text("no directory")
    with pytest.raises(UserError, match=r"^[^\n]*dialogues/t[^\n]*.parquet: cannot be written \([^\n]*$") as caught:
        build(DataConfig.model_validate(CONFIG), str(tmp_path))
    assert type(caught.value) is UserError
