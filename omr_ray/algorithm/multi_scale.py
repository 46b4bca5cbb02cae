"""The norm of OMR eq. 13 at several scales: of every cell of a latent, and of means over square blocks of cells (our reading)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from omr_ray.types import UserError


def multi_scale_square(error: Tensor, scales: Mapping[int, float]) -> Tensor:
    """Sum over `scales` {s: w} of w times the mean square of the means of `error` [N, C, H, W] over s x s blocks, [N].

    {1: 1} is the mean square error. The conditional mean minimises every term, so what is learned stays the same. But most of
    the error is detail that nothing could predict; in the means that averages out, and shape and color are heard sooner.
    Rows and columns that fill no block are left out. Raises UserError for a block that is larger than the latent.
    """
    if (largest := max(scales)) > min(error.shape[-2:]):
        raise UserError(
            f"scales: a block of {largest} x {largest} is larger than the latent ({error.shape[-2]} x {error.shape[-1]}); lower it"
        )
    squares = [weight * F.avg_pool2d(error, side).square().flatten(1).mean(1) for side, weight in scales.items()]
    return torch.stack(squares).sum(0)
