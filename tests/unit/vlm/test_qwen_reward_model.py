import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from omr_ray.types import UserError
from omr_ray.vlm.reward_model import HEAD_FILE, RewardModel
from omr_ray.vlm.templates import REWARD_TEMPLATE
from omr_ray.weights import read_safetensors
from tests.tiny_qwen import make_tiny_qwen

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
PROMPTS = ["hat", "a red dress with a belt", "two coats in the snow, seen from the left", "a"]
IMAGES = np.random.default_rng(0).integers(0, 256, (4, 24, 24, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    return {family: make_tiny_qwen(tmp_path_factory.mktemp(family), family) for family in FAMILIES}


@pytest.fixture(scope="module")
def model(directories):
    return RewardModel.from_pretrained(directories["qwen2_5_vl"])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_score_is_the_mean_of_the_last_hidden_state_of_a_plain_forward(directories, family):
    path = directories[family]
    network = AutoModelForImageTextToText.from_pretrained(path).eval()
    tokenizer, processor = AutoTokenizer.from_pretrained(path), Qwen2VLImageProcessorPil.from_pretrained(path)
    wanted = []
    for image, prompt in zip(IMAGES, PROMPTS, strict=True):
        pixels = processor(images=[image], return_tensors="pt")
        placeholders = "<|image_pad|>" * (int(pixels["image_grid_thw"].prod()) // 4)
        text = tokenizer(REWARD_TEMPLATE.format(prompt=prompt).replace("<|image_pad|>", placeholders), return_tensors="pt")
        types = (text["input_ids"] == network.config.image_token_id).long()
        with torch.no_grad():
            found = network(**text, **pixels, mm_token_type_ids=types, output_hidden_states=True)
        wanted.append(found.hidden_states[-1][0, -1].mean())
    scores = RewardModel.from_pretrained(path).score(IMAGES, PROMPTS)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, torch.stack(wanted), atol=1e-5, rtol=0)
    assert scores.std() > 1e-2  # the comparison means something


@pytest.mark.parametrize("family", FAMILIES)
def test_a_score_does_not_depend_on_its_batch_mates(directories, family):
    model = RewardModel.from_pretrained(directories[family])
    together = model.score(IMAGES, PROMPTS)
    alone = torch.cat([model.score(IMAGES[i : i + 1], PROMPTS[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(model.score(IMAGES, PROMPTS, batch_size=3), alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(model.score(IMAGES[::-1], PROMPTS[::-1]), alone.flip(0), atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_reaches_the_image_and_points_uphill(directories, family):
    model = RewardModel.from_pretrained(directories[family])
    images = (torch.tensor(IMAGES).permute(0, 3, 1, 2) / 255).requires_grad_()
    rewards = model.score_tensor(images, PROMPTS)
    torch.testing.assert_close(rewards.detach(), model.score(IMAGES, PROMPTS), atol=1e-6, rtol=0)
    rewards.sum().backward()
    assert (images.grad.flatten(1).norm(dim=1) > 0).all()
    assert all(parameter.grad is None for parameter in model.parameters())
    step = images.grad / images.grad.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
    assert (model.score_tensor(images.detach() + 0.01 * step, PROMPTS) > rewards).all()


def test_images_of_different_sizes_go_together(model):
    images = [IMAGES[0], IMAGES[1, :16], IMAGES[2, :, :20], np.tile(IMAGES[3], (3, 2, 1))]
    alone = torch.cat([model.score(image[None], [prompt]) for image, prompt in zip(images, PROMPTS, strict=True)])
    torch.testing.assert_close(model.score(images, PROMPTS, batch_size=3), alone, atol=1e-5, rtol=0)


def test_read_only_images_and_no_images(model):
    images = IMAGES.copy()
    images.flags.writeable = False
    torch.testing.assert_close(model.score(images, PROMPTS), model.score(IMAGES, PROMPTS))
    assert model.score(IMAGES[:0], []).shape == (0,)


def test_bfloat16_scores_are_float32_and_near(directories, model):
    half = RewardModel.from_pretrained(directories["qwen2_5_vl"], dtype="bfloat16")
    assert next(half.network.parameters()).dtype == torch.bfloat16
    scores = half.score(IMAGES, PROMPTS)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, model.score(IMAGES, PROMPTS), atol=0.05, rtol=0)


def test_a_linear_head_starts_as_the_mean_and_is_saved(directories, model, tmp_path):
    linear = RewardModel.from_pretrained(directories["qwen2_5_vl"], head="linear")
    torch.testing.assert_close(linear.score(IMAGES, PROMPTS), model.score(IMAGES, PROMPTS), atol=1e-6, rtol=0)
    torch.nn.init.normal_(linear.head.weight)
    linear.save_pretrained(tmp_path)
    again = RewardModel.from_pretrained(tmp_path, head="linear")
    torch.testing.assert_close(again.score(IMAGES, PROMPTS), linear.score(IMAGES, PROMPTS))
    (tmp_path / HEAD_FILE).write_bytes(b"damaged")
    with pytest.raises(UserError, match=HEAD_FILE):
        RewardModel.from_pretrained(tmp_path, head="linear")


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_saved_is_read_back_and_has_the_form_that_other_libraries_load(directories, family, tmp_path):
    model = RewardModel.from_pretrained(directories[family])
    model.save_pretrained(tmp_path)
    (architecture,) = json.loads((tmp_path / "config.json").read_text())["architectures"]
    assert architecture.endswith("ForConditionalGeneration")
    stored = {tensor for file in (directories[family], tmp_path) for tensor in read_safetensors(file / "model.safetensors")}
    assert stored - set(read_safetensors(tmp_path / "model.safetensors")) == {"lm_head.weight"}
    torch.testing.assert_close(RewardModel.from_pretrained(tmp_path).score(IMAGES, PROMPTS), model.score(IMAGES, PROMPTS))


def test_a_generating_network_scores_as_its_base(directories, model):
    path = directories["qwen2_5_vl"]
    network = AutoModelForImageTextToText.from_pretrained(path).eval()
    wrapped = RewardModel(network, AutoTokenizer.from_pretrained(path), Qwen2VLImageProcessorPil.from_pretrained(path))
    torch.testing.assert_close(wrapped.score(IMAGES, PROMPTS), model.score(IMAGES, PROMPTS))


def test_damaged_directories_are_named_in_one_line(tmp_path):
    with pytest.raises(UserError, match="no such model directory"):
        RewardModel.from_pretrained(tmp_path / "nowhere")
    path = make_tiny_qwen(tmp_path / "model")
    weights = path / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError) as caught:
        RewardModel.from_pretrained(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    weights.rename(path / "pytorch_model.bin")
    with pytest.raises(UserError, match="pickled weights"):
        RewardModel.from_pretrained(path)


def test_missing_weights_and_other_families_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    path = make_tiny_qwen(tmp_path)
    weights = load_file(path / "model.safetensors")
    name = sorted(name for name in weights if "layers.0." in name)[0]
    save_file({key: value for key, value in weights.items() if key != name}, path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="1 weights are missing"):
        RewardModel.from_pretrained(path)
    (path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(UserError, match="'gpt2'"):
        RewardModel.from_pretrained(path)
