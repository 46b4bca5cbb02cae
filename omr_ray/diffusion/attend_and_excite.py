"""Attend-and-Excite (arXiv:2301.13826): early latents are moved until every element of the prompt is attended to (TDRI eq. 8).

S(I_t, P_t) of eq. 8 is read as the attention of the most neglected element: the maximum over the picture of its smoothed cross-attention.
The elements of one prompt compete: in each cell they share out the attention that they get together, so that
start, padding and function words take no part and S can be compared between models. A prompt with one element is
never neglected, nor is one without any.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import Tensor

from omr_ray.diffusion.policy import Policy
from omr_ray.diffusion.text import Text

LEAST_CELLS = 8  # a side of a map: in fewer cells two elements can hardly lie apart
SMOOTHING = 0.5  # sigma of the 3 x 3 kernel, in cells, as in the authors' code


class AttendAndExcite:
    """Moves the latents whose L_AE exceeds `threshold` (TDRI table 6: 0.66 to 0.80), at the first `early_share` of a schedule's steps.

    A step moves a latent at most `iterations` times, by `step_size` times the gradient, until L_AE is at the threshold;
    `step_size` goes in a straight line from the first number at the schedule's first step to the second at its last.
    """

    def __init__(self, policy: Policy, *, threshold: float, early_share: float, iterations: int, step_size: tuple[float, float]) -> None:
        self.policy, self.threshold, self.early_share = policy, threshold, early_share
        self.iterations, self.step_size = iterations, step_size

    def acts_at(self, step: int, steps: int) -> bool:
        """Whether step number `step` (0 is the noisiest) of a schedule of `steps` is an early one."""
        return step < self.early_share * steps

    @torch.no_grad()
    def excite(
        self, latents: Tensor, timesteps: Tensor, text: Text, elements: Tensor, heat_maps: Tensor | None, *, step: int, steps: int
    ) -> tuple[Tensor, Tensor]:
        """Latents [N C H W] before a denoising step to those it should start from, and the L_AE [N] that was found.

        Rows at or below the threshold, and rows whose gradient is not finite, come back bit for bit as they were.
        timesteps i64 [N]; elements f32 [N M L] of `element_weights`; heat_maps [N K h w] where a pose leads.
        """
        found = misalignment(self.policy, latents, timesteps, text, elements, heat_maps)
        first, last = self.step_size
        size = first + (last - first) * step / max(1, steps - 1)
        neglected = torch.nonzero(found > self.threshold).flatten()
        for _ in range(self.iterations):
            if not len(neglected):
                break
            pose = None if heat_maps is None else heat_maps[neglected]
            with torch.enable_grad():
                start = latents[neglected].requires_grad_()
                loss = misalignment(self.policy, start, timesteps[neglected], text.take(neglected), elements[neglected], pose)
                (gradient,) = torch.autograd.grad(loss.sum(), start)
            moves = (loss.detach() > self.threshold) & torch.isfinite(gradient).flatten(1).all(1)
            latents, neglected = latents.clone(), neglected[moves]
            latents[neglected] -= size * gradient[moves]
        return latents, found


def misalignment(
    policy: Policy, latents: Tensor, timesteps: Tensor, text: Text, elements: Tensor, heat_maps: Tensor | None = None
) -> Tensor:
    """L_AE = 1 - S(I_t, P_t) (TDRI eq. 8), float32 [N], from one forward of the UNet; differentiable.

    latents [N C H W], timesteps i64 [N], elements f32 [N M L] of `element_weights`, heat_maps [N K h w] or None.
    """
    return 1 - alignment(attention_maps(policy, latents, timesteps, text, heat_maps), elements.to(policy.device))


def alignment(maps: Tensor, elements: Tensor) -> Tensor:
    """S = min over elements of max over cells of the element's share of attention, smoothed, float32 [N]; 1 without elements.

    maps [N h w L], elements [N M L]; a share is that of the attention which a prompt's elements get together.
    """
    attention = torch.einsum("nhwl,nml->nmhw", maps.float(), elements.float())
    shares = attention / attention.sum(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    strongest = _smoothed(shares).flatten(2).amax(2)
    return strongest.masked_fill(elements.sum(2) == 0, 1.0).amin(1)


def attention_maps(policy: Policy, latents: Tensor, timesteps: Tensor, text: Text, heat_maps: Tensor | None = None) -> Tensor:
    """Cross-attention of each cell to each token, float32 [N h w L], the mean over heads and over the layers of `coarse_layers`."""
    layers, (height, width) = coarse_layers(policy.network, *latents.shape[-2:])
    with _recorded(layers) as maps:
        # `forward` and not a call: a compiled call would leave out the recorders.
        policy.network.forward(**policy.unet_inputs(latents, timesteps, text, heat_maps))
    return torch.stack(maps).mean(0).unflatten(1, (height, width))


def coarse_layers(network: Any, height: int, width: int) -> tuple[list[Attention], tuple[int, int]]:
    """The cross-attention layers that are looked at, and the sides of their maps, for a latent of `height` x `width`.

    Those of the coarsest level that is at most two halvings below the latent and still has 8 cells a side; where no level is, those of
    the finest. For Stable Diffusion at 512 pixels these are the paper's 16 x 16; for SDXL at 1024 it is 32 x 32, for the
    embedded 16 x 16 latent 8 x 8.
    """
    levels: dict[int, list[Attention]] = {}
    last = len(network.config.block_out_channels) - 1
    for name, module in network.named_modules():
        if isinstance(module, Attention) and module.is_cross_attention:
            levels.setdefault(_level(name, last), []).append(module)
    sides = {level: (-(-height // 2**level), -(-width // 2**level)) for level in levels}
    level = max((level for level in levels if level <= 2 and min(sides[level]) >= LEAST_CELLS), default=min(levels))
    return levels[level], sides[level]


def _level(name: str, last: int) -> int:
    """How many halvings below the latent the UNet's module `name` works, where the deepest level is `last`."""
    block, number = name.split(".")[:2]
    return {"down_blocks": int(number), "up_blocks": last - int(number)}[block] if block != "mid_block" else last


def _smoothed(maps: Tensor) -> Tensor:
    """maps [N M h w] under a 3 x 3 Gaussian kernel, mirrored at the edges."""
    offsets = torch.tensor([-1.0, 0.0, 1.0], device=maps.device)
    line = (-(offsets**2) / (2 * SMOOTHING**2)).exp()
    kernel = torch.outer(line, line) / line.sum() ** 2
    padded = F.pad(maps, (1, 1, 1, 1), mode="reflect")
    return F.conv2d(padded.flatten(0, 1)[:, None], kernel[None, None]).reshape(maps.shape)


class _Recorder:
    """An attention processor that notes the layer's map, then lets the layer's own processor do the work."""

    def __init__(self, processor: Any, maps: list[Tensor]) -> None:
        self.processor, self.maps = processor, maps

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        query = attn.head_to_batch_dim(attn.to_q(hidden_states)).float()
        key = attn.head_to_batch_dim(attn.to_k(encoder_hidden_states)).float()
        self.maps.append(attn.get_attention_scores(query, key).unflatten(0, (-1, attn.heads)).mean(1))
        return self.processor(attn, hidden_states, encoder_hidden_states, attention_mask, temb)


@contextmanager
def _recorded(layers: list[Attention]) -> Iterator[list[Tensor]]:
    """Inside, every forward of `layers` appends its map [N cells L], the mean over heads."""
    maps: list[Tensor] = []
    processors: list[Any] = [layer.processor for layer in layers]
    for layer, processor in zip(layers, processors, strict=True):
        recorder: Any = _Recorder(processor, maps)  # diffusers takes any callable and annotates its own classes
        layer.set_processor(recorder)
    try:
        yield maps
    finally:
        for layer, processor in zip(layers, processors, strict=True):
            layer.set_processor(processor)
