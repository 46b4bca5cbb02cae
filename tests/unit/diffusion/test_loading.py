"""A model that cannot be used is one clear line, and nothing is ever unpickled."""

import json
import pickle
import shutil

import pytest
import torch

from omr_ray.diffusion.policy import Policy
from omr_ray.types import UserError


@pytest.fixture
def model(directories, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(directories["epsilon"], tmp_path / "model")


def refused(path):
    with pytest.raises(UserError) as caught:
        Policy.from_pretrained(str(path))
    message = str(caught.value)
    assert "\n" not in message and ";" in message
    return message


def test_a_missing_directory(tmp_path):
    assert "no such directory" in refused(tmp_path / "absent")
    assert "no such directory" in refused("absent")
    assert "no such directory" in refused("./a")


def test_an_empty_directory(tmp_path):
    assert "model_index.json: no such file" in refused(tmp_path)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_truncated_weights(model, part):
    file = next((model / part).glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-100])
    assert part in refused(model)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_missing_weights(model, part):
    next((model / part).glob("*.safetensors")).unlink()
    assert f"{part}: no *.safetensors" in refused(model)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_pickled_weights_are_refused_and_not_run(model, part, tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    next((model / part).glob("*.safetensors")).unlink()
    for name in ("diffusion_pytorch_model.bin", "pytorch_model.bin"):
        (model / part / name).write_bytes(pickle.dumps(Trap()))
    assert "pickled weights are never opened" in refused(model)
    assert not (tmp_path / "ran").exists()


def test_a_missing_part(model):
    shutil.rmtree(model / "vae")
    assert "vae: no such model directory" in refused(model)


def test_a_missing_tokenizer(model):
    shutil.rmtree(model / "tokenizer")
    assert "tokenizer: no vocabulary" in refused(model)


@pytest.mark.parametrize("part", ["unet", "scheduler", "tokenizer"])
def test_a_damaged_config(model, part):
    for file in (model / part).glob("*.json"):
        file.write_text("{ not json")
    assert part in refused(model)


def test_a_tensor_that_is_missing_is_not_made_up(model):
    from safetensors.torch import load_file, save_file

    file = next((model / "unet").glob("*.safetensors"))
    tensors = load_file(file)
    del tensors["conv_in.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    assert "conv_in.weight" in refused(model)
    save_file({**tensors, "conv_in.weight": torch.zeros(2, 2)}, file, metadata={"format": "pt"})
    assert "unet" in refused(model)


def test_another_kind_of_pipeline(model):
    index = json.loads((model / "model_index.json").read_text())
    (model / "model_index.json").write_text(json.dumps({**index, "unet": ["diffusers", "FluxTransformer2DModel"]}))
    assert "not a Stable Diffusion 1.x, 2.x or SDXL pipeline" in refused(model)


def test_an_inpainting_unet(model):
    from diffusers import UNet2DConditionModel

    config = {**UNet2DConditionModel.load_config(model / "unet"), "in_channels": 9}
    UNet2DConditionModel.from_config(config).save_pretrained(model / "unet")
    assert "takes 9 channels and its VAE makes 4" in refused(model)
