"""I_t = G(P_t, pose, C_{t-1}) (TDRI eq. 3): one commission with previews and an end at any step, or many together."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np

from omr_ray.config.serve import ServeConfig
from omr_ray.dialogue.engine import Commission, Picture
from omr_ray.diffusion.attend_and_excite import AttendAndExcite
from omr_ray.diffusion.generation import generate_guided
from omr_ray.diffusion.pose import heat_maps
from omr_ray.diffusion.sampler import AfterStep
from omr_ray.loading import policy_from, pose_estimator_from, sampler_from
from omr_ray.serving.adapters import AdapterCache, Held

Watch = Callable[[int, int, Callable[[], np.ndarray]], None]  # step, steps, and what decodes a preview u8 [H W 3]; may raise


class Painter:
    """A policy that paints commissions. The context of a commission (TDRI eq. 2) is not fed to the network: no published
    UNet takes one beside its prompt; it is kept for plots.
    """

    def __init__(self, config: ServeConfig, device: str, threads: int, batch_size: int = 1) -> None:
        self._config = config
        self.policy = policy_from(config.model, config.lora, device, threads)
        self.sampler = sampler_from(self.policy, config.painting.sampler().model_copy(update={"batch_size": batch_size}))
        self._pose = None if config.pose is None else pose_estimator_from(config.pose.estimator, device)
        self._attention = None if config.attention is None else AttendAndExcite(self.policy, **config.attention.model_dump())
        self._adapters = AdapterCache(config.adapters, rank=config.lora.rank, alpha=config.lora.alpha, kept=config.adapters_kept)
        self._own = Held(sha256="", weights=self.policy.lora_weights())
        self._worn = self._own.sha256
        self._lock = threading.Lock()

    def paint(self, commission: Commission, watch: Watch) -> Picture:
        """The same commission gives the same picture, whatever was painted before. Raises UserError, and what `watch` raises."""
        return self._paint_alike([commission], lambda step, steps, x0: watch(step, steps, lambda: self.policy.render(x0)[0]))[0]

    def paint_all(self, commissions: Sequence[Commission]) -> list[Picture]:
        """The pictures of N commissions; those of one kind go through the network together. Raises UserError."""
        alike: dict[Any, list[int]] = {}
        for row, one in enumerate(commissions):
            pose = None if one.pose_from is None else one.pose_from.image.shape
            alike.setdefault((one.adapter, None if one.parent is None else one.strength, pose), []).append(row)
        pictures: dict[int, Picture] = {}
        for rows in alike.values():
            pictures |= zip(rows, self._paint_alike([commissions[row] for row in rows], None), strict=True)
        return [pictures[row] for row in range(len(commissions))]

    @contextmanager
    def wearing(self, adapter: str | None) -> Iterator[None]:
        """Inside, the policy has this adapter, or its own where it is None, and nobody else uses it. Raises UserError."""
        held: Any = self._adapters.held(adapter) if adapter else nullcontext(self._own)
        with self._lock, held as found:
            if found.sha256 != self._worn:
                self.policy.load_lora(found.weights)
                self._worn = found.sha256
            yield

    def _paint_alike(self, commissions: Sequence[Commission], after_step: AfterStep | None) -> list[Picture]:
        """Commissions with one adapter and one strength: all edits, or all from noise; all led by a pose, or none."""
        first = commissions[0]
        with self.wearing(first.adapter):
            made = generate_guided(
                self.sampler,
                [one.prompt for one in commissions],
                seeds=[one.seed for one in commissions],
                from_latents=None if first.parent is None else np.stack([self._latents(one.parent) for one in commissions if one.parent]),
                strength=first.strength,
                heat_maps=self._heat_maps([one.pose_from.image for one in commissions if one.pose_from]),
                attention=self._attention,
                after_step=after_step,
            )
        return [Picture(image=image, latents=latents) for image, latents in zip(made.images, made.latents, strict=True)]

    def _latents(self, parent: Picture) -> np.ndarray:
        if parent.latents is not None and parent.latents.shape == self.sampler.latent_shape:
            return parent.latents
        from PIL import Image

        height, width = (side * self.policy.vae_factor for side in self.sampler.latent_shape[1:])
        image = np.array(Image.fromarray(parent.image).resize((width, height), Image.Resampling.LANCZOS))
        return self.policy.encode_images(image[None]).cpu().numpy()[0]

    def _heat_maps(self, first: Sequence[np.ndarray]) -> np.ndarray | None:
        pose = self._config.pose
        if not first or pose is None or self._pose is None:
            return None
        found, (height, width) = self._pose.estimate(np.stack(first)), first[0].shape[:2]
        return heat_maps(found, height=height, width=width, sigma=pose.sigma, min_confidence=pose.min_confidence)
