import pytest
import torch

from omr_ray.algorithm.multi_round import denoised, multi_round_loss, noised, one_step_regression, predicted_x0
from omr_ray.types import UserError

ALPHAS = torch.tensor([0.96, 0.64, 0.36])
ONE, TWO = torch.tensor([1]), torch.tensor([2])


def latent(value):
    return torch.full((1, 1, 1, 2), value)


def test_noised_by_hand():
    torch.testing.assert_close(noised(latent(2.0), TWO, latent(-0.5), ALPHAS), latent(0.8))  # 0.6 * 2 - 0.8 * 0.5


def test_predicted_x0_undoes_noised():
    z0, noise = torch.randn(2, 3, 4, 5, 5)
    times = torch.tensor([0, 1, 2])
    z = noised(z0, times, noise, ALPHAS)
    torch.testing.assert_close(predicted_x0(noise, z, times, ALPHAS, "epsilon"), z0)


def test_two_steps_of_the_first_round_by_hand():
    seen = []

    def predict(latents, timesteps, text):
        seen.append((latents, timesteps.item()))
        return latent(0.5)

    found = denoised(predict, latent(1.1), TWO, "x", 2, ALPHAS, "sample")
    assert [t for _, t in seen] == [2, 1]
    torch.testing.assert_close(seen[1][0], latent(1.0))  # epsilon is (1.1 - 0.6 * 0.5) / 0.8 = 1, and 0.8 * 0.5 + 0.6 * 1 = 1
    torch.testing.assert_close(found, latent(0.5))


def test_one_step_regression_by_hand():
    # both steps differ by (0.8 - 0.6 * 0.6 / 0.8) (x0 - target) = 0.35 (2 - 1)
    found = one_step_regression(latent(2.0), latent(0.3), TWO, ONE, latent(1.0), ALPHAS, "sample", {1: 1.0})
    torch.testing.assert_close(found, torch.tensor([0.35**2]))
    model = torch.tensor([[[[2.0, 0.0], [0.0, 0.0]]]])  # errors 1, -1, -1, -1 of the clean latent, and a mean of -0.5
    found = one_step_regression(model, torch.zeros(1, 1, 2, 2), TWO, ONE, torch.ones(1, 1, 2, 2), ALPHAS, "sample", {1: 1.0, 2: 4.0})
    torch.testing.assert_close(found, torch.tensor([(1 + 4 * 0.25) * 0.35**2]))
    with pytest.raises(UserError, match=r"a block of 2 x 2 is larger than the latent \(1 x 2\); lower it"):
        one_step_regression(latent(2.0), latent(0.3), TWO, ONE, latent(1.0), ALPHAS, "sample", {1: 1.0, 2: 4.0})


def test_a_model_that_knows_the_target_has_no_loss():
    z_y, noise = torch.randn(2, 2, 4, 5, 5)
    times, previous = torch.tensor([1, 2]), torch.tensor([0, 1])
    found = one_step_regression(noise, noised(z_y, times, noise, ALPHAS), times, previous, z_y, ALPHAS, "epsilon", {1: 1.0})
    torch.testing.assert_close(found, torch.zeros(2), atol=1e-10, rtol=0)


def test_multi_round_loss_by_hand():
    seen = []

    def predict(latents, timesteps, text):
        seen.append((latents, timesteps.item(), text))
        return latent({"x": 0.5, "y": 2.0}[text])

    taus = {"tau1": ONE, "tau2": TWO, "previous_tau2": ONE}
    rounds = {"z_x": latent(1.0), "z_y": latent(1.0), "text_x": "x", "text_y": "y", "noise1": latent(0.0), "noise2": latent(1.0)}
    loss = multi_round_loss(
        predict, **rounds, **taus, alphas_cumprod=ALPHAS, prediction_type="sample", through_rounds=False, first_steps=1, scales={1: 1.0}
    )
    assert [(t, text) for _, t, text in seen] == [(1, "x"), (2, "y")]
    torch.testing.assert_close(seen[0][0], latent(0.8))  # sqrt(0.64) * 1
    torch.testing.assert_close(seen[1][0], latent(1.1))  # 0.6 * 0.5 + 0.8: the first round's prediction, noised again
    torch.testing.assert_close(loss, torch.tensor([0.35**2]))


@pytest.mark.parametrize("through_rounds", [False, True])
def test_the_gradient_passes_through_the_first_round_only_on_request(through_rounds):
    weight_x, weight_y = torch.tensor(0.3, requires_grad=True), torch.tensor(0.7, requires_grad=True)

    def predict(latents, timesteps, text):
        return latents * text

    torch.manual_seed(0)
    z_x, z_y, noise1, noise2 = torch.randn(4, 1, 4, 3, 3)
    multi_round_loss(
        predict, z_x, z_y, ONE, TWO, ONE, weight_x, weight_y, noise1, noise2, ALPHAS, "epsilon", through_rounds, 1, {1: 1.0}
    ).sum().backward()
    assert weight_y.grad.abs() > 0
    assert (weight_x.grad is not None and weight_x.grad.abs() > 0) == through_rounds
