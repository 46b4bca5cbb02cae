"""What the reward model descends: the preference loss of a few pairs (OMR section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from omr_ray.algorithm.preference import preference_loss
from omr_ray.vlm.trainable import TrainableRewardModel


@dataclass(frozen=True, slots=True, kw_only=True)
class PairPart:
    """Pairs of one forward on one rank. The loss is `scale` times the sum of the pairs' losses."""

    prompts: Sequence[str]
    chosen: Sequence[Tensor]  # n of [3 H W] in [0, 1]
    rejected: Sequence[Tensor]
    scale: float


class PreferenceObjective(nn.Module):
    """The loss of a PairPart; chosen and rejected images go through the network together."""

    def __init__(self, model: TrainableRewardModel, beta: float, reference: bool) -> None:
        super().__init__()
        self.model, self.beta, self.reference = model, beta, reference

    def forward(self, part: PairPart) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and for each pair [n] its loss, its margin and whether the chosen image scores higher."""
        images, prompts = [*part.chosen, *part.rejected], [*part.prompts, *part.prompts]
        chosen, rejected = self.model.score_tensor(images, prompts).chunk(2)
        references: tuple[Tensor | None, Tensor | None] = (None, None)
        if self.reference:
            with torch.no_grad(), self.model.adapter_off():
                first, second = self.model.score_tensor(images, prompts).chunk(2)
                references = (first, second)
        losses = preference_loss(chosen, rejected, *references, beta=self.beta)
        margin = (chosen - rejected).detach()
        values = {"loss": losses.detach(), "margin": margin, "accuracy": (margin > 0).float()}
        return part.scale * losses.sum(), values
