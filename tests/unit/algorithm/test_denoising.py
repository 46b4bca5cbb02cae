import pytest
import torch

from omr_ray.algorithm.denoising import denoising_loss, min_snr_weight, target_of
from omr_ray.types import UserError

ALPHAS = torch.tensor([0.96, 0.64, 0.36])  # signal to noise 24, 16 / 9, 9 / 16


def latent(value):
    return torch.full((1, 1, 1, 2), value)


def test_targets_by_hand():
    a = torch.tensor([0.64])
    assert target_of(latent(2.0), latent(-0.5), a, "epsilon").flatten()[0] == -0.5
    assert target_of(latent(2.0), latent(-0.5), a, "sample").flatten()[0] == 2.0
    assert target_of(latent(2.0), latent(-0.5), a, "v_prediction").flatten()[0] == pytest.approx(0.8 * -0.5 - 0.6 * 2.0)
    with pytest.raises(UserError, match="got 'flow'"):
        target_of(latent(2.0), latent(0.0), a, "flow")


def test_min_snr_weights_by_hand():
    weights = {kind: min_snr_weight(ALPHAS, kind, 5.0).tolist() for kind in ("sample", "epsilon", "v_prediction")}
    assert weights["sample"] == pytest.approx([5.0, 16 / 9, 9 / 16], rel=1e-5)
    assert weights["epsilon"] == pytest.approx([5 / 24, 1.0, 1.0], rel=1e-5)
    assert weights["v_prediction"] == pytest.approx([5 / 25, 16 / 25, 9 / 25], rel=1e-5)


def test_the_loss_by_hand():
    times = torch.tensor([0])
    found = denoising_loss(latent(1.0), latent(2.0), latent(-0.5), times, ALPHAS, "epsilon", None)
    torch.testing.assert_close(found, torch.tensor([2.25]))  # (1 + 0.5)^2
    weighted = denoising_loss(latent(1.0), latent(2.0), latent(-0.5), times, ALPHAS, "epsilon", 5.0)
    torch.testing.assert_close(weighted, torch.tensor([2.25 * 5 / 24]))
