import json

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from peft import PeftModel
from safetensors.numpy import load_file, save_file

from omr_ray.diffusion.adapters import Adapter, export_adapter, load_adapter, model_card
from omr_ray.diffusion.policy import Policy
from omr_ray.types import UserError
from tests.unit.diffusion.conftest import moved

FORMS = ["", "adapter_model.safetensors", "pytorch_lora_weights.safetensors", "mine_kohya.safetensors"]


def exported(policy, directory, **changes):
    values = {
        "weights": policy.lora_weights(),
        "rank": policy.rank,
        "alpha": policy.alpha,
        "base_model": policy.path,
        "metadata": {"run": "x"},
    }
    adapter = Adapter(**{**values, **changes})
    export_adapter(adapter, directory, model_card(policy.path, "a title", {"accuracy": 0.5}), name="mine")
    return adapter


@pytest.fixture
def alpha_8(directories):
    """alpha is not the rank: a form that loses alpha would halve the adapter."""
    return moved(Policy.from_pretrained(str(directories["epsilon"]), alpha=8.0))


def output(policy, network):
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, *policy.latent_shape(), generator=generator)
    text = policy.encode_text(policy.tokenize(["coat", "dress"]))
    with torch.no_grad():
        return network(**policy.unet_inputs(latents, torch.tensor([801, 1]), text))[0]


@pytest.mark.parametrize("form", FORMS)
def test_round_trip_with_every_key_matched(policy, tmp_path, form):
    adapter = exported(policy, tmp_path)
    read = load_adapter(tmp_path / form)
    assert read.weights.keys() == adapter.weights.keys() == policy.lora_parameters().keys()
    for name, value in adapter.weights.items():
        np.testing.assert_array_equal(read.weights[name], value)
    assert (read.rank, read.alpha, read.metadata) == (4, 4.0, {"run": "x"})
    policy.load_lora(read.weights_for(4, 4.0))


@pytest.mark.parametrize("form", FORMS)
def test_alpha_survives_and_is_folded_into_another(alpha_8, sd, tmp_path, form):
    exported(alpha_8, tmp_path)
    read = load_adapter(tmp_path / form)
    assert read.alpha == 8.0
    sd.load_lora(read.weights_for(sd.rank, sd.alpha))
    torch.testing.assert_close(output(sd, sd.network), output(alpha_8, alpha_8.network), rtol=1e-5, atol=1e-6)
    with pytest.raises(UserError, match="set lora.rank to 4"):
        read.weights_for(8, 8.0)


@pytest.mark.parametrize("form", FORMS[2:])
def test_a_plain_diffusers_pipeline_gives_the_same_output(policy, tmp_path, form):
    exported(policy, tmp_path)
    kind = StableDiffusionXLPipeline if policy.path.endswith("sdxl") else StableDiffusionPipeline
    pipeline = kind.from_pretrained(policy.path, use_safetensors=True)
    base = output(policy, pipeline.unet)
    pipeline.load_lora_weights(tmp_path, weight_name=form)
    loaded = {name.replace(".default_0.", ".") for name, _ in pipeline.unet.named_parameters() if ".lora_" in name}
    assert loaded == policy.lora_parameters().keys()
    torch.testing.assert_close(output(policy, pipeline.unet), output(policy, policy.network), rtol=1e-5, atol=1e-5)
    assert (output(policy, policy.network) - base).abs().max() > 1e-3


@pytest.mark.parametrize("form", FORMS[2:])
def test_a_plain_diffusers_pipeline_takes_alpha(alpha_8, tmp_path, form):
    exported(alpha_8, tmp_path)
    pipeline = StableDiffusionPipeline.from_pretrained(alpha_8.path, use_safetensors=True)
    pipeline.load_lora_weights(tmp_path, weight_name=form)
    torch.testing.assert_close(output(alpha_8, pipeline.unet), output(alpha_8, alpha_8.network), rtol=1e-5, atol=1e-5)


def test_the_directory_itself_loads_in_diffusers_and_peft(alpha_8, tmp_path):
    exported(alpha_8, tmp_path)
    pipeline = StableDiffusionPipeline.from_pretrained(alpha_8.path, use_safetensors=True)
    pipeline.load_lora_weights(tmp_path)
    expected = output(alpha_8, alpha_8.network)
    torch.testing.assert_close(output(alpha_8, pipeline.unet), expected, rtol=1e-5, atol=1e-5)
    base = UNet2DConditionModel.from_pretrained(alpha_8.path, subfolder="unet", use_safetensors=True)
    torch.testing.assert_close(output(alpha_8, PeftModel.from_pretrained(base, tmp_path)), expected, rtol=1e-5, atol=1e-5)


def test_kohya_names(sd, tmp_path):
    exported(sd, tmp_path)
    found = load_file(tmp_path / "mine_kohya.safetensors")
    prefix = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_out_0"
    assert found[f"{prefix}.lora_down.weight"].shape == (4, 16) and found[f"{prefix}.lora_up.weight"].shape == (16, 4)
    assert float(found[f"{prefix}.alpha"]) == 4.0
    assert "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight" in found


def test_the_card_and_what_made_it_lie_beside(sd, tmp_path):
    exported(sd, tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert card.startswith(f"---\nbase_model: {sd.path}\n") and "| accuracy | 0.5 |" in card
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (4, 4.0, sd.path)
    assert sorted(config["target_modules"]) == ["to_k", "to_out.0", "to_q", "to_v"]


def test_adapters_that_cannot_be_used(sd, tmp_path):
    def refused(path):
        with pytest.raises(UserError) as caught:
            load_adapter(path)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "no such file" in refused(tmp_path / "absent")
    assert "give an exported adapter" in refused(tmp_path)
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    assert "pickled weights are never opened" in refused(tmp_path)
    exported(sd, tmp_path)
    whole = (tmp_path / "adapter_model.safetensors").read_bytes()
    (tmp_path / "adapter_model.safetensors").write_bytes(whole[:-8])
    assert "cannot be loaded" in refused(tmp_path)
    other = tmp_path / "other.safetensors"
    a, b = np.zeros((4, 16), np.float32), np.zeros((16, 4), np.float32)
    save_file({"unet.x.lora_A.weight": a, "text_encoder.x.lora_A.weight": a}, other)
    assert "unknown key 'text_encoder.x.lora_A.weight'" in refused(other)
    save_file({"lora_unet_input_blocks_1_1_proj_in.lora_down.weight": a}, other)
    assert "unknown key 'lora_unet_input_blocks_1_1_proj_in.lora_down.weight'" in refused(other)
    save_file({"unet.x.lora_A.weight": a, "unet.y.lora_B.weight": b}, other)
    assert "A and B of every module" in refused(other)
    save_file({}, other)
    assert "A and B of every module" in refused(other)
