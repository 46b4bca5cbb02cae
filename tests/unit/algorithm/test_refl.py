import torch

from omr_ray.algorithm.refl import distance_from_siblings, one_step_reward, refl_loss

ALPHAS = torch.tensor([0.96, 0.64, 0.36])


def test_algorithm_1_by_hand():
    # x0 = (1 - 0.8 * w * 1) / 0.6 at w = 0.5 is 1; the image is 2 x0, the reward its mean over pixels: 2
    weight = torch.tensor(0.5, requires_grad=True)
    reward = one_step_reward(
        predict=lambda latents, timesteps, text: weight * latents,
        decode=lambda x0: 2 * x0,
        reward=lambda images: images.flatten(1).mean(1),
        latents=torch.ones(3, 1, 2, 2),
        timesteps=torch.tensor([2, 2, 2]),
        text=None,
        alphas_cumprod=ALPHAS,
        prediction_type="epsilon",
    )
    torch.testing.assert_close(reward, torch.full((3,), 2.0))
    refl_loss(reward).mean().backward()
    torch.testing.assert_close(weight.grad, torch.tensor(2 * 0.8 / 0.6))  # descent lowers w, which raises the reward


def test_the_loss_of_a_row_is_minus_its_reward():
    assert refl_loss(torch.tensor([1.0, -2.0])).tolist() == [-1, 2]


def test_above_the_cap_nothing_is_pushed_on():
    reward = torch.tensor([0.5, 0.7, -1.0], requires_grad=True)
    loss = refl_loss(reward, cap=0.6)
    torch.testing.assert_close(loss, torch.tensor([-0.5, -0.6, 1.0]))
    loss.sum().backward()
    assert reward.grad.tolist() == [-1, 0, -1]


def test_the_distance_from_siblings_by_hand():
    # cos with (0, 1) of (3, 4) is 0.8; its gradient is (0, 1) / 5 - 0.8 (0.6, 0.8) / 5
    features = torch.tensor([[3.0, 4.0], [1.0, 0.0]], requires_grad=True)
    distance = distance_from_siblings(features, torch.tensor([[0.0, 1.0], [0.5, 0.5]]))
    torch.testing.assert_close(distance, torch.tensor([0.2, 0.5]))
    refl_loss(distance).sum().backward()
    torch.testing.assert_close(features.grad, torch.tensor([[-0.096, 0.072], [0.0, 0.5]]))
