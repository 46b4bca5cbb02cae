"""A reward that is a function: where it is found, and what its answer may be."""

import logging
import sys

import numpy as np
import pytest
import torch

from omr_ray.config.rewards import Term
from omr_ray.config.run import RunConfig
from omr_ray.types import UserError
from omr_ray.workers.scorers import imported, scorer_from

IMAGES = np.full((3, 4, 4, 3), 51, np.uint8)
PROMPTS = ["a", "b", "c"]
MODULE = """
import numpy as np

value = 3

def bright(images, prompts):
    assert images.dtype == np.uint8 and images.shape[3] == 3
    return images.mean((1, 2, 3)) / 255

def fails(images, prompts):
    raise RuntimeError("no such file")
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module `mine` on the path."""
    (tmp_path / "mine.py").write_text(MODULE)
    (tmp_path / "broken_module.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    yield sys.modules
    for name in ("mine", "broken_module"):
        sys.modules.pop(name, None)


def scorer(path: str):
    term = Term.model_validate({"name": "mine", "weight": 1, "scorer": {"type": "function", "path": path}})
    return scorer_from(term, RunConfig(name="t"))


def test_a_function_by_its_dotted_path(module):
    assert scorer("mine:bright")(IMAGES, PROMPTS) == pytest.approx([0.2] * 3)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("absent.module:f", "cannot be imported.*No module named 'absent'.*working directory or be installed"),
        ("broken_module:f", "cannot be imported.*ZeroDivisionError: division by zero"),
        ("mine:absent", "module mine has no function absent"),
        ("mine:value", "module mine has no function value"),
    ],
)
def test_a_path_that_leads_nowhere_is_one_line(module, path, reason):
    with pytest.raises(UserError, match=reason) as caught:
        imported(path)
    assert "\n" not in str(caught.value)


def test_a_function_that_raises_leaves_scores_missing_and_is_logged(module, caplog):
    with caplog.at_level(logging.ERROR):
        assert scorer("mine:fails")(IMAGES, PROMPTS) == [None] * 3
    assert "mine:fails failed; the scores of 3 images are missing" in caplog.text and "no such file" in caplog.text


@pytest.mark.parametrize(
    ("answer", "scores"),
    [
        ([1, None, 2.5], [1.0, None, 2.5]),
        (np.array([1, 2, 3], np.float32), [1.0, 2.0, 3.0]),
        (torch.tensor([0.5, 1.5, 2.5]), [0.5, 1.5, 2.5]),
    ],
)
def test_what_counts_as_numbers(module, answer, scores):
    imported("mine:bright")
    sys.modules["mine"].given = lambda images, prompts: answer
    assert scorer("mine:given")(IMAGES, PROMPTS) == scores


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ([1.0, 2.0], "got 2"),
        (1.0, r"got float \(TypeError"),
        (None, r"got NoneType \(TypeError"),
        (["1", "2", "3"], "text among them"),
        ("abc", "text among them"),
        ([[1], [2], [3]], "got list"),
        (torch.ones(3, 2), "got Tensor"),
    ],
)
def test_another_answer_is_one_line(module, answer, reason):
    imported("mine:bright")
    sys.modules["mine"].given = lambda images, prompts: answer
    with pytest.raises(UserError, match="mine:given must return one number or None for each of its 3 images, .*" + reason) as caught:
        scorer("mine:given")(IMAGES, PROMPTS)
    assert "\n" not in str(caught.value)
