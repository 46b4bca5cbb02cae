"""Votes out and in, through the command: Parquet that `data look` reads, and Label Studio's JSON there and back."""

import base64
import io
import json
import time

import numpy as np
import pytest
from PIL import Image

from omr_ray.cli import main
from omr_ray.data.filters import sharpness
from omr_ray.data.splits import Shares, place_of
from omr_ray.data.store import StoredTable
from omr_ray.dialogue.engine import Picture
from omr_ray.serving.pictures import PictureStore
from omr_ray.serving.store import sessions, votes
from omr_ray.serving.store.database import Database
from omr_ray.serving.store.tables import Pair

pytestmark = pytest.mark.timeout(600)
RNG = np.random.default_rng(0)
IMAGES = [RNG.integers(0, 256, (32, 48, 3), np.uint8) for _ in range(4)]


def config_at(place):
    where = {"database": f"sqlite:///{place}/service.db", "images": str(place / "images"), "adapters": str(place / "adapters")}
    place.mkdir(exist_ok=True)
    (place / "serve.yaml").write_text(json.dumps(where))  # JSON is YAML
    return place / "serve.yaml", Database(where["database"]), PictureStore(where["images"])


@pytest.fixture
def service(tmp_path):
    """Four votes between two rounds, two pairs of which one was judged, by two annotators."""
    config, database, pictures = config_at(tmp_path / "here")
    database.migrate()
    shown = [pictures.put(Picture(image=image, latents=np.zeros((1, 2, 2), np.float32))) for image in IMAGES]

    def painted(session):
        for prompt, image in (("a red dress", shown[0]), ("a blue dress", shown[1])):
            session = session.start(prompt, seed=1, strength=0.6, modality="picture")
            id = session.head
            session = session.begin(id).record(id, prompt=prompt).record(id, image=image).finish(id)
        return session

    with database.write() as transaction:
        id = sessions.create(transaction, "ann").session.id
        sessions.change(transaction, id, painted)
        for left, right, choice in ((1, 2, "left"), (2, 1, "left"), (1, 2, "tie"), (1, 2, "both_bad")):
            votes.vote(transaction, "ann", id, left=left, right=right, choice=choice)
        votes.put_up(transaction, [
            Pair(id=name, prompt="a coat", left=shown[2], right=shown[3], source="test", created_at=1.0) for name in ("p0", "p1")
        ])  # fmt: skip
        votes.annotate(transaction, "ann", "p0", choice="right", seconds=1.5, at=1_700_000_000.25)
        votes.annotate(transaction, "bob", "p0", choice="tie", seconds=2.5, at=1_700_000_001.0)
    return config, database


def command(capsys, *words):
    assert main([*map(str, words), "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def pixels(image):
    with Image.open(io.BytesIO(image["bytes"])) as opened:
        assert (opened.format, opened.size) == ("PNG", (image["width"], image["height"]))
        return np.array(opened.convert("RGB"))


def test_votes_become_preference_pairs_that_data_look_reads(service, tmp_path, capsys):
    config, _ = service
    out = tmp_path / "out"
    counts = command(capsys, "votes", "export", config, "--out", out)
    assert counts == {"out": str(out), "pairs": 3, "tie": 2, "both_bad": 1, "image_missing": 0}
    rows = {row["id"]: row for row in StoredTable(str(out), "preferences").rows()}
    assert set(rows) == {"vote-1", "vote-2", "annotation-p0-ann"}
    for id, source, prompt, chosen, rejected in [
        ("vote-1", "votes", "a blue dress", IMAGES[0], IMAGES[1]),  # of two prompts it is the later round's
        ("vote-2", "votes", "a blue dress", IMAGES[1], IMAGES[0]),
        ("annotation-p0-ann", "annotations", "a coat", IMAGES[3], IMAGES[2]),
    ]:
        row, place = rows[id], place_of(prompt, Shares())
        told = {"source": source, "group": prompt, "prompt": prompt, "negative": "ranked", "license": "unknown"}
        assert {key: row[key] for key in told} == told and (row["split"], row["purpose"]) == (place.split, place.purpose)
        for name, image in (("chosen", chosen), ("rejected", rejected)):
            assert (pixels(row[name]) == image).all()
            gray = np.asarray(Image.fromarray(image).convert("L"), np.float32)
            assert row[name]["sharpness"] == pytest.approx(sharpness(gray), rel=1e-6)
    found = command(capsys, "data", "look", out, "--out", tmp_path / "look.html")["rows"]["preferences"]
    assert sum(found.values()) == 3 and "data:image/jpeg" in (tmp_path / "look.html").read_text()
    assert command(capsys, "votes", "export", config, "--out", out)["pairs"] == 3  # again, to the same place: nothing doubles
    assert len(StoredTable(str(out), "preferences")) == 3


def test_label_studio_there_and_back_is_the_same(service, tmp_path, capsys):
    config, database = service
    file = tmp_path / "tasks.json"
    assert command(capsys, "votes", "export", config, "--out", tmp_path / "out", "--label-studio", file)["label_studio"] == 6
    tasks = {task["data"]["pair"]: task for task in json.loads(file.read_text())}
    assert tasks["vote-1"]["annotations"][0]["result"] == [
        {"from_name": "preference", "to_name": "left,right", "type": "pairwise", "value": {"selected": "left"}}
    ]
    assert tasks["vote-4"]["annotations"][0]["result"][0]["value"] == {"choices": ["both_bad"]} and tasks["p1"]["annotations"] == []
    assert file.with_suffix(".xml").read_text().count("<Pairwise") == 1

    other, elsewhere, pictures = config_at(tmp_path / "there")
    counts = command(capsys, "votes", "import", other, file)
    assert (counts["pairs"], counts["known_pairs"], counts["annotations"], counts["skipped"]) == (6, 0, 6, 0) and counts["reasons"] == {}
    with database.read() as transaction:
        cast = {vote.id: vote.created_at for vote, *_ in votes.judged(transaction)}
    with elsewhere.read() as transaction:
        said = {(pair.id, found.annotator): (found.choice, found.seconds, found.created_at) for found, pair in votes.annotated(transaction)}
        pairs = {pair.id: pair for pair in votes.pairs(transaction)}
        assert votes.next_pair(transaction, "ann")[1:] == (5, 1)  # p1 is put up, and nobody has judged it
    assert said == {
        ("vote-1", "ann"): ("left", 0.0, pytest.approx(cast[1], abs=1e-5)),
        ("vote-2", "ann"): ("left", 0.0, pytest.approx(cast[2], abs=1e-5)),
        ("vote-3", "ann"): ("tie", 0.0, pytest.approx(cast[3], abs=1e-5)),
        ("vote-4", "ann"): ("both_bad", 0.0, pytest.approx(cast[4], abs=1e-5)),
        ("p0", "ann"): ("right", 1.5, 1_700_000_000.25),
        ("p0", "bob"): ("tie", 2.5, 1_700_000_001.0),
    }
    assert pairs["vote-2"].prompt == "a blue dress" and (pictures.get(pairs["vote-2"].left).image == IMAGES[1]).all()
    assert (pictures.get(pairs["p1"].right).image == IMAGES[3]).all() and pairs["p1"].source == "label_studio"

    again = command(capsys, "votes", "import", other, file)
    assert (again["pairs"], again["known_pairs"], again["annotations"]) == (0, 6, 6)
    back = tmp_path / "back.json"
    command(capsys, "votes", "export", other, "--out", tmp_path / "out2", "--label-studio", back)
    assert {task["data"]["pair"]: task["data"] for task in json.loads(back.read_text())} == {id: task["data"] for id, task in tasks.items()}
    rows = [
        {row["prompt"]: [row["chosen"]["bytes"], row["rejected"]["bytes"]]}
        for row in StoredTable(str(tmp_path / "out2"), "preferences").rows()
    ]
    same = [
        {row["prompt"]: [row["chosen"]["bytes"], row["rejected"]["bytes"]]}
        for row in StoredTable(str(tmp_path / "out"), "preferences").rows()
    ]
    assert sorted(rows, key=str) == sorted(same, key=str)


def png_address(image):
    held = io.BytesIO()
    Image.fromarray(image).save(held, "PNG")
    return "data:image/png;base64," + base64.b64encode(held.getvalue()).decode()


def test_what_label_studio_itself_makes_is_read_and_what_it_cannot_be_is_not(tmp_path, capsys):
    config, database, pictures = config_at(tmp_path / "here")
    good = {"prompt": "a \u202ered\u0000 coat", "left": png_address(IMAGES[0]), "right": png_address(IMAGES[1])}
    pairwise = {"id": "x", "type": "pairwise", "value": {"selected": "right"}, "from_name": "pw", "to_name": "l,r", "origin": "manual"}
    tie = {"type": "choices", "value": {"choices": ["tie"]}}

    def by(who, *results, **more):
        return {"id": 1, "completed_by": who, "result": list(results), "lead_time": 3.25, **more}

    annotations = [
        by(7, pairwise),
        by({"email": "eve@example.org"}, tie),
        by("../../etc", pairwise),
        by(8, pairwise, was_cancelled=True),
        by(9, pairwise, tie),  # two things at once
        by(10),
        by(11, {"type": "pairwise", "value": {"selected": "up"}}),
        by(12, pairwise, created_at="yesterday"),
        "nothing",
    ]
    bomb = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(bomb, "PNG")
    tasks = [
        {"id": 1, "data": good, "annotations": annotations},
        {"data": good | {"left": "http://example.org/x.png"}},
        {"data": good | {"left": "/etc/passwd"}},
        {"data": good | {"left": "data:image/png;base64," + base64.b64encode(bomb.getvalue()).decode()}},
        {"data": good | {"left": "data:image/png;base64,AAAA"}},
        {"data": good | {"pair": "../p"}},
        {"data": {"prompt": "a coat"}},
    ]
    (tmp_path / "tasks.json").write_text(json.dumps(tasks))
    counts = command(capsys, "votes", "import", config, tmp_path / "tasks.json", "limits.image_pixels=1000000")
    assert (counts["pairs"], counts["annotations"], counts["skipped"]) == (1, 3, 6)
    assert sum(counts["reasons"].values()) == 6 and counts["reasons"]["task: data.pair"] == 1
    with database.read() as transaction:
        [pair] = votes.pairs(transaction)
        said = {found.annotator: (found.choice, found.seconds) for found, _ in votes.annotated(transaction)}
        assert all(abs(found.created_at - time.time()) < 600 for found, _ in votes.annotated(transaction))
    assert said == {"label-studio-7": ("right", 3.25), "eve-example.org": ("tie", 3.25), "etc": ("right", 3.25)}
    assert pair.prompt == "a red coat" and (pictures.get(pair.left).image == IMAGES[0]).all()
    assert [path.suffix for path in (tmp_path / "here" / "images").rglob("*") if path.is_file()] == [".png"] * 2
    for content in ("{}", "[{", "\ufeff", '[{"data": 1}]'):
        (tmp_path / "bad.json").write_text(content)
        status = main(["votes", "import", str(config), str(tmp_path / "bad.json")])
        assert status == (0 if "1" in content else 2)
    assert main(["votes", "import", str(config), str(tmp_path / "none.json")]) == 2
