"""Whatever form a model is stored in, vLLM loads it, and gives the scores of transformers."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from omr_ray.config.rewards import PreferenceModel
from omr_ray.loading import reward_engine_from, reward_model_path
from omr_ray.types import UserError
from omr_ray.vlm.reward_model import RewardModel
from omr_ray.vlm.trainable import TrainableRewardModel
from omr_ray.vlm.vllm_engine import VllmRewardModel
from tests.tiny_qwen import make_tiny_qwen
from tests.vllm.engines import alone, assert_alike
from tests.vllm.pairs import dialogue_pairs, pairs_of_many_sizes

pytestmark = pytest.mark.timeout(900)  # a busy machine loads models slowly

SHIPPED = reward_model_path("atelier")


def test_an_adapter_is_merged_with_its_linear_head_and_leaves_nothing_behind(tmp_path):
    model = TrainableRewardModel.load(
        SHIPPED, scratch=False, dtype="float32", quantization=None, head="linear", lora=(4, 8), seed=0, device="cpu"
    )
    torch.manual_seed(0)
    names = set()
    with torch.no_grad():
        for name, parameter in model.trainable().items():
            parameter.add_(0.03 * torch.randn_like(parameter))
            names.add(name.split(".")[0] if "lora" not in name else "visual" if ".visual." in name else "language")
    assert names == {"head", "visual", "language"}
    model.save(tmp_path, base="atelier")

    images, prompts = pairs_of_many_sizes(24)
    wanted = model.eval().score(images, prompts)
    assert (wanted - RewardModel.from_pretrained(SHIPPED).score(images, prompts)).abs().mean() > 0.05
    with alone(reward_engine_from(PreferenceModel(path=str(tmp_path), engine="vllm"))) as engine:
        assert not list(Path(tempfile.gettempdir()).glob("omr_ray-merged-*"))
        assert_alike(wanted, engine.score(images, prompts))


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_every_family_stored_with_and_without_its_last_layer(tmp_path, family):
    model = RewardModel.from_pretrained(make_tiny_qwen(tmp_path / "whole", family, heads=1))
    model.network.save_pretrained(tmp_path / "base")
    model.inputs.tokenizer.save_pretrained(tmp_path / "base")
    model.inputs.image_processor.save_pretrained(tmp_path / "base")
    model.save_pretrained(tmp_path / "ours")
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in [(24, 24), (40, 20), (16, 32), (64, 48)]]
    prompts = ["hat", "a red dress with a belt", "two coats in the snow", "a"]
    wanted = model.score(images, prompts)
    for stored in ("whole", "base", "ours"):
        with alone(VllmRewardModel.load(str(tmp_path / stored))) as engine:
            assert_alike(wanted, engine.score(images, prompts))


def test_bfloat16_scores_are_float32_and_near():
    images, prompts = dialogue_pairs(32)
    with alone(VllmRewardModel.load(SHIPPED, dtype="bfloat16")) as engine:
        scores = engine.score(images, prompts)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, RewardModel.from_pretrained(SHIPPED).score(images, prompts), atol=0.05, rtol=0)


def test_a_damaged_file_and_another_device_are_the_users_fault(tmp_path):
    make_tiny_qwen(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(UserError, match="model.safetensors: cannot be loaded"):
        VllmRewardModel.load(str(tmp_path))
    with pytest.raises(UserError, match="computes on cpu.*asked for on cuda"):
        VllmRewardModel.load(SHIPPED, device="cuda")
