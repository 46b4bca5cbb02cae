import numpy as np
import pytest
import torch
from transformers import CLIPTokenizer

from omr_ray.atelier import WEIGHTS
from omr_ray.diffusion.prompt_elements import element_weights, prompt_elements


@pytest.fixture(scope="module")
def tokenizer():
    return CLIPTokenizer.from_pretrained(WEIGHTS / "tokenizer")


def words(tokenizer, prompt):
    ids = tokenizer(prompt).input_ids
    return [tokenizer.decode([ids[place] for place in places]).strip() for places in prompt_elements(tokenizer, ids)]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a small red t-shirt with a belt on a beach", ["small", "red", "shirt", "belt", "beach"]),
        ("A photo of the BLUE coat, seen from the left!", ["blue", "coat", "left"]),
        ("3 hats and a dress; they're 10 km away", ["hats", "dress", "km", "away"]),
        ("two coats, two hats", ["two", "coats", "two", "hats"]),
        ("ein Kleid für 猫", ["ein", "kleid", "für", "猫"]),
        ("a picture of it", []),
        ("", []),
    ],
)
def test_content_words_are_elements_and_stop_words_are_not(tokenizer, prompt, expected):
    assert words(tokenizer, prompt) == expected


def test_the_pieces_of_a_word_are_one_element(sd):
    tokenizer = sd.text.tokenizers[0]  # one token a letter
    ids = sd.tokenize(["a red coat", "hat", "of a"])
    assert prompt_elements(tokenizer, ids[0, 0].tolist()) == [[2, 3, 4], [5, 6, 7, 8]]
    weights = element_weights(tokenizer, ids)
    assert weights.shape == (3, 2, 16)
    torch.testing.assert_close(weights[0, 0], torch.tensor([0, 0, 1, 1, 1] + [0] * 11) / 3)
    torch.testing.assert_close(weights[0, 1, 5:9], torch.full((4,), 0.25))
    assert weights[1].sum(1).tolist() == [1, 0] and weights[2].sum() == 0


def test_a_word_that_the_limit_cuts_is_left_out(sd):
    ids = sd.tokenize(["red embroideries"])  # 14 letters fit between start and end
    assert prompt_elements(sd.text.tokenizers[0], ids[0, 0].tolist()) == [[1, 2, 3]]


def test_no_prompt_has_elements(sd):
    assert element_weights(sd.text.tokenizers[0], sd.tokenize(["", "a"])).shape == (2, 1, 16)
    assert np.isfinite(element_weights(sd.text.tokenizers[0], sd.tokenize([""])).numpy()).all()
