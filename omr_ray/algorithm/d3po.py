"""How a policy learns from votes between two images, denoising step by denoising step (TDRI section 3.2.3, eq. 7, 9).

Our reading of eq. 7 is DPO (arXiv:2305.18290) with every stored step as an action, as in D3PO (arXiv:2311.13231).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class PreferenceStepLoss(NamedTuple):
    loss: Tensor  # f32 [N], not reduced; 0 and without gradient where the row is left out
    margin: Tensor  # f32 [N], without gradient: what the sigmoid is taken of; above 0 the policy leans to the winner
    left_out: Tensor  # bool [N], rows in which some number is not finite


def d3po_loss(winner: Tensor, loser: Tensor, reference_winner: Tensor, reference_loser: Tensor, beta: float) -> PreferenceStepLoss:
    """-log sigmoid(beta ((log pi - log pi_ref)(winner) - (log pi - log pi_ref)(loser))) for each stored step (TDRI eq. 7).

    All four f32 [N]: log-probabilities of z_{t-1} given z_t, as stored, under the policy and under the reference (adapter off), for
    the image that was preferred and for the other one; row n of all is the same step of one pair. They are means over the
    latent's dimensions, so beta stands for C H W times the beta of a sum. The mean of a batch is
    `loss.sum() / (~left_out).sum()`.
    """
    rows = torch.stack([winner.float(), loser.float(), reference_winner.float(), reference_loser.float()])
    left_out = ~torch.isfinite(rows.detach()).all(0)
    # Before the arithmetic, not after: a gradient of 0 times infinity would be NaN.
    chosen, rejected, chosen_before, rejected_before = torch.where(left_out, 0.0, rows)
    margin = beta * ((chosen - chosen_before) - (rejected - rejected_before))
    return PreferenceStepLoss(loss=torch.where(left_out, 0.0, -F.logsigmoid(margin)), margin=margin.detach(), left_out=left_out)


def combined_loss(preference: Tensor, misalignment: Tensor, preference_weight: float) -> Tensor:
    """L = lambda L_DPO + (1 - lambda) L_AE (TDRI eq. 9), which tunes the ControlNet.

    preference is eq. 7, misalignment eq. 8 (`diffusion/attend_and_excite.py`), both [N] or both reduced; lambda is
    `preference_weight`. Raises ValueError for one outside 0..1.
    """
    if not 0 <= preference_weight <= 1:
        raise ValueError(f"lambda of TDRI eq. 9 shares out one loss between two terms: it must lie in 0..1, got {preference_weight}")
    return preference_weight * preference.float() + (1 - preference_weight) * misalignment.float()
