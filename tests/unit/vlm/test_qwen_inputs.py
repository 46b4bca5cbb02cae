import numpy as np
import pytest
import torch
from transformers import AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from omr_ray.types import UserError
from omr_ray.vlm.inputs import QwenInputs, patchify
from omr_ray.vlm.templates import REWARD_TEMPLATE
from tests.tiny_qwen import make_tiny_qwen


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return AutoTokenizer.from_pretrained(make_tiny_qwen(tmp_path_factory.mktemp("qwen")))


def pixels(count, height, width):
    return np.random.default_rng(height + width).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def as_tensor(images):
    return torch.tensor(images).permute(0, 3, 1, 2) / 255


@pytest.mark.parametrize(
    ("height", "width", "patch", "grid"),
    [
        (64, 64, 8, (8, 8)),
        (56, 84, 14, (4, 6)),
        (50, 70, 8, (6, 8)),
        (20, 100, 8, (4, 14)),
        (200, 120, 8, (14, 8)),
        (512, 512, 14, (10, 10)),
    ],
)
def test_patches_equal_the_image_processors(height, width, patch, grid):
    processor = Qwen2VLImageProcessorPil(
        patch_size=patch, size={"shortest_edge": 48 * 48, "longest_edge": 150 * 150 if patch == 14 else 96 * 96}
    )
    images = pixels(2, height, width)
    wanted = processor(images=list(images), return_tensors="pt")
    found, found_grid = patchify(as_tensor(images), processor)
    assert found_grid.tolist() == wanted["image_grid_thw"].tolist() == [[1, *grid]] * 2
    grey_level = 1 / 255 / min(processor.image_std)
    difference = (found - wanted["pixel_values"]).abs()
    assert difference.max() < 1.01 * grey_level  # Pillow's resize rounds in fixed point: rarely a level apart
    assert (difference > 1e-5).float().mean() < (2e-3 if (height, width) != (grid[0] * patch, grid[1] * patch) else 1e-9)


def test_the_gradient_reaches_every_pixel_through_the_resize():
    processor = Qwen2VLImageProcessorPil(patch_size=8, size={"shortest_edge": 16 * 16, "longest_edge": 32 * 32})
    images = as_tensor(pixels(1, 40, 40)).requires_grad_()
    patches, _ = patchify(images, processor)
    patches.square().sum().backward()
    assert (images.grad != 0).all()


def test_an_image_that_does_not_divide_needs_the_resize():
    processor = Qwen2VLImageProcessorPil(patch_size=8, do_resize=False)
    assert len(patchify(torch.rand(1, 3, 32, 16), processor)[0]) == 8
    with pytest.raises(UserError, match="divide by 16"):
        patchify(torch.rand(1, 3, 30, 16), processor)


def test_token_ids_are_those_of_the_whole_text(tokenizer):
    inputs = QwenInputs(tokenizer, Qwen2VLImageProcessorPil(patch_size=4))
    for prompt in ("a red dress", "it's 2 hats,\n  BLUE ", ""):
        text = REWARD_TEMPLATE.format(prompt=prompt).replace("<|image_pad|>", "<|image_pad|>" * 9)
        assert inputs.token_ids(prompt, 9) == tokenizer(text)["input_ids"]


def test_a_special_token_in_a_prompt_is_plain_text(tokenizer):
    inputs = QwenInputs(tokenizer, Qwen2VLImageProcessorPil(patch_size=4))
    ids = inputs.token_ids("<|image_pad|> <|im_end|>", 4)
    assert ids.count(inputs.image_token_id) == 4
    assert ids.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 1
    assert inputs.token_ids("a hat", 4) == inputs.token_ids("a hat", 4)


def test_rows_are_padded_on_the_right(tokenizer):
    inputs = QwenInputs(tokenizer, Qwen2VLImageProcessorPil(patch_size=4, size={"shortest_edge": 256, "longest_edge": 256}))
    found = inputs(torch.rand(2, 3, 16, 16), ["hat", "a longer hat"])
    assert found["attention_mask"].sum(1).tolist() == [found["input_ids"].shape[1] - 9, found["input_ids"].shape[1]]
    assert found["attention_mask"][0, -9:].sum() == 0
    assert found["mm_token_type_ids"].sum(1).tolist() == [4, 4]
    with pytest.raises(ValueError, match="2 images and 1 prompts"):
        inputs(torch.rand(2, 3, 16, 16), ["hat"])


def test_the_familys_own_processor_gives_the_same_inputs(tokenizer):
    pytest.importorskip("torchvision")
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(tokenizer.name_or_path)
    images, prompts = pixels(2, 24, 24), ["a hat", "a longer hat"]
    texts = [REWARD_TEMPLATE.format(prompt=prompt) for prompt in prompts]
    wanted = processor(images=list(images), text=texts, padding=True, padding_side="right", return_tensors="pt")
    found = QwenInputs(tokenizer, Qwen2VLImageProcessorPil.from_pretrained(tokenizer.name_or_path))(as_tensor(images), prompts)
    mask = wanted["attention_mask"].bool()
    assert torch.equal(found["input_ids"][mask], wanted["input_ids"][mask])
    assert torch.equal(found["attention_mask"], wanted["attention_mask"])


def test_a_tokenizer_of_another_family_is_refused(tmp_path):
    from transformers import Qwen2Tokenizer

    with pytest.raises(UserError, match="vision_start"):
        QwenInputs(Qwen2Tokenizer({"a": 0, "<|endoftext|>": 1}, []), Qwen2VLImageProcessorPil())
