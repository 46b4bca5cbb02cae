from functools import partialmethod

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel

from omr_ray.algorithm.gaussian import log_prob
from omr_ray.diffusion import text as text_module
from omr_ray.diffusion.features import features
from omr_ray.diffusion.policy import Policy
from omr_ray.types import UserError


def inputs(policy, count=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(count, *policy.latent_shape(), generator=generator)
    text = policy.encode_text(policy.tokenize([f"coat {n}" for n in range(count)]))
    return latents, torch.tensor([901, 401, 1][:count]), text


@torch.no_grad()
def test_guidance_in_one_call_is_that_of_two(policy):
    latents, timesteps, text = inputs(policy)
    prompted = policy.predict(latents, timesteps, text)
    empty = policy.predict(latents, timesteps, policy.text.empty(3))
    guided = policy.predict(latents, timesteps, text, guidance_scale=5.0)
    torch.testing.assert_close(guided, empty + 5.0 * (prompted - empty), rtol=1e-5, atol=1e-5)
    assert (guided - prompted).abs().max() > 1e-3


@torch.no_grad()
def test_adapter_off_is_the_base_bit_for_bit(policy):
    latents, timesteps, text = inputs(policy)
    base = UNet2DConditionModel.from_pretrained(policy.path, subfolder="unet", use_safetensors=True)
    expected = base(**policy.unet_inputs(latents, timesteps, text))[0]
    with policy.adapter_off():
        with policy.adapter_off():  # features are taken inside a reference pass too
            pass
        assert torch.equal(policy.predict(latents, timesteps, text), expected)
    adapted = policy.predict(latents, timesteps, text)
    assert (adapted - expected).abs().max() > 1e-3
    assert all(parameter.requires_grad for parameter in policy.lora_parameters().values())


@torch.no_grad()
def test_a_fresh_adapter_changes_nothing_and_is_the_same_everywhere(directories):
    one, other = (Policy.from_pretrained(str(directories["epsilon"])) for _ in range(2))
    for name, value in one.lora_weights().items():
        np.testing.assert_array_equal(value, other.lora_weights()[name])
        assert bool(value.any()) == (".lora_A." in name)
    latents, timesteps, text = inputs(one)
    fresh = one.predict(latents, timesteps, text)
    with one.adapter_off():
        torch.testing.assert_close(one.predict(latents, timesteps, text), fresh)


def test_lora_is_on_q_k_v_out_with_rank_and_alpha_4(policy):
    modules = dict(policy.network.named_modules())
    parameters = policy.lora_parameters()
    adapted = {name.split(".lora_")[0] for name in parameters}
    assert adapted == {name for name in modules if name.endswith((".to_q", ".to_k", ".to_v", ".to_out.0"))}
    assert len(parameters) == 2 * len(adapted) > 0
    for name in adapted:
        out_features, in_features = modules[name].base_layer.weight.shape
        assert parameters[f"{name}.lora_A.weight"].shape == (4, in_features)
        assert parameters[f"{name}.lora_B.weight"].shape == (out_features, 4)
        assert modules[name].scaling["default"] == 1.0  # alpha / rank
    trainable = {id(p) for model in (policy.network, policy.vae, *policy.text.encoders) for p in model.parameters() if p.requires_grad}
    assert trainable == {id(p) for p in parameters.values()}


def test_load_lora_takes_all_or_nothing(sd):
    before = sd.lora_weights()
    doubled = {name: 2 * value for name, value in before.items()}
    sd.load_lora(doubled)
    assert all(np.array_equal(value, doubled[name]) for name, value in sd.lora_weights().items())
    name = next(iter(before))
    with pytest.raises(UserError, match="1 names differ"):
        sd.load_lora({key: value for key, value in before.items() if key != name})
    with pytest.raises(UserError, match="lora.rank"):
        sd.load_lora({**before, name: before[name][:2]})
    assert all(np.array_equal(value, doubled[key]) for key, value in sd.lora_weights().items())


@torch.no_grad()
def test_log_prob_does_not_depend_on_the_batch(policy):
    latents, timesteps, text = inputs(policy)
    previous = torch.tensor([801, 301, 0])
    mean, sigma, _ = policy.step(latents, timesteps, previous, text, eta=1.0, guidance_scale=2.0)
    following = mean + sigma[:, None, None, None] * torch.randn(mean.shape, generator=torch.Generator().manual_seed(1))
    together = log_prob(following, mean, sigma)
    for row in range(3):
        one = slice(row, row + 1)
        alone = policy.step(latents[one], timesteps[one], previous[one], text.take(one), eta=1.0, guidance_scale=2.0)
        ratio = (log_prob(following[one], *alone[:2]) - together[one]).exp()
        assert abs(ratio.item() - 1) <= 1e-6


@torch.no_grad()
def test_the_pipelines_of_diffusers_get_the_same_model_outputs(policy):
    """Our text, time ids, guidance and steps against a whole diffusers pipeline, eta 0, five steps."""
    kind = StableDiffusionXLPipeline if policy.path.endswith("sdxl") else StableDiffusionPipeline
    pipeline = kind.from_pretrained(policy.path, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    latents, _, text = inputs(policy)
    options = {"prompt": [f"coat {n}" for n in range(3)], "guidance_scale": 3.0, "num_inference_steps": 5, "output_type": "latent"}
    theirs = pipeline(latents=latents.clone(), **options).images
    timesteps, previous = policy.schedule(5)
    with policy.adapter_off():
        for t, t_previous in zip(timesteps, previous, strict=True):
            rows = torch.full((3,), int(t)), torch.full((3,), int(t_previous))
            latents, _, _ = policy.step(latents, *rows, text, eta=0.0, guidance_scale=3.0)
    torch.testing.assert_close(latents, theirs, rtol=1e-3, atol=1e-4)


def test_each_prompt_is_encoded_once_and_the_cache_is_bounded(sd, monkeypatch):
    sd.text._cache.clear()
    calls = []
    run = sd.text._run
    monkeypatch.setattr(sd.text, "_run", lambda ids: calls.append(len(ids)) or run(ids))
    monkeypatch.setattr(text_module, "CACHED_PROMPTS", 3)
    ids = sd.tokenize(["a", "b", "a", "b"])
    first = sd.encode_text(ids)
    assert ids.shape == (4, 1, 16) and ids.dtype == np.int64
    assert torch.equal(first.hidden[0], first.hidden[2]) and not torch.equal(first.hidden[0], first.hidden[1])
    assert torch.equal(sd.encode_text(torch.from_numpy(ids)).hidden, first.hidden)
    sd.encode_text(sd.tokenize(["c", "d", "e", "f"]))
    assert calls == [2, 4] and len(sd.text._cache) == 3


def test_cached_text_can_be_used_under_a_gradient(sd):
    sd.text._cache.clear()
    latents, timesteps, _ = inputs(sd)
    with torch.inference_mode():
        sd.encode_text(sd.tokenize(["coat 0", "coat 1", "coat 2"]))
    sd.predict(latents, timesteps, inputs(sd)[2]).square().mean().backward()
    gradients = [parameter.grad for parameter in sd.lora_parameters().values()]
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in gradients)
    assert all(parameter.grad is None for name, parameter in sd.network.named_parameters() if ".lora_" not in name)
    sd.network.zero_grad(set_to_none=True)


def test_a_reference_pass_before_backward_leaves_the_gradient_alone(sd):
    latents, timesteps, text = inputs(sd)

    def gradients(reference):
        output = sd.predict(latents, timesteps, text)
        if reference:
            with torch.no_grad(), sd.adapter_off():
                sd.predict(latents, timesteps, text)
        return torch.autograd.grad(output.square().mean(), list(sd.lora_parameters().values()))

    for plain, after_reference in zip(gradients(False), gradients(True), strict=True):
        assert plain.abs().max() > 0 and torch.equal(plain, after_reference)


def test_images_go_both_ways(sd):
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    latents = sd.encode_images(images)
    expected = sd.vae.encode(torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1).latent_dist.mean * 0.18215
    torch.testing.assert_close(latents, expected.detach())
    latents.requires_grad_()
    decoded = sd.decode(latents)
    assert decoded.shape == (2, 3, 16, 16) and decoded.min() >= 0 and decoded.max() <= 1
    decoded.sum().backward()
    assert latents.grad is not None and latents.grad.abs().sum() > 0
    rendered = sd.render(latents)
    assert rendered.dtype == np.uint8 and rendered.shape == (2, 16, 16, 3)
    np.testing.assert_array_equal(rendered, np.rint(decoded.detach().movedim(1, -1).numpy() * 255))


def test_render_in_pieces_is_render_at_once(sd, monkeypatch):
    latents = torch.randn(5, *sd.latent_shape(), generator=torch.Generator().manual_seed(0))
    whole = sd.render(latents)
    monkeypatch.setattr("omr_ray.diffusion.policy.DECODED_PIXELS", 2 * 16 * 16)
    assert np.abs(sd.render(latents).astype(int) - whole).max() <= 1


def test_latent_shape(sd):
    assert sd.latent_shape() == (4, 8, 8) and sd.latent_shape(32, 16) == (4, 16, 8)
    with pytest.raises(UserError, match="multiples of 2, got 15 x 16"):
        sd.latent_shape(15, 16)


@torch.no_grad()
def test_features_come_from_the_base_and_do_not_move_with_the_adapter(policy):
    latents, _, _ = inputs(policy)
    before = features(policy, latents)
    assert before.shape == (3, 8 * 4 * 4) and before.dtype == torch.float32
    policy.load_lora({name: 3 * value for name, value in policy.lora_weights().items()})
    assert torch.equal(features(policy, latents), before)
    torch.testing.assert_close(features(policy, latents[1:2]), before[1:2], rtol=1e-5, atol=1e-5)
    with policy.adapter_off():
        seen = []
        hook = policy.network.conv_out.register_forward_hook(lambda _module, given, _output: seen.append(given[0]))
        policy.predict(latents, torch.full((3,), 20), policy.text.empty(3))
        hook.remove()
    # 8 x 8 activations to a 4 x 4 grid: each cell is the mean of 2 x 2.
    cells = seen[0].reshape(3, 8, 4, 2, 4, 2).mean(dim=(3, 5)).flatten(1)
    torch.testing.assert_close(before, cells)


@torch.no_grad()
def test_bfloat16_keeps_the_arithmetic_in_float32(directories):
    policy = Policy.from_pretrained(str(directories["sdxl"]), dtype="bfloat16", channels_last=True)
    latents, timesteps, text = inputs(policy)
    mean, sigma, _ = policy.step(latents, timesteps, torch.tensor([801, 301, 0]), text, eta=1.0, guidance_scale=2.0)
    assert mean.dtype == sigma.dtype == torch.float32 and torch.isfinite(mean).all()
    assert {parameter.dtype for parameter in policy.lora_parameters().values()} == {torch.float32}
    assert policy.network.conv_in.weight.dtype == torch.bfloat16
    assert policy.render(latents).shape == (3, 16, 16, 3) and features(policy, latents).dtype == torch.float32


def test_the_schedule_follows_the_models_scheduler(sd):
    scheduler = DDIMScheduler.from_pretrained(sd.path, subfolder="scheduler")
    scheduler.set_timesteps(7)
    assert sd.schedule(7)[0].tolist() == scheduler.timesteps.tolist() and sd.prediction_type == "epsilon"
    assert torch.equal(sd.alphas_cumprod, scheduler.alphas_cumprod)


@torch.no_grad()
def test_a_wrapper_around_the_unet_is_what_predict_calls(sd, monkeypatch):
    """A learner puts its DeepSpeed engine there; reference passes and features still reach the network below."""

    class Engine(torch.nn.Module):
        calls = 0

        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, **inputs):
            self.calls += 1
            return self.module(**inputs)

    latents, timesteps, text = inputs(sd)
    expected, feature = sd.predict(latents, timesteps, text), features(sd, latents)
    with sd.adapter_off():
        reference = sd.predict(latents, timesteps, text)
    engine = Engine(sd.network)
    monkeypatch.setattr(sd, "unet", engine)
    assert torch.equal(sd.predict(latents, timesteps, text), expected) and engine.calls == 1
    with sd.adapter_off():
        assert torch.equal(sd.predict(latents, timesteps, text), reference)
    assert torch.equal(features(sd, latents), feature)
    assert "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight" in sd.lora_parameters()


@pytest.mark.slow
@torch.no_grad()
def test_compiled_is_the_same_policy(sd, monkeypatch):
    """Captured graphs with the adapter on, off and on again; features see the last convolution all the same.

    The graphs run as captured: generating code for them takes minutes and says nothing about the adapter.
    """
    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(torch.nn.Module.compile, backend="eager"))
    compiled = Policy.from_pretrained(sd.path, compile=True)
    compiled.load_lora(sd.lora_weights())
    latents, timesteps, text = inputs(sd)
    for _ in range(2):
        torch.testing.assert_close(compiled.predict(latents, timesteps, text), sd.predict(latents, timesteps, text), rtol=1e-4, atol=1e-5)
        with sd.adapter_off(), compiled.adapter_off():
            torch.testing.assert_close(
                compiled.predict(latents, timesteps, text), sd.predict(latents, timesteps, text), rtol=1e-4, atol=1e-5
            )
        torch.testing.assert_close(features(compiled, latents), features(sd, latents))
