import math

import pytest
import torch
from diffusers import DDIMScheduler

from omr_ray.algorithm.gaussian import SIGMA_FLOOR, ddim_mean_and_sigma, log_prob, x0_and_epsilon
from omr_ray.types import UserError

ALPHAS = torch.tensor([0.96, 0.64, 0.36])


def row(value):
    return torch.full((1, 1, 1, 2), value)


@pytest.mark.parametrize(
    ("prediction_type", "output", "x0", "epsilon"),
    [
        ("epsilon", 0.5, 1.0, 0.5),  # (1 - 0.8 * 0.5) / 0.6
        ("v_prediction", 0.5, 0.2, 1.1),  # 0.6 - 0.8 * 0.5 and 0.6 * 0.5 + 0.8
        ("sample", 0.5, 0.5, 0.875),  # (1 - 0.6 * 0.5) / 0.8
    ],
)
def test_what_a_model_output_stands_for(prediction_type, output, x0, epsilon):
    found = x0_and_epsilon(row(output), row(1.0), torch.tensor([0.36]), prediction_type)
    torch.testing.assert_close(found, (row(x0), row(epsilon)))


def test_an_unknown_prediction_type_is_named():
    with pytest.raises(UserError, match="'flow'"):
        x0_and_epsilon(row(0.0), row(0.0), torch.tensor([0.5]), "flow")


def test_one_step_by_hand():
    # sigma^2 = 0.36 / 0.64 * (1 - 0.36 / 0.64) = 0.24609375; mean = 0.8 * 1 + sqrt(0.36 - sigma^2) * 0.5
    steps = (torch.tensor([2]), torch.tensor([1]), ALPHAS)
    mean, sigma, x0 = ddim_mean_and_sigma(row(0.5), row(1.0), *steps, prediction_type="epsilon", eta=1.0)
    torch.testing.assert_close(mean, row(0.96875))
    torch.testing.assert_close(sigma, torch.tensor([0.24609375**0.5]))
    torch.testing.assert_close(x0, row(1.0))


def test_eta_scales_sigma_and_0_is_deterministic():
    steps = (torch.tensor([2]), torch.tensor([1]), ALPHAS)
    mean, sigma, _ = ddim_mean_and_sigma(row(0.5), row(1.0), *steps, prediction_type="epsilon", eta=0.0)
    torch.testing.assert_close(mean, row(1.1))  # 0.8 * 1 + 0.6 * 0.5
    assert sigma.item() == 0
    _, half, _ = ddim_mean_and_sigma(row(0.5), row(1.0), *steps, prediction_type="epsilon", eta=0.5)
    torch.testing.assert_close(half, torch.tensor([0.5 * 0.24609375**0.5]))


def test_rows_at_different_timesteps_equal_rows_alone():
    torch.manual_seed(0)
    output, latents = torch.randn(2, 2, 4, 3, 3)
    times, previous = torch.tensor([2, 1]), torch.tensor([1, 0])
    together = ddim_mean_and_sigma(output, latents, times, previous, ALPHAS, "v_prediction", 1.0)
    for i in range(2):
        one = slice(i, i + 1)
        alone = ddim_mean_and_sigma(output[one], latents[one], times[one], previous[one], ALPHAS, "v_prediction", 1.0)
        for a, b in zip(together, alone, strict=True):
            assert torch.equal(a[one], b)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_a_step_is_diffusers_ddim_step(prediction_type):
    scheduler = DDIMScheduler(clip_sample=False, set_alpha_to_one=False, prediction_type=prediction_type, timestep_spacing="trailing")
    scheduler.set_timesteps(10)
    generator = torch.Generator().manual_seed(0)
    for t in (999, 499, 99):
        output, latents, noise = torch.randn(3, 1, 4, 8, 8, generator=generator)
        wanted = scheduler.step(output, t, latents, eta=1.0, variance_noise=noise).prev_sample
        times, previous = torch.tensor([t]), torch.tensor([max(t - 100, 0)])
        mean, sigma, _ = ddim_mean_and_sigma(output, latents, times, previous, scheduler.alphas_cumprod, prediction_type, 1.0)
        torch.testing.assert_close(mean + sigma * noise, wanted, rtol=1e-5, atol=1e-5)


def test_half_precision_outputs_are_computed_in_float32():
    half = torch.randn(2, 4, 4, 4).bfloat16()
    found = ddim_mean_and_sigma(half, half, torch.tensor([2, 1]), torch.tensor([1, 0]), ALPHAS, "epsilon", 1.0)
    assert {x.dtype for x in found} == {torch.float32}
    assert log_prob(half, half, torch.tensor([0.5, 0.5])).dtype == torch.float32


def test_log_prob_is_the_mean_of_the_normal_density():
    # one deviation from the mean: -1/2 - log(0.5) - log(2 pi) / 2
    found = log_prob(row(1.5), row(1.0), torch.tensor([0.5]))
    torch.testing.assert_close(found, torch.tensor([-0.5 + math.log(2) - 0.5 * math.log(2 * math.pi)]))
    torch.manual_seed(0)
    x, mean = torch.randn(2, 3, 4, 5, 5)
    sigma = torch.tensor([0.1, 0.7, 1.3])
    wanted = torch.distributions.Normal(mean, sigma.reshape(3, 1, 1, 1)).log_prob(x).mean((1, 2, 3))
    torch.testing.assert_close(log_prob(x, mean, sigma), wanted)


def test_a_step_without_variance_still_has_a_finite_density():
    steps = (torch.tensor([0]), torch.tensor([0]), ALPHAS)
    mean, sigma, _ = ddim_mean_and_sigma(row(0.5), row(1.0), *steps, prediction_type="epsilon", eta=1.0)
    assert sigma.item() == 0
    torch.testing.assert_close(log_prob(mean, mean, sigma), torch.tensor([-math.log(SIGMA_FLOOR) - 0.5 * math.log(2 * math.pi)]))
