import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel, CLIPTokenizer

from omr_ray.atelier import WEIGHTS
from omr_ray.atelier.stages.clip import build_clip
from omr_ray.types import UserError
from omr_ray.vlm.clip import Clip


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("clip")
    tokenizer = CLIPTokenizer.from_pretrained(WEIGHTS / "tokenizer")
    for part in (tokenizer, *build_clip(tokenizer)):
        part.save_pretrained(path)
    return path


def test_scores_are_the_cosines_of_the_library(directory):
    rng = np.random.default_rng(0)
    images, texts = rng.integers(0, 256, (3, 80, 64, 3), dtype=np.uint8), ["a red dress", "a blue coat at night", ""]
    clip = Clip.from_pretrained(directory)
    network = AutoModel.from_pretrained(directory)
    pixels = clip.image_processor([Image.fromarray(image) for image in images], return_tensors="pt").pixel_values
    ids = clip.tokenizer(texts, padding="max_length", return_tensors="pt")
    with torch.no_grad():
        logits = network(pixel_values=pixels, **ids).logits_per_image.diagonal() / network.logit_scale.exp()
    assert torch.allclose(clip.score(images, texts), logits, atol=1e-6)
    assert torch.allclose(clip.embed_images(list(images), batch_size=2), clip.embed_images(images), atol=1e-6)
    assert torch.allclose(clip.embed_texts(texts).norm(dim=1), torch.ones(3))


def test_a_text_longer_than_the_context_is_cut(directory):
    clip = Clip.from_pretrained(directory)
    assert clip.embed_texts(["red " * 500]).shape == clip.embed_texts(["red"]).shape


def test_what_is_not_there_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"no \*\.safetensors file"):
        Clip.from_pretrained(tmp_path)
