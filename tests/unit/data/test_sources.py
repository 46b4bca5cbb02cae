"""Which dialogues a step takes, and that a built table gives them back as they were."""

import numpy as np
import pytest

from omr_ray.atelier.dialogues import dialogue_at
from omr_ray.config.data import DataConfig
from omr_ray.data.rows import write_part
from omr_ray.data.sources import TableSource, places
from omr_ray.data.store import StoredTable
from omr_ray.types import UserError


@pytest.mark.parametrize("size", [1, 2, 7, 30])
def test_every_dialogue_comes_once_an_epoch_in_another_order(size):
    taken = [place for step in range(1, 2 * size + 1) for place in places(step, 3, size, seed=4)]
    epochs = [taken[start : start + size] for start in range(0, 6 * size, size)]
    assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
    assert size < 7 or len({tuple(epoch) for epoch in epochs}) > 3
    assert places(3, 5, 11, seed=0) == places(3, 5, 11, seed=0) != places(3, 5, 11, seed=1)


def test_a_built_table_gives_dialogues_back(tmp_path):
    config = DataConfig(name="test", sources=[{"kind": "atelier", "dialogues": 60, "rounds": 3}], filters={"min_side": 16})
    for number, start in enumerate((0, 30)):
        write_part(config, 0, number, {"what": "dialogues", "start": start, "stop": start + 30}, str(tmp_path))
    source = TableSource(str(tmp_path), seed=0)
    (dialogue,) = source.next(5, 1)
    index = int(dialogue.id.rsplit("-", 1)[1])
    made = dialogue_at("train", index, rounds=3)
    assert (dialogue.intent, [turn.prompt for turn in dialogue.rounds]) == (made.intent, [turn.prompt for turn in made.rounds])
    np.testing.assert_array_equal(dialogue.rounds[2].target, made.rounds[2].target)
    assert {dialogue.id.split("-")[0] for dialogue in source.held_out(50)} == {"heldout"}
    table = StoredTable(str(tmp_path), "dialogues", "train", "dialogue")
    assert [table[place]["id"] for place in range(len(table))] == [row["id"] for row in table.rows(["id"])]
    assert len(table.files) == 2
    with pytest.raises(UserError, match="no such file"):
        TableSource(str(tmp_path), seed=0) and StoredTable(str(tmp_path), "dialogues", "train", "nothing")
