import numpy as np
import pytest

from omr_ray.data.json_dialogues import read_dialogues, write_dialogue
from omr_ray.types import Dialogue, Round, UserError


def test_a_dialogue_survives_writing_and_reading(tmp_path):
    picture = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3)
    rounds = (Round(index=1, utterance="a hat", prompt="a hat", target=picture), Round(index=2, utterance="red", prompt="a red hat"))
    write_dialogue(Dialogue(id="d1", intent="a red hat", rounds=rounds), tmp_path)
    (found,) = read_dialogues(tmp_path)
    assert (found.id, found.intent, found.rounds[1].prompt, found.rounds[1].target) == ("d1", "a red hat", "a red hat", None)
    np.testing.assert_array_equal(found.rounds[0].target, picture)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "is empty"),
        ("{", "is not JSON"),
        ("[]", "an object whose 'rounds'"),
        ('{"rounds": []}', "at least one round"),
        ('{"rounds": [{"utterance": "x"}]}', "round 1 needs a text 'prompt'"),
        ('{"rounds": [{"prompt": " "}]}', "every round needs a prompt"),
        ('{"rounds": [{"prompt": "x", "image": "absent.png"}]}', "'absent.png' cannot be read"),
    ],
)
def test_a_file_that_is_no_dialogue_is_named_with_its_fault(tmp_path, content, says):
    (tmp_path / "bad.json").write_text(content)
    with pytest.raises(UserError, match=says) as caught:
        read_dialogues(tmp_path)
    assert "bad" in str(caught.value) and "\n" not in str(caught.value)


def test_an_empty_directory_is_a_fault(tmp_path):
    with pytest.raises(UserError, match=r"no \*.json dialogue"):
        read_dialogues(tmp_path)
