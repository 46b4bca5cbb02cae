from collections import Counter

import numpy as np
import pytest

from omr_ray.data.latent_cache import PART, Encoded, Frame, LatentTable, Shapes, claim, missing_parts, write_part
from omr_ray.data.store import Folder
from omr_ray.types import UserError

SHAPES = Shapes(dtype="float16", channels=1, factor=8, hidden=(2, 3), pooled=2)


def frame(value, size):
    latent = np.full((1, size[0] // 8, size[1] // 8), value, np.float32)
    return Frame(latent=latent, hidden=np.full((2, 3), value), pooled=np.array([value, -value]), conditioning=(9, 8, 0, 1, *size))


def dialogues(size, first, count):
    for index in range(first, first + count):
        yield size, Encoded(id=f"d{index}", rounds=(frame(index, size), frame(index + 0.5, size)), consecutive=(True,))


@pytest.fixture
def cache(tmp_path):
    """Seven squares and three wide ones, in two parts."""
    folder = Folder(str(tmp_path))
    write_part(folder, "train", 0, iter([*dialogues((16, 16), 0, 4), *dialogues((8, 24), 7, 3)]), "float16")
    write_part(folder, "train", 1, dialogues((16, 16), 4, 3), "float16")
    return tmp_path


def test_what_is_written_is_read(cache):
    table = LatentTable(str(cache), "train", SHAPES, batch=2)
    assert len(table) == 10 and table.buckets == [(16, 16), (8, 24)] and table.batches == 4 + 2
    found = table.take(1, [2, 0])
    assert [dialogue.id for dialogue in found] == ["d9", "d7"]
    last = found[0].rounds[1]
    assert last.latent.shape == (1, 1, 3) and last.latent[0, 0, 2] == 9.5 and last.latent.dtype == np.float32
    assert last.hidden.shape == (2, 3) and last.pooled.tolist() == [9.5, -9.5] and list(last.conditioning) == [9, 8, 0, 1, 8, 24]
    assert found[0].consecutive == (True,)


def test_an_epoch_takes_every_batch_once_and_every_dialogue(cache):
    table = LatentTable(str(cache), "train", SHAPES, batch=2)
    for epoch in range(3):
        seen, buckets = Counter(), Counter()
        for update in range(epoch * table.batches + 1, (epoch + 1) * table.batches + 1):
            bucket, rows = table.rows_of(update, seed=5)
            buckets[bucket] += 1
            seen.update(dialogue.id for dialogue in table.take(bucket, rows))
        assert buckets == {0: 4, 1: 2} and seen.total() == 12
        if epoch == 0:  # 4 batches hold 7 squares and one of the next turn, 2 batches 3 wide ones and one of the next turn
            assert len(seen) == 10


def test_a_split_without_images_is_said_in_one_line(cache):
    with pytest.raises(UserError, match="no dialogue of the test split has an image"):
        LatentTable(str(cache), "test", SHAPES, batch=2)


def test_a_part_that_is_there_is_not_made_again(cache):
    assert missing_parts(Folder(str(cache)), "train", 3 * PART) == [2] and missing_parts(Folder(str(cache)), "test", 1) == [0]


def test_a_cache_of_something_else_is_refused(tmp_path):
    folder = Folder(str(tmp_path))
    claim(folder, {"model": "a", "sizes": [(64, 64)]})
    claim(folder, {"model": "a", "sizes": [(64, 64)]})
    with pytest.raises(UserError, match="was encoded with model a instead of b; give another data.cache"):
        claim(folder, {"model": "b", "sizes": [(64, 64)]})
