"""A disk that gets full: what is asked for then is refused or failed in so many words, nothing is half kept, and it goes on afterwards."""

import io
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from omr_ray.data.store import Folder
from omr_ray.dialogue.engine import NO_SPACE, Picture
from omr_ray.serving.pictures import PictureStore
from omr_ray.serving.store.database import Database
from omr_ray.types import NoSpace
from tests.postgres_server import postgres_server
from tests.small_disk import small_disk
from tests.web_service import asked, ended, say, shaped, web_service

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def disk(tmp_path):
    with small_disk(tmp_path / "disk") as made:
        yield made


def png(side=32, seed=0):
    """Of noise: it cannot be made smaller."""
    held = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)).save(held, "PNG")
    return held.getvalue()


def full(answer):
    told = shaped(answer, 507)
    assert (told["code"], told["type"]) == ("no_space", "server_error") and "operator" in told["message"]
    assert "disk" not in answer.text and "sqlite" not in answer.text  # where it is full is nobody's business


def test_a_file_or_a_picture_that_has_no_space_leaves_nothing(disk):
    folder, pictures = Folder(disk.path), PictureStore(str(disk.path))
    picture = Picture(image=np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8), latents=np.zeros((4, 100, 100), np.float32))
    kept = pictures.put(Picture(image=np.zeros((8, 8, 3), np.uint8)))
    disk.fill()
    before = disk.files()
    with pytest.raises(NoSpace, match=r"a/b: cannot be written \(.*No space left on device.*\); see that there is space"):
        folder.write("a/b", b"\0" * 100_000)
    with pytest.raises(NoSpace):
        pictures.put(picture)
    assert disk.files() == before
    disk.free()
    with (disk.path / "filler").open("wb") as filler:  # room for the latents, and not for the image
        filler.write(b"\0" * (8 * 2**20 - 220_000))
    before = disk.files()
    with pytest.raises(NoSpace):
        pictures.put(Picture(image=np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8), latents=picture.latents))
    assert disk.files() == before
    disk.free()
    assert pictures.get(pictures.put(picture)).latents.shape == (4, 100, 100) and pictures.get(kept).image.shape == (8, 8, 3)


def test_images_that_have_no_space(tmp_path, disk):
    """The database has a disk of its own."""
    with web_service(tmp_path, images=str(disk.path / "images")) as service, service.client("ann") as ann:
        id = ann.post("/v1/sessions", json={}).json()["id"]
        first = say(ann, id, "a red dress")
        disk.fill()
        before, sessions = disk.files(), len(ann.get("/v1/sessions").json()["data"])
        failed = say(ann, id, "now blue")
        assert (failed["status"], failed["error"], failed["image"]) == ("failed", NO_SPACE, None)
        full(ann.post("/v1/images/generations", json={"prompt": "a blue coat", "seed": 5}))
        with ann.stream("POST", "/v1/images/generations", json={"prompt": "a blue coat", "seed": 5, "stream": True}) as stream:
            told = stream.read().decode()
        assert "event: error" in told and '"code":"no_space"' in told
        edit = {"data": {"prompt": "a blue coat", "seed": "5"}, "files": {"image": ("x.png", png())}, "headers": {"Idempotency-Key": "k"}}
        full(ann.post("/v1/images/edits", **edit))
        assert disk.files() == before and len(ann.get("/v1/sessions").json()["data"]) == sessions
        assert ann.get(f"/v1/images/{first['image']}").status_code == 200  # what is there can be had
        disk.free()
        assert say(ann, id, "now blue")["status"] == "done"
        assert ann.post("/v1/images/generations", json={"prompt": "a blue coat", "seed": 5}).status_code == 200


def test_a_database_that_has_no_space(tmp_path, disk):
    """SQLite; the images have a disk of their own."""
    with web_service(tmp_path, database=f"sqlite:///{disk.path}/service.db") as service, service.client("ann") as ann:
        wanted = say(ann, ann.post("/v1/sessions", json={}).json()["id"], "a red dress")
        id = ann.post("/v1/sessions", json={}).json()["id"]
        service.models.go.clear()
        number = asked(ann, id, "a red dress")
        while ann.get(f"/v1/sessions/{id}/rounds/{number}").json()["prompt"] is None:
            time.sleep(0.05)
        disk.fill()
        service.models.go.set()  # it gets done, and cannot be stored
        new = {"json": {"title": "t" * 100}, "headers": {"Idempotency-Key": "new"}}
        full(ann.post("/v1/sessions", **new))
        sessions = ann.get("/v1/sessions").json()["data"]
        assert len(sessions) == 2 and ann.get(f"/v1/sessions/{id}").status_code == 200  # what is there can be had
        time.sleep(2)
        disk.free()
        round_ = ended(ann, id, number)
        assert (round_["status"], round_["image"], round_["scores"]) == ("done", wanted["image"], wanted["scores"])
        made = [ann.post("/v1/sessions", **new) for _ in range(2)]
        assert [answer.status_code for answer in made] == [201, 201] and made[0].json() == made[1].json()
        assert len(ann.get("/v1/sessions").json()["data"]) == 3
    found = Database(service.config.database)
    with found.read() as transaction:
        assert transaction.connection().exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
    found.close()


def test_a_postgresql_database_that_has_no_space(tmp_path):
    # The server's user may not look into a directory of pytest's.
    with tempfile.TemporaryDirectory(dir="/tmp") as open_, postgres_server() as server, small_disk(Path(open_) / "disk", mib=24) as disk:
        Path(open_).chmod(0o755)
        place = disk.path / "space"
        place.mkdir()
        server.own(place)
        server.run(f"CREATE TABLESPACE small LOCATION '{place}'")
        server.run("CREATE DATABASE small TABLESPACE small")
        with web_service(tmp_path, database=f"{server.url}/small") as service, service.client("ann") as ann:
            id = ann.post("/v1/sessions", json={}).json()["id"]
            disk.fill()
            answers = [ann.post("/v1/sessions", json={"title": "t" * 200}) for _ in range(400)]
            refused = [answer for answer in answers if answer.status_code != 201]
            assert refused  # a page of a table holds some more
            for answer in refused:
                full(answer)
            kept = ann.get("/v1/sessions", params={"limit": 100})
            assert kept.status_code == 200
            disk.free()
            assert say(ann, id, "a red dress")["status"] == "done"


def test_an_upload_that_has_no_space_while_it_comes_in(tmp_path, disk, monkeypatch):
    """A large one is put on the disk of temporary files."""
    with web_service(tmp_path) as service, service.client("ann") as ann:
        monkeypatch.setattr(tempfile, "tempdir", str(disk.path))
        disk.fill()
        edit = {"data": {"prompt": "a blue coat"}, "files": {"image": ("x.png", png(side=1000))}}
        full(ann.post("/v1/images/edits", **edit))
        disk.free()
        assert ann.post("/v1/restore", files={"image": ("x.png", png(side=1000))}).status_code == 400  # it is read: it has no recipe
