"""Every source as its makers hand it out: real samples where there are some, else small files in the same form."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from omr_ray.config.data import DataConfig
from omr_ray.data.importers.deepfashion import noun_of
from omr_ray.data.records import Broken, Pair, Talk
from omr_ray.data.rows import Pictures, importer_of
from omr_ray.data.splits import Shares, place_of
from omr_ray.types import UserError

DATA = Path(__file__).parents[2] / "data"
LIMITS = {"max_prompt": 2000, "max_style_words": 8, "min_side": 16, "max_pixels": 10**6, "min_sharpness": 0.0}


def records_of(kind, path, size=1000, **settings):
    """All records of a source, in the order of its parts."""
    from omr_ray.data.filters import Limits

    source = DataConfig(name="test", sources=[{"kind": kind, "path": str(path), **settings}]).sources[0]
    importer = importer_of(source, Shares())
    pictures = Pictures(importer.folder, Limits(**LIMITS))
    return [record for part in importer.parts(size) for record in importer.records(json.loads(json.dumps(part)), pictures)]


def reasons(records):
    return Counter(record.why.reason for record in records if isinstance(record, Broken))


def of_type(records, kind):
    return [record for record in records if isinstance(record, kind)]


@pytest.mark.parametrize("size", [1000, 16, 1])
def test_imagereward_gives_every_ranked_pair_and_counts_ties(size):
    records = records_of("imagereward", DATA / "imagereward", size)
    # five prompts of four images (6 pairs each) and one of six ranked 1 2 1 4 3 4: 15 pairs, two of them ties
    assert len(of_type(records, Pair)) == 5 * 6 + 13
    assert reasons(records) == {"tie": 2}
    first = of_type(records, Pair)[2]  # images 0 and 3, ranked 1 and 3 among 1 2 5 3
    assert first.id == "005658-0040/0/3" and first.chosen.endswith("45b0de4d-5a57-4ae3-8810-ffbd328204fd.webp")
    worse_first = of_type(records, Pair)[5]  # images 2 and 3, ranked 5 and 3
    assert worse_first.id == "005658-0040/2/3" and worse_first.rejected.endswith("f24a2c01-b1ed-4d4f-ba23-5ba5755b1ce7.webp")


@pytest.mark.parametrize("size", [1000, 32, 16, 8])
def test_imagereward_parquet_keeps_a_prompt_together_across_row_groups(tmp_path, size):
    rows = [{"prompt_id": f"p{n // 3}", "prompt": f"prompt {n // 3}", "image_path": f"{n}.webp", "rank": n % 3 + 1} for n in range(30)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "metadata-train.parquet", row_group_size=4)
    pairs = of_type(records_of("imagereward", tmp_path, size), Pair)
    assert [pair.id for pair in pairs] == [f"p{p}/{i}/{j}" for p in range(10) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert pairs[4].chosen == "3.webp" and pairs[4].rejected == "5.webp"


def test_fashioniq_chains_become_dialogues_and_trees_become_groups():
    records = records_of("fashioniq", DATA / "fashioniq")
    talks = {talk.id: talk for talk in of_type(records, Talk)}
    # leaves of the forest: B00ARFVRP0 and B008GSEC0W below B00EVKYJAC, two below B003U9VL4W, and single pairs
    chain = talks["B00ARFVRP0"]
    assert [turn.target for turn in chain.turns] == [
        f"images/{asin}.jpg" for asin in ("B00BLG3A7M", "B00EVKYJAC", "B008KZR6WM", "B00ARFVRP0")
    ]
    assert chain.turns[0].prompt == "a dress"
    assert chain.turns[1].utterance == "black and shorter sleeves and is purple with patterns"
    assert chain.turns[3].prompt.endswith(", then is less form fitting and has pattern and is more flowing and patterned")
    assert {talks[leaf].group for leaf in ("B00ARFVRP0", "B008GSEC0W")} == {"fashioniq/B008GSEC0W"}
    pairs = of_type(records, Pair)
    assert len(talks) == 6 + 3 and len(pairs) + reasons(records)["no_negative"] == 8 + 3  # one caption of twelve is empty
    assert reasons(records)["text_missing"] == 1
    assert all(pair.chosen != pair.rejected and pair.negative == "mismatched" for pair in pairs)


def test_photographs_make_dialogues_by_class_and_color_within_a_split():
    records = records_of("photographs", DATA / "clothing")
    assert not reasons(records).keys() - {"no_chain", "no_negative"}
    talks, pairs = of_type(records, Talk), of_type(records, Pair)
    assert len(talks) + reasons(records)["no_chain"] == 24 and len(pairs) + reasons(records)["no_negative"] == 4 * 24
    groups = {pair.chosen: pair.group for pair in pairs} | {talk.id: talk.group for talk in talks}
    for talk in talks:
        assert talk.turns[-1].target == talk.id and len(talk.turns) in (2, 3)
        known = [groups[turn.target] for turn in talk.turns if turn.target in groups]
        assert {place_of(group, Shares()) for group in known} == {place_of(talk.group, Shares())}
    assert talks[0].turns[0].prompt == f"a {talks[0].id.split('/')[0]}"


def test_pickapic_labels(tmp_path):
    rows = [
        {"caption": "a", "jpg_0": b"x", "jpg_1": b"y", "label_0": 0.0, "label_1": 1.0},
        {"caption": "b", "jpg_0": b"x", "jpg_1": b"y", "label_0": 0.5, "label_1": 0.5},
        {"caption": "c", "jpg_0": b"x", "jpg_1": b"y", "label_0": 2.0, "label_1": 0.0},
        {"caption": "d", "jpg_0": b"x", "jpg_1": None, "label_0": 1.0, "label_1": 0.0},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train-00000.parquet")
    records = records_of("pickapic", tmp_path)
    assert [(pair.prompt, pair.chosen, pair.rejected) for pair in of_type(records, Pair)] == [("a", b"y", b"x")]
    assert reasons(records) == {"tie": 1, "bad_label": 1, "image_missing": 1}


def test_hpd_versions(tmp_path):
    (tmp_path / "train.json").write_text(
        json.dumps([{"prompt": "a", "file_path": ["0.jpg", "1.jpg"], "human_preference": [0, 1]}, {"prompt": "b", "file_path": ["0.jpg"]}])
    )
    records = records_of("hpdv2", tmp_path)
    assert [(pair.chosen, pair.rejected) for pair in of_type(records, Pair)] == [("1.jpg", "0.jpg")]
    assert reasons(records) == {"malformed": 1}
    (tmp_path / "train.json").write_text(json.dumps([{"prompt": "a", "path1": "good.jpg", "path2": "bad.jpg", "confidence": 0.9}]))
    assert [(pair.chosen, pair.rejected) for pair in records_of("hpdv3", tmp_path)] == [("good.jpg", "bad.jpg")]


def test_deepfashion_in_shop_walks_round_a_product(tmp_path):
    (tmp_path / "Anno").mkdir()
    told = [
        {"item": "id_00000002", "color": "Black", "description": ["A classic little dress.", "More."]},
        {"item": "id_00000003", "color": "Red", "description": ["Another."]},
        {"item": "id_00000009", "color": "Red", "description": []},
    ]
    (tmp_path / "Anno/list_description_inshop.json").write_text(json.dumps(told))
    images = ["id_00000002/02_1_front.jpg 1 1", "id_00000002/02_2_side.jpg 1 2", "id_00000003/01_1_front.jpg 1 1"]
    lines = [f"img/WOMEN/Dresses/{line} 10 10 90 90" for line in images]
    table = tmp_path / "Anno/list_bbox_inshop.txt"
    table.write_text("3\nimage_name clothes_type pose_type x_1 y_1 x_2 y_2\n" + "\n".join(lines) + "\n")
    records = records_of("deepfashion_inshop", tmp_path)
    talk = of_type(records, Talk)[0]
    assert [turn.prompt for turn in talk.turns] == ["a dress", "a black dress", "a black dress, seen from the side"]
    assert talk.turns[-1].target == "Img/img/WOMEN/Dresses/id_00000002/02_2_side.jpg" and talk.group == "id_00000002"
    assert reasons(records)["image_missing"] == 1
    table.write_text("4\nimage_name clothes_type pose_type x_1 y_1 x_2 y_2\n" + "\n".join(lines) + "\n")
    with pytest.raises(UserError, match="3 rows where the first line says 4"):
        records_of("deepfashion_inshop", tmp_path)
    assert noun_of("Jackets_Vests") == "jacket" and noun_of("Dresses") == "dress" and noun_of("Tees_Tanks") == "top"


def test_deepfashion_multimodal_says_a_caption_sentence_by_sentence(tmp_path):
    captions = {"WOMEN-Dresses-id_00000002-02_1_front.jpg": "The dress is long. It is plain.", "MEN-Denim-id_00000080-01_7.jpg": ""}
    (tmp_path / "captions.json").write_text(json.dumps(captions))
    records = records_of("deepfashion_multimodal", tmp_path)
    (talk,) = of_type(records, Talk)
    assert [(turn.utterance, turn.prompt) for turn in talk.turns] == [
        ("The dress is long.", "The dress is long."),
        ("It is plain.", "The dress is long. It is plain."),
    ]
    assert talk.group == "id_00000002" and reasons(records) == {"text_missing": 1, "no_negative": 1}


def test_the_papers_own_json_forms(tmp_path):
    dialogue = {"id": "000001", "intent": "a blue dress", "rounds": [{"utterance": "a dress", "prompt": "a dress", "image": "1.png"}]}
    (tmp_path / "d").mkdir()
    (tmp_path / "d/000001.json").write_text(json.dumps(dialogue))
    (tmp_path / "d/000002.json").write_text("{")
    (tmp_path / "d/000003.json").write_bytes(b"\xff\xfe{}")
    (tmp_path / "d/000004.json").write_text(json.dumps({"rounds": []}))
    records = records_of("json_dialogues", tmp_path / "d")
    assert [(talk.id, talk.intent, talk.turns[0].target) for talk in of_type(records, Talk)] == [("000001", "a blue dress", "1.png")]
    assert reasons(records) == {"json_broken": 2, "malformed": 1}
    (tmp_path / "p").mkdir()
    rows = [{"prompt": "a", "images": ["0.png", "1.png"], "labels": labels} for labels in ([0, 1], [1, 1], [1, 0.2])]
    (tmp_path / "p/all.json").write_text(json.dumps(rows))
    records = records_of("json_preferences", tmp_path / "p")
    assert [(pair.chosen, pair.id) for pair in of_type(records, Pair)] == [("1.png", "all.json#0")]
    assert reasons(records) == {"bad_label": 2}


def test_a_list_that_breaks_off_is_read_up_to_there(tmp_path):
    whole = json.dumps([{"prompt": str(n), "path1": "a", "path2": "b"} for n in range(5)])
    (tmp_path / "train.json").write_text(whole[: whole.index('{"prompt": "3"') + 9])
    for size in (1000, 2):
        records = records_of("hpdv3", tmp_path, size)
        assert [pair.prompt for pair in of_type(records, Pair)] == ["0", "1", "2"] and reasons(records) == {"json_broken": 1}


@pytest.mark.parametrize(
    "kind", ["imagereward", "hpdv2", "hpdv3", "json_preferences", "json_dialogues", "pickapic", "photographs", "fashioniq"]
)
def test_no_source_and_an_empty_source_are_one_line(tmp_path, kind):
    with pytest.raises(UserError, match="no such"):
        records_of(kind, tmp_path / "absent")
    if kind in ("json_dialogues", "photographs"):
        with pytest.raises(UserError, match="in it; give"):
            records_of(kind, tmp_path)
    elif kind in ("hpdv2", "hpdv3", "json_preferences", "imagereward"):
        (tmp_path / "train.json").write_text("[]")
        with pytest.raises(UserError, match="holds no record"):
            records_of(kind, tmp_path)
        (tmp_path / "train.json").write_text("\xff not json")
        with pytest.raises(UserError, match="is not a JSON list"):
            records_of(kind, tmp_path)


def test_wrong_columns_are_named(tmp_path):
    pq.write_table(pa.table({"caption": ["a"], "jpg": [b""]}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match="no column jpg_0, jpg_1, label_0, label_1; it has caption, jpg"):
        records_of("pickapic", tmp_path)
    shutil.copy(DATA / "clothing/LICENSE", tmp_path / "x.parquet")
    with pytest.raises(UserError, match="is not Parquet"):
        records_of("pickapic", tmp_path)
