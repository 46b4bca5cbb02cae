import math

import pytest
import torch

from omr_ray.algorithm.d3po import combined_loss, d3po_loss
from omr_ray.algorithm.gaussian import log_prob


def rows(*values):
    return torch.tensor(values)


def test_the_loss_by_hand():
    # ((1.5 - 1.0) - (0.2 - 0.4)) = 0.7 and ((0.0 - 0.5) - (1.0 - 0.5)) = -1.0, each times 2
    found = d3po_loss(rows(1.5, 0.0), rows(0.2, 1.0), rows(1.0, 0.5), rows(0.4, 0.5), beta=2.0)
    torch.testing.assert_close(found.margin, rows(1.4, -2.0))
    torch.testing.assert_close(found.loss, rows(math.log(1 + math.exp(-1.4)), math.log(1 + math.exp(2.0))))
    assert not found.left_out.any() and not found.margin.requires_grad


def test_a_pair_that_moved_alike_costs_log_2():
    found = d3po_loss(rows(1.0, -3.0), rows(1.0, 2.0), rows(0.5, -4.0), rows(0.5, 1.0), beta=7.0)
    torch.testing.assert_close(found.loss, rows(math.log(2), math.log(2)))


def test_beta_0_is_log_2_and_teaches_nothing():
    winner = rows(5.0, -5.0).requires_grad_()
    found = d3po_loss(winner, rows(0.0, 0.0), rows(0.0, 0.0), rows(0.0, 0.0), beta=0.0)
    torch.testing.assert_close(found.loss, rows(math.log(2), math.log(2)))
    found.loss.sum().backward()
    assert winner.grad is not None and torch.equal(winner.grad, torch.zeros(2))


def test_descending_it_raises_the_winner_and_lowers_the_loser():
    winner, loser, reference = rows(0.0).requires_grad_(), rows(0.0).requires_grad_(), rows(0.0).requires_grad_()
    d3po_loss(winner, loser, reference, rows(0.0), beta=3.0).loss.sum().backward()
    # d/dm -log sigmoid(m) = -sigmoid(-m) = -1/2 at 0, times beta
    torch.testing.assert_close(winner.grad, rows(-1.5))
    torch.testing.assert_close(loser.grad, rows(1.5))
    torch.testing.assert_close(reference.grad, rows(1.5))


def test_the_gradient_pulls_the_mean_towards_the_winning_latent():
    """One step of a Gaussian policy: two latents at +1 and -1 of a mean at 0, sigma 1/2."""
    mean = torch.zeros(1, 1, 1, 2, requires_grad=True)
    sigma = rows(0.5)
    won, lost = (log_prob(torch.full((1, 1, 1, 2), place), mean, sigma) for place in (1.0, -1.0))
    d3po_loss(won, lost, won.detach(), lost.detach(), beta=1.0).loss.sum().backward()
    # each log-prob's gradient is (z - mean) / sigma^2 / 2 dimensions = +-2, so the margin's is 4; times -1/2
    torch.testing.assert_close(mean.grad, torch.full((1, 1, 1, 2), -2.0))


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", range(4))
def test_a_row_that_is_not_finite_is_counted_and_left_out(broken, place):
    given = [torch.tensor([0.3, 0.1, 0.2]) for _ in range(4)]
    given[place][1] = broken
    winner, loser = given[0].requires_grad_(), given[1].requires_grad_()
    found = d3po_loss(*given, beta=1.0)
    assert found.left_out.tolist() == [False, True, False]
    torch.testing.assert_close(found.loss, rows(math.log(2), 0.0, math.log(2)))
    found.loss.sum().backward()
    torch.testing.assert_close(winner.grad, rows(-0.5, 0.0, -0.5))
    torch.testing.assert_close(loser.grad, rows(0.5, 0.0, 0.5))


def test_half_precision_is_computed_in_float32():
    half = torch.tensor([0.1, 0.2]).bfloat16()
    assert {value.dtype for value in d3po_loss(half, half, half, half, beta=1.0)[:2]} == {torch.float32}


def test_both_losses_share_one_weight():
    torch.testing.assert_close(combined_loss(rows(2.0, 1.0), rows(0.8, 0.4), 0.75), rows(1.7, 0.85))
    assert combined_loss(rows(2.0), rows(0.8), 1.0).item() == 2.0 and combined_loss(rows(2.0), rows(0.5), 0.0).item() == 0.5
    for weight in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="must lie in 0..1"):
            combined_loss(rows(2.0), rows(0.8), weight)
