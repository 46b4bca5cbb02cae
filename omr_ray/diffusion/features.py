"""f(z), the feature of a latent that the diversity and consistency rewards compare (OMR eq. 6, 7)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from omr_ray.diffusion.policy import Policy

NOISE_LEVEL = 0.02  # share of the training schedule: low, because the latents are clean
GRID = 4  # a feature is the mean activation of each cell of a GRID x GRID raster


def features(policy: Policy, latents: Tensor) -> Tensor:
    """Clean latents [N C H W] to f(z), float32 [N F]: what the UNet's last convolution sees, pooled to a 4 x 4 grid. Differentiable.

    It is taken from the frozen base (adapter off), with the empty prompt, at a fixed small timestep: a feature that the
    policy can move would be a reward that it can hack. The paper says only that f is "the feature"; this is our reading.
    """
    seen: list[Tensor] = []
    timesteps = torch.full((len(latents),), int(NOISE_LEVEL * policy.num_train_timesteps), device=policy.device)
    hook = policy.network.conv_out.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    try:
        with policy.adapter_off():
            # `forward` and not a call: a compiled call would leave out the hook.
            policy.network.forward(**policy.unet_inputs(latents, timesteps, policy.text.empty(len(latents))))
    finally:
        hook.remove()
    return F.adaptive_avg_pool2d(seen[0].float(), GRID).flatten(1)
