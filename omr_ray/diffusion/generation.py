"""One round of images from prompts, led by a pose and by Attend-and-Excite where they are given (TDRI eq. 3, 8)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor

from omr_ray.diffusion.attend_and_excite import AttendAndExcite
from omr_ray.diffusion.ddim import executed_steps
from omr_ray.diffusion.prompt_elements import element_weights
from omr_ray.diffusion.text import Text

if TYPE_CHECKING:
    from omr_ray.diffusion.sampler import AfterStep, MultiRoundSampler

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """N samples of one round, and what Attend-and-Excite found of them."""

    images: np.ndarray  # u8 [N H W 3]
    latents: np.ndarray  # f32 [N C h w], final
    misalignment: np.ndarray  # f32 [N], the largest L_AE before an early step (TDRI eq. 8); NaN where nobody looked
    excited: np.ndarray  # bool [N], that exceeded the threshold: Attend-and-Excite was used
    stored_latents: np.ndarray  # f32 [N S C h w], z_t of the steps that were kept: what D3PO learns from (TDRI eq. 7)
    stored_next_latents: np.ndarray  # f32 [N S C h w], z_{t-1}


@torch.no_grad()
def generate_guided(
    sampler: MultiRoundSampler,
    prompts: Sequence[str],
    *,
    seeds: Sequence[int],
    from_latents: np.ndarray | None = None,
    strength: float | None = None,
    heat_maps: np.ndarray | None = None,
    attention: AttendAndExcite | None = None,
    kept: Sequence[int] = (),
    after_step: AfterStep | None = None,
) -> Generation:
    """One round of N samples. Without `from_latents` [N C h w] it is a first round; with them a later one, noised to `strength`
    (by default that of round 2).

    heat_maps f32 [N K H W] of `diffusion/pose.py`, which the policy's ControlNet reads. Where no sample is misaligned beyond
    the threshold of `attention`, all is bit for bit what it is without it. kept: numbers (0 is the schedule's first) of
    the steps to store, ascending. after_step: see `denoise`. The sample of a (prompt, seed, latent, pose) does not depend on the others.
    """
    executed = sampler.steps if from_latents is None else executed_steps(strength or sampler.strength[0], sampler.steps)
    parts = []
    for rows in chunks(range(len(prompts)), sampler.batch_size):
        ids = sampler.policy.tokenize([prompts[row] for row in rows])
        noise = sampler.noise([seeds[row] for row in rows], executed)
        start, pose = (None if given is None else torch.tensor(given[rows], device=noise.device) for given in (from_latents, heat_maps))
        parts.append(_generate_part(sampler, ids, noise, start, pose, attention, kept, after_step))
    return Generation(**{field.name: np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Generation)})


def _generate_part(
    sampler: MultiRoundSampler,
    ids: np.ndarray,
    noise: Tensor,
    start: Tensor | None,
    heat_maps: Tensor | None,
    attention: AttendAndExcite | None,
    kept: Sequence[int],
    after_step: AfterStep | None,
) -> Generation:
    """Rows that go through the UNet together."""
    text, count = sampler.policy.encode_text(ids), len(ids)
    excite = None if attention is None else _Excite(attention, sampler, ids, text, heat_maps)
    final, stored = sampler.denoise(text, noise, start, np.tile(np.array(kept, np.int64), (count, 1)), heat_maps, excite, after_step)
    return Generation(
        images=sampler.policy.render(final),
        latents=final.cpu().numpy(),
        misalignment=np.full(count, np.nan, np.float32) if excite is None else excite.worst.cpu().numpy(),
        excited=np.zeros(count, bool) if excite is None else (excite.worst > excite.attention.threshold).cpu().numpy(),
        stored_latents=stored.latents.cpu().numpy(),
        stored_next_latents=stored.next_latents.cpu().numpy(),
    )


class _Excite:
    """What happens before each step of some rows; keeps the largest L_AE [n] that was found."""

    def __init__(
        self, attention: AttendAndExcite, sampler: MultiRoundSampler, ids: np.ndarray, text: Text, heat_maps: Tensor | None
    ) -> None:
        self.attention, self.sampler, self.text, self.heat_maps = attention, sampler, text, heat_maps
        self.elements = element_weights(sampler.policy.text.tokenizers[0], ids).to(text.hidden.device)
        self.worst = torch.full((len(ids),), torch.nan, device=text.hidden.device)

    def __call__(self, latents: Tensor, step: int) -> Tensor:
        steps = self.sampler.steps
        if not self.attention.acts_at(step, steps):
            return latents
        timesteps = torch.full((len(latents),), int(self.sampler.timesteps[step]), device=latents.device)
        latents, found = self.attention.excite(latents, timesteps, self.text, self.elements, self.heat_maps, step=step, steps=steps)
        self.worst = torch.fmax(self.worst, found)
        return latents


def chunks(items: Sequence[Item], size: int) -> list[list[Item]]:
    """`items` in nearly equal parts of at most `size`."""
    count = -(-len(items) // size)
    bounds = [len(items) * part // count for part in range(count + 1)] if count else []
    return [list(items[low:high]) for low, high in zip(bounds, bounds[1:], strict=False)]
