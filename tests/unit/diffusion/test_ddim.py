import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from omr_ray.algorithm.gaussian import ddim_mean_and_sigma, per_row
from omr_ray.diffusion.ddim import executed_steps, schedule
from omr_ray.types import UserError


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("steps", [1, 3, 7, 10, 50, 70, 600])
def test_schedule_is_that_of_diffusers(spacing, offset, steps):
    scheduler = DDIMScheduler(timestep_spacing=spacing, steps_offset=offset)
    scheduler.set_timesteps(steps)
    timesteps, previous = schedule(1000, steps, spacing, offset)
    assert timesteps.dtype == previous.dtype == np.int64
    assert timesteps.tolist() == scheduler.timesteps.tolist()
    assert previous.tolist() == [max(0, t - 1000 // steps) for t in timesteps]


def test_schedule_by_hand():
    assert [a.tolist() for a in schedule(10, 5, "leading", 1)] == [[9, 7, 5, 3, 1], [7, 5, 3, 1, 0]]
    assert [a.tolist() for a in schedule(10, 5, "trailing", 0)] == [[9, 7, 5, 3, 1], [7, 5, 3, 1, 0]]
    assert [a.tolist() for a in schedule(10, 4, "linspace", 0)] == [[9, 6, 3, 0], [7, 4, 1, 0]]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((1000, 0, "leading", 0), "1..1000"),
        ((1000, 1001, "leading", 0), "1..1000"),
        ((1000, 1000, "leading", 1), "leaves the model"),
        ((1000, 10, "karras", 0), "'karras'"),
    ],
)
def test_schedule_refuses(arguments, words):
    with pytest.raises(UserError, match=words):
        schedule(*arguments)


def test_executed_steps():
    assert [executed_steps(strength, 10) for strength in (1.0, 0.66, 0.5, 0.01)] == [10, 7, 5, 1]


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_a_full_run_is_that_of_diffusers(prediction_type, eta, spacing):
    """Ten steps with given noise and a fixed stand-in for the network."""
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        prediction_type=prediction_type,
        timestep_spacing=spacing,
    )
    scheduler.set_timesteps(10)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(11, 2, 4, 8, 8, generator=generator)

    def network(latents, t):
        return torch.tanh(latents.roll(1, dims=-1) + t / 1000)

    theirs = ours = noise[0]
    timesteps, previous = schedule(1000, 10, spacing, 0)
    for step, t in enumerate(scheduler.timesteps):
        variance_noise = noise[step + 1] if eta else None
        theirs = scheduler.step(network(theirs, int(t)), int(t), theirs, eta=eta, variance_noise=variance_noise).prev_sample
        rows = (torch.full((2,), int(timesteps[step])), torch.full((2,), int(previous[step])))
        output = network(ours, int(timesteps[step]))
        mean, sigma, _ = ddim_mean_and_sigma(output, ours, *rows, scheduler.alphas_cumprod, prediction_type, eta)
        ours = mean + per_row(sigma, mean) * noise[step + 1]
    assert torch.isfinite(ours).all()
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
