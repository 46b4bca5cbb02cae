"""Filters, splits, negatives, colors, files; and that nothing an importer is fed stops a build."""

import io
import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from omr_ray.config.data import DataConfig
from omr_ray.data import filters, rows, store
from omr_ray.data.colors import dominant_colors, name_of
from omr_ray.data.export import export
from omr_ray.data.filters import Limits, Rejected
from omr_ray.data.negatives import Fitting, mismatched
from omr_ray.data.records import Broken, Pair
from omr_ray.data.splits import Shares, place_of
from omr_ray.data.store import Folder, StoredTable
from omr_ray.types import UserError

LIMITS = Limits(max_prompt=2000, max_style_words=2, min_side=16, max_pixels=10_000, min_sharpness=0.0)


def encoded(array, kind="PNG", **options):
    held = io.BytesIO()
    Image.fromarray(np.asarray(array, np.uint8)).save(held, kind, **options)
    return held.getvalue()


def flat(color, side=32):
    return encoded(np.broadcast_to(np.array(color, np.uint8), (side, side, 3)))


def reason(call, *arguments):
    with pytest.raises(Rejected) as caught:
        call(*arguments)
    return caught.value.reason


# -- filters -----------------------------------------------------------------------------------------------------------


def test_texts():
    assert filters.clean_text("  a\tdress \n", LIMITS) == "a dress"
    assert filters.clean_text("cafe\u0301", LIMITS) == "caf\u00e9"
    assert reason(filters.clean_text, "a" * 100_000, LIMITS) == "text_too_long"
    assert reason(filters.clean_text, "\ud800", LIMITS) == "text_not_unicode"
    assert reason(filters.clean_text, " ", LIMITS) == reason(filters.clean_text, None, LIMITS) == "text_missing"
    assert filters.clean_prompt("a dress, highly detailed, 8k", LIMITS) == "a dress, highly detailed, 8k"
    assert reason(filters.clean_prompt, "a dress, octane render, 8K, Artstation", LIMITS) == "too_many_style_words"
    assert filters.clean_prompt("a hdress 48k matter", LIMITS)  # parts of words are no style words


def test_sharpness_by_hand():
    step = np.zeros((4, 5), np.float32)
    step[:, 3:] = 10  # the Laplacian of the inner pixels is 0 10 -10 in both rows
    assert filters.sharpness(step) == pytest.approx(np.sqrt(200 / 3))
    assert filters.sharpness(np.full((9, 9), 7, np.float32)) == 0 and filters.sharpness(np.zeros((2, 2), np.float32)) == 0


def test_images():
    noise = np.random.default_rng(0).integers(0, 256, (32, 48, 3))
    whole = encoded(noise, "JPEG")
    picture = filters.look(whole, LIMITS)
    assert (picture.width, picture.height, picture.bytes) == (48, 32, whole) and picture.sharpness > 50
    assert reason(filters.look, whole[: len(whole) // 2], LIMITS) == "image_corrupt"
    assert reason(filters.look, b"", LIMITS) == reason(filters.look, b"GIF89a", LIMITS) == "image_corrupt"
    assert reason(filters.look, encoded(noise[:8]), LIMITS) == "image_too_small"
    bomb = encoded(np.zeros((20_000, 20_000), np.uint8), compress_level=9)
    assert len(bomb) < 500_000 and reason(filters.look, bomb, LIMITS) == "image_too_large"
    assert reason(filters.look, bomb, Limits(**{**vars_of(LIMITS), "max_pixels": 10**12})) == "image_too_large"  # the library's own limit
    assert reason(filters.look, flat((9, 9, 9)), Limits(**{**vars_of(LIMITS), "min_sharpness": 1.0})) == "image_blurred"


def vars_of(limits):
    return {name: getattr(limits, name) for name in limits.__slots__}


# -- splits and negatives ----------------------------------------------------------------------------------------------


def test_splits_follow_the_shares_and_the_group_alone():
    places = Counter((place.split, place.purpose) for place in (place_of(f"group {n}", Shares()) for n in range(20_000)))
    share = {key: count / 20_000 for key, count in places.items()}
    assert sum(value for (split, _), value in share.items() if split == "train") == pytest.approx(0.80, abs=0.01)
    assert sum(value for (_, purpose), value in share.items() if purpose == "reward") == pytest.approx(0.38, abs=0.01)
    assert sum(value for (_, purpose), value in share.items() if purpose == "diffusion") == pytest.approx(0.17, abs=0.01)
    assert share["train", "reward"] == pytest.approx(0.8 * 0.38, abs=0.01)
    assert place_of(" a  b", Shares()) == place_of("a b", Shares())


def test_mismatched_images_come_from_another_group_of_the_same_side():
    fitting = [Fitting(id=str(n), group=f"g{n // 2}", prompt=f"p{n % 5}", image=f"{n}.jpg") for n in range(200)]
    by_image = {item.image: item for item in fitting}
    records = list(mismatched(fitting, lambda group: int(group[1:]) % 2, [0]))
    assert len(records) == 200 and all(isinstance(record, Pair) for record in records)
    for record in records:
        other = by_image[record.rejected]
        assert other.group != record.group and other.prompt != record.prompt
        assert int(other.group[1:]) % 2 == int(record.group[1:]) % 2
    (lonely,) = mismatched(fitting[:1], lambda group: 0, [0])
    assert isinstance(lonely, Broken) and lonely.why.reason == "no_negative"


def test_colors():
    from skimage.color import rgb2lab

    named = {"red": (220, 20, 30), "blue": (30, 60, 200), "white": (250, 250, 250), "black": (5, 5, 5), "green": (20, 140, 40)}
    for name, color in named.items():
        assert name_of(rgb2lab(np.array([[color]]) / 255)[0, 0]) == name
        assert dominant_colors(flat(color)).garment == dominant_colors(flat(color)).background == name
    picture = np.full((64, 64, 3), 250, np.uint8)
    picture[12:52, 12:52] = (30, 60, 200)
    picture[20:24, 20:30] = (250, 220, 50)
    found = dominant_colors(encoded(picture))
    assert (found.garment, found.background) == ("blue", "white")


# -- parts -------------------------------------------------------------------------------------------------------------


def config_for(kind, path, **filters_):
    return DataConfig(name="test", sources=[{"kind": kind, "path": str(path)}], filters={"min_side": 16, **filters_})


def write(config, out):
    importer = rows.importer_of(config.sources[0], Shares())
    counts = rows.Counts()
    for number, part in enumerate(importer.parts(config.records_per_part)):
        counts.add(rows.write_part(config, 0, number, part, str(out)))
    return counts


def preferences(path, records, images=2):
    path.mkdir(exist_ok=True)
    for n in range(images):
        (path / f"{n}.png").write_bytes(flat((40 * n, 9, 9)))
    (path / "all.json").write_text(json.dumps(records))


def test_rows_are_written_with_their_images_and_faults_are_counted(tmp_path):
    good = {"id": "a", "prompt": "a  dress", "images": ["0.png", "1.png"], "labels": [0, 1], "negative": "mismatched"}
    bad = [
        good,
        {**good, "id": "b", "images": ["0.png", "9.png"]},
        {**good, "id": "c", "images": ["0.png", "../x.png"]},
        {**good, "id": "d"},
    ]
    preferences(tmp_path / "source", bad + [{**good, "id": "e", "prompt": "x" * 100_000}, {**good, "id": "a"}, 7])
    counts = write(config_for("json_preferences", tmp_path / "source"), tmp_path / "out")
    assert counts.rejects == {
        "json_preferences/image_missing": 2,
        "json_preferences/text_too_long": 1,
        "json_preferences/duplicate_id": 1,
        "json_preferences/malformed": 1,
    }
    found = list(StoredTable(str(tmp_path / "out"), "preferences").rows())
    assert [row["id"] for row in found] == ["a", "d"] and sum(counts.rows.values()) == 2 and counts.pictures["json_preferences"] == 2
    assert found[0]["prompt"] == "a dress" and found[0]["negative"] == "mismatched"
    assert found[0]["chosen"] == {"bytes": flat((40, 9, 9)), "width": 32, "height": 32, "sharpness": 0.0}
    place = place_of("a dress", Shares())
    assert (found[0]["split"], found[0]["purpose"]) == (place.split, place.purpose)
    other = "test" if place.split == "train" else "train"
    with pytest.raises(UserError, match="no such file"):
        StoredTable(str(tmp_path / "out"), "preferences", split=other)
    rejected = list(StoredTable(str(tmp_path / "out"), "rejects").rows())
    assert [(row["id"], row["reason"]) for row in rejected][:2] == [("b", "image_missing"), ("c", "image_missing")]


def test_images_that_are_elsewhere_can_be_kept_as_text(tmp_path):
    preferences(tmp_path / "source", [{"prompt": "a", "images": ["8.png", "9.png"], "labels": [1, 0]}])
    write(config_for("json_preferences", tmp_path / "source", missing_images="keep"), tmp_path / "out")
    (row,) = StoredTable(str(tmp_path / "out"), "preferences").rows()
    assert row["chosen"] is None and row["rejected"] is None


def test_an_export_is_read_back_as_it_was(tmp_path):
    source = {"kind": "atelier", "dialogues": 6, "pairs": 10}
    config = DataConfig(name="test", sources=[source], filters={"min_side": 16})
    write(config, tmp_path / "out")
    assert export(str(tmp_path / "out"), tmp_path / "forms") == {"out": str(tmp_path / "forms"), "dialogues": 6, "preferences": 10}
    for table, key in (("dialogues", "intent"), ("preferences", "prompt")):
        write(config_for(f"json_{table}", tmp_path / "forms" / table), tmp_path / table)
        again = {row["id"]: row for row in StoredTable(str(tmp_path / table), table).rows()}
        for row in StoredTable(str(tmp_path / "out"), table).rows():
            assert again[row["id"]][key] == row[key]
            assert again[row["id"]].get("rounds") == row.get("rounds") and again[row["id"]].get("chosen") == row.get("chosen")


def test_no_group_is_on_two_sides(tmp_path):
    config = DataConfig(name="test", sources=[{"kind": "atelier", "dialogues": 40, "pairs": 300}], records_per_part=50)
    write(config, tmp_path / "out")
    sides: dict[str, set] = {}
    for table in ("dialogues", "preferences"):
        for row in StoredTable(str(tmp_path / "out"), table).rows(["group", "split"]):
            sides.setdefault(row["group"], set()).add(row["split"])
    assert len(sides) > 300 and all(len(splits) == 1 for splits in sides.values())
    assert set.union(*sides.values()) == {"train", "test"}


def test_a_reader_keeps_row_groups_up_to_a_number_of_bytes(tmp_path, monkeypatch):
    write(DataConfig(name="test", sources=[{"kind": "atelier", "pairs": 40}], records_per_part=10), tmp_path)
    opened, real = [], Folder.open
    monkeypatch.setattr(Folder, "open", lambda folder, name: opened.append(name) or real(folder, name))
    for limit, passes in ((2**30, 1), (0, 2)):
        monkeypatch.setattr(store, "KEPT_BYTES", limit)
        table = StoredTable(str(tmp_path), "preferences")
        size = len(table)
        opened.clear()
        assert len({table[index]["id"] for index in [*range(size), *range(size)]}) == size == 40
        assert len(opened) == passes * len(table.files) and len(table.files) > 4


def test_a_table_of_another_schema_is_refused(tmp_path):
    write(DataConfig(name="test", sources=[{"kind": "atelier", "pairs": 3}]), tmp_path)
    with pytest.raises(UserError, match="is not a table of dialogues"):
        (tmp_path / "preferences").rename(tmp_path / "dialogues")
        list(StoredTable(str(tmp_path), "dialogues").rows())
    with pytest.raises(UserError, match="no such directory"):
        list(StoredTable(str(tmp_path / "absent"), "dialogues").rows())


def test_a_file_is_whole_or_not_there(tmp_path):
    from omr_ray.data.store import Shard

    folder = Folder(str(tmp_path))
    with pytest.raises(RuntimeError), Shard(folder, "rejects/x.parquet", "rejects") as shard:
        shard.add({"source": "s", "id": "i", "reason": "r", "detail": "d"}, 0)
        raise RuntimeError("killed here")
    assert list((tmp_path / "rejects").iterdir()) == []


# -- whatever is fed to it ---------------------------------------------------------------------------------------------

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.sampled_from(["0.png", "../0.png", "\x00", "a" * 3000])
)
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4), max_leaves=8
)
KEYS = {
    "imagereward": ("id", "prompt", "generations", "ranking"),
    "hpdv2": ("prompt", "file_path", "human_preference"),
    "hpdv3": ("prompt", "path1", "path2"),
    "json_preferences": ("id", "prompt", "images", "labels", "negative"),
    "fashioniq": ("candidate", "target", "captions"),
    "json_dialogues": ("id", "intent", "rounds"),
}


@pytest.mark.parametrize("kind", KEYS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_nothing_that_is_fed_stops_a_build(tmp_path, kind, data):
    known = st.fixed_dictionaries(dict.fromkeys(KEYS[kind], JSON))
    items = data.draw(st.lists(st.one_of(known, JSON), min_size=1, max_size=4))
    source = tmp_path / "source"
    target = {"fashioniq": source / "captions/cap.dress.train.json"}.get(kind, source / "x.json")
    target.parent.mkdir(parents=True, exist_ok=True)
    (source / "0.png").write_bytes(flat((9, 9, 9)))
    target.write_text(json.dumps(items[0] if kind == "json_dialogues" else items))
    config = config_for(kind, source, missing_images="keep")
    try:
        counts = write(config, tmp_path / "out")
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert sum(counts.rows.values()) + sum(counts.rejects.values()) >= 1


@settings(max_examples=60, deadline=None)
@given(content=st.binary(max_size=300), head=st.sampled_from([b"", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"RIFF\x00\x00\x00\x00WEBP"]))
def test_no_bytes_break_the_look(content, head):
    with pytest.raises(Rejected):
        filters.look(head + content, LIMITS)
