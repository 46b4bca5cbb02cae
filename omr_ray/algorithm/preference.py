"""How the reward model learns from pairs of images (OMR section 3.2, "optimized through DPO")."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def preference_loss(
    chosen: Tensor,
    rejected: Tensor,
    reference_chosen: Tensor | None = None,
    reference_rejected: Tensor | None = None,
    beta: float = 1.0,
) -> Tensor:
    """-log sigmoid(beta ((c - r) - (c_ref - r_ref))) (DPO, arXiv:2305.18290, eq. 7, with rewards for log-probabilities).

    chosen and rejected [N]: rewards of the image labelled 1 and of the one labelled 0. The references are the frozen
    model's rewards of the same images; without them the margin stands alone (Bradley-Terry). Returns float32 [N].
    Raises ValueError if only one reference is given.
    """
    margin = chosen.float() - rejected.float()
    if (reference_chosen is None) != (reference_rejected is None):
        raise ValueError("a reference margin needs reference_chosen and reference_rejected, got one of them")
    if reference_chosen is not None and reference_rejected is not None:
        margin = margin - (reference_chosen.float() - reference_rejected.float())
    return -F.logsigmoid(beta * margin)
