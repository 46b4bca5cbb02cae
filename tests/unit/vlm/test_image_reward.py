import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from omr_ray.types import UserError
from omr_ray.vlm.image_reward import ImageReward
from omr_ray.vlm.image_reward_original import from_original
from omr_ray.weights import write_safetensors_atomic
from tests.tiny_image_reward import SIDE, make_tiny_image_reward, tiny_image_reward, tokenizer

ROOT = Path(__file__).parents[3]
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 20, 28, 3), dtype=np.uint8)
PROMPTS = ["a red coat", "a hat", "blue"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return make_tiny_image_reward(tmp_path_factory.mktemp("imagereward"))


def norm(x, weights, name, eps):
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps)


def linear(x, weights, name):
    return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def attention(query, key, value):
    return torch.softmax(query @ key.T / query.shape[-1] ** 0.5, -1) @ value


def by_hand(w, image, ids):
    """The score of one image u8 [H W 3] and token ids, from BLIP's and ImageReward's own descriptions; one attention head."""
    height, width = image.shape[:2]
    small = Image.fromarray(image).resize((int(SIDE * width / height), SIDE), Image.Resampling.BICUBIC)
    left = (small.width - SIDE) // 2
    pixels = torch.tensor(np.array(small.crop((left, 0, left + SIDE, SIDE)))).float() / 255
    pixels = (pixels - torch.tensor([0.48145466, 0.4578275, 0.40821073])) / torch.tensor([0.26862954, 0.26130258, 0.27577711])
    v = "vision_model."
    patches = F.conv2d(
        pixels.permute(2, 0, 1)[None], w[v + "embeddings.patch_embedding.weight"], w[v + "embeddings.patch_embedding.bias"], 8
    )
    x = torch.cat([w[v + "embeddings.class_embedding"][0], patches[0].flatten(1).T]) + w[v + "embeddings.position_embedding"][0]
    for layer in (v + "encoder.layers.0.", v + "encoder.layers.1."):
        query, key, value = linear(norm(x, w, layer + "layer_norm1", 1e-6), w, layer + "self_attn.qkv").chunk(3, -1)
        x = x + linear(attention(query, key, value), w, layer + "self_attn.projection")
        x = x + linear(F.gelu(linear(norm(x, w, layer + "layer_norm2", 1e-6), w, layer + "mlp.fc1")), w, layer + "mlp.fc2")
    seen = norm(x, w, v + "post_layernorm", 1e-6)
    t = "text_encoder."
    x = w[t + "embeddings.word_embeddings.weight"][ids] + w[t + "embeddings.position_embeddings.weight"][: len(ids)]
    x = norm(x, w, t + "embeddings.LayerNorm", 1e-12)
    for layer in (t + "encoder.layer.0.", t + "encoder.layer.1."):
        for part, source in (("attention.", None), ("crossattention.", seen)):
            other = x if source is None else source
            read = attention(
                linear(x, w, layer + part + "self.query"),
                linear(other, w, layer + part + "self.key"),
                linear(other, w, layer + part + "self.value"),
            )
            x = norm(x + linear(read, w, layer + part + "output.dense"), w, layer + part + "output.LayerNorm", 1e-12)
        inner = linear(F.gelu(linear(x, w, layer + "intermediate.dense")), w, layer + "output.dense")
        x = norm(x + inner, w, layer + "output.LayerNorm", 1e-12)
    state = x[0]  # [CLS]
    for index in range(5):
        state = linear(state, w, f"head.{index}")
    return (state.item() - 0.16717362830052426) / 1.0333394966054072


def test_the_score_is_what_its_pieces_make(directory):
    model = ImageReward.load(directory)
    weights = model.state_dict()
    wanted = [by_hand(weights, image, tokenizer()(prompt)["input_ids"]) for image, prompt in zip(IMAGES, PROMPTS, strict=True)]
    scores = model.score(IMAGES, PROMPTS)  # prompts of different lengths: padding must not count
    assert scores.dtype == torch.float32
    np.testing.assert_allclose(scores, wanted, rtol=1e-4, atol=1e-5)
    assert len({round(score, 4) for score in wanted}) == 3


def test_a_long_prompt_is_cut_off_at_35_tokens(directory):
    model = ImageReward.load(directory)
    long, cut = "red " * 60, "red " * 33  # with [CLS] and [SEP]
    assert model.score(IMAGES[:1], [long]) == model.score(IMAGES[:1], [cut])
    assert model.score(IMAGES[:1], [long]) != model.score(IMAGES[:1], ["red " * 32])


def test_half_precision_is_near_and_its_head_is_not_halved(directory):
    model = ImageReward.load(directory, dtype="bfloat16")
    assert {parameter.dtype for parameter in model.head.parameters()} == {torch.float32}
    assert model.vision_model.post_layernorm.weight.dtype == torch.bfloat16
    np.testing.assert_allclose(model.score(IMAGES, PROMPTS), ImageReward.load(directory).score(IMAGES, PROMPTS), atol=0.3)


def original_names(model: ImageReward) -> dict[str, np.ndarray]:
    """The tensors under the names of the published checkpoint, and those in it that scoring does not use."""
    layers = {"0": "0", "1": "2", "2": "4", "3": "6", "4": "7"}
    found = {}
    for name, value in model.state_dict().items():
        if name.startswith("head."):
            _, index, kind = name.split(".")
            name = f"mlp.layers.{layers[index]}.{kind}"
        elif name.startswith("vision_model.encoder.layers."):
            name = name.replace("vision_model.encoder.layers.", "blip.visual_encoder.blocks.").replace("layer_norm", "norm")
            name = name.replace("self_attn.qkv", "attn.qkv").replace("self_attn.projection", "attn.proj")
        elif name.startswith("vision_model.post_layernorm."):
            name = name.replace("vision_model.post_layernorm.", "blip.visual_encoder.norm.")
        elif name.startswith("vision_model."):
            name = name.replace("vision_model.embeddings.patch_embedding.", "blip.visual_encoder.patch_embed.proj.")
            name = name.replace("vision_model.embeddings.class_embedding", "blip.visual_encoder.cls_token")
            name = name.replace("vision_model.embeddings.position_embedding", "blip.visual_encoder.pos_embed")
        else:
            name = f"blip.{name}"
        found[name] = value.numpy()
    found["blip.text_encoder.embeddings.position_ids"] = np.arange(40)[None]
    for side, width in (("vision", 12), ("text", 8)):
        found |= {f"blip.{side}_proj.weight": np.zeros((256, width), np.float32), f"blip.{side}_proj.bias": np.zeros(256, np.float32)}
    return found


def test_the_published_names_become_ours_and_the_scores_stay(tmp_path, directory):
    model = tiny_image_reward()
    named = original_names(model)
    assert "blip.visual_encoder.blocks.1.attn.qkv.weight" in named and "mlp.layers.7.bias" in named
    write_safetensors_atomic(tmp_path / "original.safetensors", named)
    tokenizer().save_pretrained(tmp_path / "bert")
    command = [sys.executable, "jobs/convert_imagereward.py", str(tmp_path / "original.safetensors"), "--out", str(tmp_path / "ours")]
    made = subprocess.run([*command, "--tokenizer", str(tmp_path / "bert")], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert made.returncode == 0, made.stderr
    converted, direct = ImageReward.load(tmp_path / "ours"), ImageReward.load(directory)
    assert converted.state_dict().keys() == model.state_dict().keys()
    assert torch.equal(converted.score(IMAGES, PROMPTS), direct.score(IMAGES, PROMPTS))


def test_sizes_of_the_published_checkpoint_follow_from_its_shapes():
    config = from_original(original_names(tiny_image_reward())).config
    assert (config.vision_config.image_size, config.vision_config.patch_size, config.vision_config.num_hidden_layers) == (SIDE, 8, 2)
    assert (config.text_config.hidden_size, config.text_config.encoder_hidden_size, config.text_config.vocab_size) == (8, 12, 10)


@pytest.mark.parametrize(
    "change", [("drop", "mlp.layers.7.bias"), ("add", "blip.visual_encoder.blocks.0.other"), ("shape", "mlp.layers.0.bias")]
)
def test_a_checkpoint_of_another_model_is_refused(change):
    kind, name = change
    named = original_names(tiny_image_reward())
    if kind == "drop":
        del named[name]
    else:
        named[name] = np.zeros(3, np.float32)
    with pytest.raises(UserError, match="ImageReward.pt under their own names") as caught:
        from_original(named)
    assert "\n" not in str(caught.value)


def test_a_directory_that_is_not_whole_is_refused(tmp_path):
    (tmp_path / "ImageReward.pt").touch()
    with pytest.raises(UserError, match="never opened"):
        ImageReward.load(tmp_path)
    model = tiny_image_reward()
    model.save_directory(tmp_path, tokenizer())
    state = {name: value for name, value in model.state_dict().items() if name != "head.4.bias"}
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(UserError, match=r"1 weights are missing, the first is 'head.4.bias'"):
        ImageReward.load(tmp_path)
