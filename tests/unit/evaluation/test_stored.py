import numpy as np
import pyarrow.parquet as pq
import pytest

from omr_ray.evaluation.stored import MadeImage, Results, Value, png
from omr_ray.types import UserError


def made(dialogue="d1", round=1, sibling=0, value=0):
    pixels = np.full((4, 6, 3), value, np.uint8)
    told = {"seed": 2**62, "utterance": "a dress", "prompt": "a red dress", "intent": "a red dress", "seconds": 0.5}
    return MadeImage(dialogue=dialogue, round=round, sibling=sibling, image=png(pixels), **told)


def value(dialogue, round, sibling, number, measure="prompt"):
    return Value(dialogue=dialogue, round=round, sibling=sibling, measure=measure, value=number)


def test_images_come_back_bit_for_bit_and_parts_are_known(tmp_path):
    results = Results(str(tmp_path))
    assert results.parts("Ours r4", "dialogues") == []
    results.write_images("Ours r4", "dialogues", 3, [made(value=7)])
    assert results.parts("Ours r4", "dialogues") == [3]
    (found,) = results.images("Ours r4", "dialogues", 3)
    assert found == made(value=7)
    assert found.pixels.shape == (4, 6, 3)
    assert (found.pixels == 7).all()
    assert pq.read_schema(tmp_path / "images/Ours_r4/dialogues/part-00003.parquet").names[0] == "dialogue"


def test_cubes_have_a_place_for_every_image_and_no_value_where_none_is_known(tmp_path):
    results = Results(str(tmp_path))
    results.write_images("A", "dialogues", 0, [made("d2", 1), made("d2", 2), made("d1", 1, 1)])
    results.write_values("A", "dialogues", "clip", 0, [value("d2", 2, 0, 0.5), value("d1", 1, 1, None), value("d1", 1, 1, 9.0, "intent")])
    cube = results.cube("A", "dialogues", "clip", "prompt")
    assert cube.shape == (2, 2, 2)
    assert cube[1, 1, 0] == 0.5
    assert np.isfinite(cube).sum() == 1
    assert results.dialogues("A", "dialogues") == ["d1", "d2"]
    assert results.seconds("A", "dialogues")[0, 0, 1] == 0.5
    assert results.cube("A", "dialogues", "blip", "prompt") is None
    assert results.excited("B", "dialogues") is None


def test_a_directory_takes_new_models_and_no_changed_ones(tmp_path):
    results = Results(str(tmp_path))
    results.claim({"model A": {"path": "x"}, "seed": 1})
    results.claim({"model B": {"path": "y"}, "seed": 1})
    with pytest.raises(UserError, match=r"made with other settings \(model A, seed\)"):
        results.claim({"model A": {"path": "z"}, "model B": {"path": "y"}, "seed": 2})
    results.claim({"model A": {"path": "x"}, "seed": 1})


def test_a_damaged_part_is_named(tmp_path):
    results = Results(str(tmp_path))
    results.write_images("A", "dialogues", 0, [made()])
    (tmp_path / "images/A/dialogues/part-00000.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match=r"part-00000.parquet: is damaged"):
        results.images("A", "dialogues", 0)
