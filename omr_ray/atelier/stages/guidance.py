"""The policy's second phase: it learns to answer as it would with classifier-free guidance.

Guidance asks the network twice, with the prompt and without, and goes beyond the difference (arXiv:2207.12598). It makes
a small network follow prompts much better, and every forward twice as dear. Here the network learns the guided answer of
its own copy (arXiv:2210.03142, first stage, for one fixed scale), so that rollouts ask once.
"""

from typing import Any

import torch
from torch import Tensor

from omr_ray.atelier.stages.loop import Budget

SCALE = 3.0
BUDGET = Budget(steps=700, batch=32, learning_rate=5e-4, ema_decay=0.99)


@torch.no_grad()
def guided(teacher: Any, noisy: Tensor, timesteps: Tensor, text: Tensor, empty: Tensor, scale: float = SCALE) -> Tensor:
    """The clean latent [N C H W] without a prompt, and `scale` times the way from there to the one under `text`.

    noisy [N C H W], timesteps i64 [N], text [N L D], empty (the encoded empty prompt) [1 L D].
    """
    both = torch.cat([empty.expand_as(text), text])
    without, under_text = teacher(noisy.repeat(2, 1, 1, 1), timesteps.repeat(2), both).sample.chunk(2)
    return without + scale * (under_text - without)
