import math

import torch

from omr_ray.algorithm.ppo import clipped_policy_loss, gaussian_kl


def test_equal_log_probs_give_a_ratio_of_exactly_1():
    log_probs = torch.randn(16)
    found = clipped_policy_loss(log_probs, log_probs.clone(), torch.ones(16), clip_range=1e-4, advantage_clip=5)
    assert torch.equal(found.ratio, torch.ones(16))
    assert not found.clipped.any()
    assert torch.equal(found.loss, -torch.ones(16))


def test_the_clipped_loss_by_hand():
    log_probs = torch.tensor([1.2, 1.2, 0.8, 0.8, 1.05]).log()
    advantages = torch.tensor([2.0, -2.0, 2.0, -2.0, 2.0])
    found = clipped_policy_loss(log_probs, torch.zeros(5), advantages, clip_range=0.1, advantage_clip=5)
    # -min(2.4, 2.2), -min(-2.4, -2.2), -min(1.6, 1.8), -min(-1.6, -1.8), unclipped
    torch.testing.assert_close(found.loss, torch.tensor([-2.2, 2.4, -1.6, 1.8, -2.1]))
    assert found.clipped.tolist() == [True, True, True, True, False]


def test_advantages_are_clipped_before_use():
    found = clipped_policy_loss(torch.zeros(2), torch.zeros(2), torch.tensor([9.0, -9.0]), clip_range=0.1, advantage_clip=5)
    assert found.loss.tolist() == [-5, 5]


def test_the_gradient_stops_where_the_clip_binds():
    log_probs = torch.tensor([math.log(1.2), math.log(1.2)], requires_grad=True)
    clipped_policy_loss(log_probs, torch.zeros(2), torch.tensor([1.0, -1.0]), clip_range=0.1, advantage_clip=5).loss.sum().backward()
    torch.testing.assert_close(log_probs.grad, torch.tensor([0.0, 1.2]))


def test_kl_by_hand_and_against_torch():
    mean, reference = torch.full((1, 1, 1, 2), 1.3), torch.full((1, 1, 1, 2), 1.0)
    torch.testing.assert_close(gaussian_kl(mean, reference, torch.tensor([0.5])), torch.tensor([0.18]))  # 0.09 / (2 * 0.25)
    torch.manual_seed(0)
    mean, reference = torch.randn(2, 3, 4, 5, 5)
    sigma = torch.tensor([0.1, 0.7, 1.3])
    wide = sigma.reshape(3, 1, 1, 1)
    wanted = torch.distributions.kl_divergence(torch.distributions.Normal(mean, wide), torch.distributions.Normal(reference, wide))
    torch.testing.assert_close(gaussian_kl(mean, reference, sigma), wanted.mean((1, 2, 3)))
