"""A ControlNet beside the policy: takes no part without a pose, and leads with one."""

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel

from omr_ray.config.finetune import FinetuneRun
from omr_ray.config.run import AtelierModel, DiffusersModel, RunConfig, Sampler
from omr_ray.diffusion.attend_and_excite import AttendAndExcite
from omr_ray.diffusion.generation import generate_guided
from omr_ray.diffusion.policy import Policy
from omr_ray.loading import policy_from, sampler_from
from omr_ray.types import UserError
from tests.unit.diffusion.conftest import moved

KEYPOINTS = 3


def make_controlnet(model, path, *, fresh=False, **options):
    """Of the UNet in `model`; "fresh" as it starts, with convolutions at zero, otherwise with random ones in their place."""
    unet = UNet2DConditionModel.from_pretrained(model, subfolder="unet", use_safetensors=True)
    torch.manual_seed(5)
    options = {"conditioning_channels": KEYPOINTS, "conditioning_embedding_out_channels": (4, 8), **options}
    controlnet = ControlNetModel.from_unet(unet, **options)
    if not fresh:
        last = (controlnet.controlnet_cond_embedding.conv_out, *controlnet.controlnet_down_blocks, controlnet.controlnet_mid_block)
        for convolution in last:
            torch.nn.init.normal_(convolution.weight, std=0.3)
    controlnet.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module", params=["epsilon", "sdxl"])
def pair(request, directories, tmp_path_factory):
    """The same policy without and with a ControlNet."""
    model, path = str(directories[request.param]), tmp_path_factory.mktemp("controlnet") / "made"
    return tuple(moved(Policy.from_pretrained(model, controlnet=made)) for made in (None, make_controlnet(model, path)))


def inputs(policy, count=3):
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(count, *policy.latent_shape(), generator=generator)
    maps = torch.rand(count, KEYPOINTS, policy.height, policy.width, generator=generator)
    text = policy.encode_text(policy.tokenize([f"coat {n}" for n in range(count)]))
    return latents, torch.tensor([901, 401, 1][:count]), text, maps


@torch.no_grad()
def test_without_a_pose_it_takes_no_part(pair):
    plain, posed = pair
    latents, timesteps, text, _ = inputs(plain)
    for guidance in (1.0, 3.0):
        assert torch.equal(plain.predict(latents, timesteps, text, guidance), posed.predict(latents, timesteps, text, guidance))
    prompts, seeds = ["red coat", "hat"], [1, 2]
    one, other = (sampler_from(policy, Sampler(steps=3, window=(1, 3))) for policy in pair)
    for made, same in zip(one.generate(prompts, seeds=seeds), other.generate(prompts, seeds=seeds), strict=True):
        assert np.array_equal(made, same)


@torch.no_grad()
def test_its_residuals_are_what_diffusers_adds(pair):
    _, policy = pair
    latents, timesteps, text, maps = inputs(policy)
    given = policy.unet_inputs(latents, timesteps, text)
    down, middle = policy.controlnet(controlnet_cond=maps, **given)
    expected = policy.network(**given, down_block_additional_residuals=down, mid_block_additional_residual=middle)[0]
    led = policy.predict(latents, timesteps, text, heat_maps=maps)
    assert torch.equal(led, expected)
    assert (led - policy.predict(latents, timesteps, text)).abs().max() > 1e-2
    assert (led - policy.predict(latents, timesteps, text, heat_maps=maps.flip(1))).abs().max() > 1e-4


@torch.no_grad()
def test_guidance_gives_the_pose_to_both_branches(pair):
    _, policy = pair
    latents, timesteps, text, maps = inputs(policy)
    prompted = policy.predict(latents, timesteps, text, heat_maps=maps)
    empty = policy.predict(latents, timesteps, policy.text.empty(3), heat_maps=maps)
    guided = policy.predict(latents, timesteps, text, 5.0, maps)
    torch.testing.assert_close(guided, empty + 5.0 * (prompted - empty), rtol=1e-4, atol=1e-4)


def test_a_fresh_one_changes_nothing(directories, tmp_path):
    model = str(directories["epsilon"])
    policy = Policy.from_pretrained(model, controlnet=make_controlnet(model, tmp_path / "fresh", fresh=True))
    latents, timesteps, text, maps = inputs(policy)
    with torch.no_grad():
        assert torch.equal(policy.predict(latents, timesteps, text, heat_maps=maps), policy.predict(latents, timesteps, text))


def test_it_can_be_tuned_while_the_policy_stays(pair):
    """What eq. 9 needs: the gradient reaches the ControlNet through the frozen UNet."""
    _, policy = pair
    latents, timesteps, text, maps = inputs(policy)
    policy.controlnet.requires_grad_(True)
    policy.predict(latents, timesteps, text, heat_maps=maps).square().mean().backward()
    assert policy.controlnet.controlnet_mid_block.weight.grad.abs().max() > 0
    assert policy.controlnet.controlnet_cond_embedding.conv_in.weight.grad.abs().max() > 0
    policy.controlnet.requires_grad_(False).zero_grad(set_to_none=True)
    policy.network.zero_grad(set_to_none=True)


def test_a_posed_sample_does_not_depend_on_its_batch(pair):
    _, policy = pair
    sampler = sampler_from(policy, Sampler(steps=3, window=(1, 3), guidance_scale=2.0))
    maps = inputs(policy)[3].numpy()
    prompts, seeds = ["red coat hat", "blue dress", "sun hat"], [1, 2, 3]
    excite = AttendAndExcite(policy, threshold=0.4, early_share=0.5, iterations=1, step_size=(1.0, 1.0))
    made = generate_guided(sampler, prompts, seeds=seeds, heat_maps=maps, attention=excite)
    plain = generate_guided(sampler, prompts, seeds=seeds, attention=excite)
    assert np.abs(made.latents - plain.latents).max() > 1e-2 and np.abs(made.misalignment - plain.misalignment).max() > 1e-6
    alone = generate_guided(sampler, prompts[1:2], seeds=seeds[1:2], heat_maps=maps[1:2], attention=excite)
    np.testing.assert_allclose(alone.latents[0], made.latents[1], atol=1e-4)


def test_a_pose_that_does_not_fit_is_one_line(pair):
    plain, posed = pair
    latents, timesteps, text, maps = inputs(plain)
    with pytest.raises(UserError, match="no ControlNet beside it; set model.controlnet"):
        plain.predict(latents, timesteps, text, heat_maps=maps)
    with pytest.raises(UserError, match="reads 3 keypoints, the pose has 2;"):
        posed.predict(latents, timesteps, text, heat_maps=maps[:, :2])


def refused(model, controlnet):
    with pytest.raises(UserError) as caught:
        Policy.from_pretrained(str(model), controlnet=str(controlnet))
    message = str(caught.value)
    assert "\n" not in message and ";" in message
    return message


def test_one_that_cannot_be_used_is_one_line(directories, tmp_path):
    model = directories["epsilon"]
    assert "model.controlnet" in refused(model, tmp_path / "absent") and "no such directory" in refused(model, tmp_path / "absent")
    other = make_controlnet(str(directories["sdxl"]), tmp_path / "sdxl")
    assert "made for another UNet (cross_attention_dim 32, here 16)" in refused(model, other)
    wide = make_controlnet(str(model), tmp_path / "wide", conditioning_embedding_out_channels=(4, 8, 8))
    assert "takes images 4 times the latent's size, here they are 2 times" in refused(model, wide)
    whole = make_controlnet(str(model), tmp_path / "cut")
    file = next((tmp_path / "cut").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-100])
    assert "cannot be loaded" in refused(model, whole)
    file.unlink()
    assert "no *.safetensors" in refused(model, whole)


def test_the_config_names_it(directories, tmp_path, monkeypatch):
    model = str(directories["epsilon"])
    made = make_controlnet(model, tmp_path / "made")
    policy = policy_from(DiffusersModel(path=model, dtype="float32", controlnet=made), None)
    assert policy.controlnet is not None and policy.rank is None
    monkeypatch.setattr("omr_ray.atelier.WEIGHTS", tmp_path)
    with pytest.raises(UserError, match="controlnet: these embedded weights are not there; make them"):
        policy_from(AtelierModel(controlnet="atelier"), None)


@pytest.mark.parametrize(("kind", "more"), [(RunConfig, {}), (FinetuneRun, {"data": {"path": "data"}})])
def test_training_has_no_use_for_it(kind, more):
    with pytest.raises(ValueError, match="leave model.controlnet out"):
        kind.model_validate({"name": "x", "model": {"kind": "atelier", "controlnet": "atelier"}, **more})
