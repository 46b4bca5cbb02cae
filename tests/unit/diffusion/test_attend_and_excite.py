import math

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

from omr_ray.atelier import WEIGHTS
from omr_ray.diffusion.attend_and_excite import AttendAndExcite, alignment, attention_maps, coarse_layers, misalignment
from omr_ray.diffusion.generation import generate_guided
from omr_ray.diffusion.prompt_elements import element_weights
from omr_ray.diffusion.sampler import MultiRoundSampler

PROMPTS = ["red coat hat", "blue dress", "coat", "hat belt sun"]
SEEDS = [1, 2, 3, 4]


def sampler(policy, **changes):
    options = {"steps": 4, "eta": 1.0, "guidance_scale": 2.0, "strength": (0.5,), "siblings": 1, "window": (1, 4)}
    return MultiRoundSampler(policy, **{**options, "train_steps_per_round": 1, "shared_window": True, **changes})


def excite(policy, threshold, **changes):
    options = {"early_share": 0.5, "iterations": 2, "step_size": (5.0, 1.0)}
    return AttendAndExcite(policy, threshold=threshold, **{**options, **changes})


def row(policy, prompts=PROMPTS, seed=0):
    latents = torch.randn(len(prompts), *policy.latent_shape(), generator=torch.Generator().manual_seed(seed))
    ids = policy.tokenize(prompts)
    times = torch.full((len(prompts),), 801)
    return latents, times, policy.encode_text(ids), element_weights(policy.text.tokenizers[0], ids)


def test_alignment_of_even_maps_by_hand():
    """Attention 0.2 and 0.4 on the pieces of one word, 0.1 on another one, 0.3 on what is no element: shares 0.75 and 0.25."""
    maps = torch.tensor([0.2, 0.4, 0.1, 0.3]).expand(1, 3, 3, 4)
    elements = torch.tensor([[[0.5, 0.5, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]])
    torch.testing.assert_close(alignment(maps, elements), torch.tensor([0.25]))


def test_alignment_takes_the_smoothed_maximum_of_the_weakest_element():
    """One element has all attention at the centre, the other one everywhere else: the kernel's centre is 1 / (1 + 2 exp(-2))^2."""
    maps = torch.zeros(1, 3, 3, 2)
    maps[..., 1] = 1
    maps[0, 1, 1] = torch.tensor([1.0, 0.0])
    torch.testing.assert_close(alignment(maps, torch.eye(2)[None]), torch.tensor([1 / (1 + 2 * math.exp(-2)) ** 2]))


def test_nothing_is_neglected_where_nothing_competes():
    maps = torch.rand(2, 3, 3, 2)
    elements = torch.tensor([[[1.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])  # one element, none
    torch.testing.assert_close(alignment(maps, elements), torch.ones(2))
    assert torch.isfinite(alignment(torch.zeros(2, 3, 3, 2), elements)).all()


@pytest.mark.parametrize(
    ("levels", "latent", "side", "count"),
    [("CCCD", 64, 16, 3), ("CCCD", 96, 24, 3), ("DCC", 128, 32, 4), ("CCC", 16, 8, 3), ("CD", 8, 8, 3), ("CCC", 4, 4, 3)],
)
def test_the_layers_that_are_looked_at(levels, latent, side, count):
    """Stable Diffusion at 512 and 768 pixels, SDXL at 1024, the embedded model, the tests' own, and one with too few cells.

    One layer on the way down, two on the way up, and where it is the deepest level the middle.
    """
    kinds = {"C": "CrossAttn{}Block2D", "D": "{}Block2D"}
    unet = UNet2DConditionModel(
        block_out_channels=(4,) * len(levels),
        down_block_types=tuple(kinds[level].format("Down") for level in levels),
        up_block_types=tuple(kinds[level].format("Up") for level in reversed(levels)),
        layers_per_block=1,
        norm_num_groups=2,
        attention_head_dim=2,
        cross_attention_dim=4,
    )
    layers, sides = coarse_layers(unet, latent, latent)
    assert sides == (side, side)
    seen = []
    hooks = [layer.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0].shape[1])) for layer in layers]
    unet(torch.zeros(1, 4, latent, latent), 0, torch.zeros(1, 3, 4))
    assert seen == [side**2] * count and len(hooks) == count


def test_the_embedded_model_is_looked_at_in_8_by_8_cells():
    unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(WEIGHTS / "unet"))
    assert coarse_layers(unet, 16, 16)[1] == (8, 8)


@torch.no_grad()
def test_maps_are_the_layers_own_attention_and_leave_no_trace(policy):
    latents, times, text, _ = row(policy)
    before = policy.predict(latents, times, text)
    layers, (height, width) = coarse_layers(policy.network, *latents.shape[-2:])
    processors = [layer.processor for layer in layers]
    given = []
    hooks = [
        layer.register_forward_pre_hook(
            lambda layer, args, kwargs: given.append((layer, args[0], kwargs["encoder_hidden_states"])), with_kwargs=True
        )
        for layer in layers
    ]
    maps = attention_maps(policy, latents, times, text)
    for hook in hooks:
        hook.remove()
    expected = []
    for layer, hidden, context in given:
        query, key = (value.unflatten(-1, (layer.heads, -1)).movedim(2, 1) for value in (layer.to_q(hidden), layer.to_k(context)))
        expected.append((query @ key.mT * query.shape[-1] ** -0.5).softmax(-1).mean(1))
    torch.testing.assert_close(maps, torch.stack(expected).mean(0).unflatten(1, (height, width)))
    assert all(layer.processor is processor for layer, processor in zip(layers, processors, strict=True))
    assert torch.equal(policy.predict(latents, times, text), before)


def test_a_row_moves_by_the_step_size_times_the_gradient(sd):
    latents, times, text, elements = row(sd)
    start = latents.clone().requires_grad_()
    loss = misalignment(sd, start, times, text, elements)
    (gradient,) = torch.autograd.grad(loss.sum(), start)
    threshold = loss.detach().sort().values[1].item() + 1e-4  # the two most neglected rows
    attention = excite(sd, threshold, iterations=1, step_size=(8.0, 2.0))
    moved, found = attention.excite(latents, times, text, elements, None, step=1, steps=4)
    torch.testing.assert_close(found, loss.detach())
    high = found > threshold
    assert high.sum() == 2
    torch.testing.assert_close(moved[high], (latents - 6.0 * gradient)[high])  # 8, 6, 4, 2
    assert torch.equal(moved[~high], latents[~high])
    after = misalignment(sd, moved, times, text, elements)
    assert (after[high] < found[high]).all()


def test_a_row_stops_moving_at_the_threshold(sd):
    latents, times, text, elements = row(sd)
    found = misalignment(sd, latents, times, text, elements).detach()
    worst = int(found.argmax())
    step = {"step_size": (6.0, 6.0)}
    once, _ = excite(sd, found.max().item() - 1e-6, iterations=1, **step).excite(latents, times, text, elements, None, step=0, steps=4)
    after = misalignment(sd, once, times, text, elements)[worst].item()
    assert after < found[worst]
    halfway = (after + found[worst].item()) / 2  # one step goes below it, and 49 more are allowed
    often, _ = excite(sd, halfway, iterations=50, **step).excite(latents, times, text, elements, None, step=0, steps=4)
    torch.testing.assert_close(often[worst], once[worst])
    more, _ = excite(sd, 0.0, iterations=3, **step).excite(latents, times, text, elements, None, step=0, steps=4)
    assert (more[worst] - once[worst]).abs().max() > 1e-4


def test_a_latent_that_is_not_finite_is_left_alone(sd):
    latents, times, text, elements = row(sd)
    latents[1] = torch.nan
    moved, found = excite(sd, 0.0).excite(latents, times, text, elements, None, step=0, steps=4)
    assert torch.isnan(found).tolist() == [False, True, False, False]
    assert torch.isnan(moved[1]).all() and torch.isfinite(moved[[0, 2, 3]]).all()


def test_not_triggered_is_bit_for_bit_the_plain_sampler(policy):
    one = sampler(policy)
    images, latents = one.generate(PROMPTS, seeds=SEEDS)
    made = generate_guided(one, PROMPTS, seeds=SEEDS, attention=excite(policy, 1.0))
    assert np.array_equal(made.latents, latents) and np.array_equal(made.images, images)
    assert not made.excited.any() and (made.misalignment[[0, 1, 3]] > 0).all() and abs(made.misalignment[2]) < 1e-6
    plain = generate_guided(one, PROMPTS, seeds=SEEDS)
    assert np.array_equal(plain.latents, latents) and np.isnan(plain.misalignment).all() and not plain.excited.any()


def test_only_some_rows_of_a_batch_are_excited(policy):
    one = sampler(policy)
    plain = generate_guided(one, PROMPTS, seeds=SEEDS, attention=excite(policy, 1.0))
    threshold = float(np.sort(plain.misalignment)[-2:].mean())
    made = generate_guided(one, PROMPTS, seeds=SEEDS, attention=excite(policy, threshold))
    (hit,) = np.flatnonzero(plain.misalignment > threshold)
    assert np.flatnonzero(made.excited).tolist() == [hit]
    rest = [index for index in range(4) if index != hit]
    assert np.array_equal(made.latents[rest], plain.latents[rest]) and np.array_equal(made.images[rest], plain.images[rest])
    assert np.abs(made.latents[hit] - plain.latents[hit]).max() > 1e-4
    alone = generate_guided(one, [PROMPTS[hit]], seeds=[SEEDS[hit]], attention=excite(policy, threshold))
    np.testing.assert_allclose(alone.latents[0], made.latents[hit], atol=1e-4)


def test_only_early_steps_are_looked_at(sd):
    attention = excite(sd, 0.5)
    assert [attention.acts_at(step, 4) for step in range(4)] == [True, True, False, False]
    _, latents = sampler(sd).generate(PROMPTS, seeds=SEEDS)
    late = generate_guided(sampler(sd), PROMPTS, seeds=SEEDS, from_latents=latents, strength=0.5, attention=attention)
    assert np.isnan(late.misalignment).all() and not late.excited.any()  # an edit that begins behind them


def test_stored_steps_are_a_chain_that_ends_in_the_image(sd):
    made = generate_guided(sampler(sd, batch_size=3), PROMPTS, seeds=SEEDS, kept=[0, 1, 2, 3])
    assert made.stored_latents.shape == made.stored_next_latents.shape == (4, 4, 4, 8, 8)
    assert np.array_equal(made.stored_latents[:, 1:], made.stored_next_latents[:, :-1])
    assert np.array_equal(made.stored_next_latents[:, -1], made.latents)
    assert generate_guided(sampler(sd), PROMPTS, seeds=SEEDS).stored_latents.shape == (4, 0, 4, 8, 8)
