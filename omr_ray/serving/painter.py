"""I_t = G(P_t, pose, C_{t-1}) (TDRI eq. 3): one commission at a time, with previews, and an end at any step."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
from torch import Tensor

from omr_ray.config.serve import ServeConfig
from omr_ray.dialogue.engine import Commission, Picture
from omr_ray.diffusion.attend_and_excite import AttendAndExcite
from omr_ray.diffusion.generation import generate_guided
from omr_ray.diffusion.pose import heat_maps
from omr_ray.loading import policy_from, pose_estimator_from, sampler_from
from omr_ray.serving.adapters import AdapterCache, Held

Watch = Callable[[int, int, np.ndarray | None], None]  # step, steps, and a preview u8 [H W 3] where there is one; may raise


class Painter:
    """A policy that paints commissions. The context of a commission (TDRI eq. 2) is not fed to the network: no published
    UNet takes one beside its prompt; it is kept for plots.
    """

    def __init__(self, config: ServeConfig, device: str, threads: int) -> None:
        self._config = config
        self._policy = policy_from(config.model, config.lora, device, threads)
        self._sampler = sampler_from(self._policy, config.painting.sampler())
        self._pose = None if config.pose is None else pose_estimator_from(config.pose.estimator, device)
        self._attention = None if config.attention is None else AttendAndExcite(self._policy, **config.attention.model_dump())
        self._adapters = AdapterCache(config.adapters, rank=config.lora.rank, alpha=config.lora.alpha, kept=config.adapters_kept)
        self._own = Held(sha256="", weights=self._policy.lora_weights())
        self._worn = self._own.sha256
        self._lock = threading.Lock()

    def paint(self, commission: Commission, watch: Watch) -> Picture:
        """The same commission gives the same picture, whatever was painted before. Raises UserError, and what `watch` raises."""
        held: Any = self._adapters.held(commission.adapter) if commission.adapter else nullcontext(self._own)
        with self._lock, held as adapter:
            if adapter.sha256 != self._worn:
                self._policy.load_lora(adapter.weights)
                self._worn = adapter.sha256
            made = generate_guided(
                self._sampler,
                [commission.prompt],
                seeds=[commission.seed],
                from_latents=None if commission.parent is None else self._latents(commission.parent)[None],
                strength=commission.strength,
                heat_maps=self._heat_maps(commission.pose_from),
                attention=self._attention,
                after_step=lambda step, steps, x0: watch(step, steps, self._preview(step, steps, x0)),
            )
        return Picture(image=made.images[0], latents=made.latents[0])

    def _latents(self, parent: Picture) -> np.ndarray:
        if parent.latents is not None and parent.latents.shape == self._sampler.latent_shape:
            return parent.latents
        from PIL import Image

        height, width = (side * self._policy.vae_factor for side in self._sampler.latent_shape[1:])
        image = np.array(Image.fromarray(parent.image).resize((width, height), Image.Resampling.LANCZOS))
        return self._policy.encode_images(image[None]).cpu().numpy()[0]

    def _heat_maps(self, first: Picture | None) -> np.ndarray | None:
        pose = self._config.pose
        if first is None or pose is None or self._pose is None:
            return None
        found, (height, width) = self._pose.estimate(first.image[None]), first.image.shape[:2]
        return heat_maps(found, height=height, width=width, sigma=pose.sigma, min_confidence=pose.min_confidence)

    def _preview(self, step: int, steps: int, x0: Tensor) -> np.ndarray | None:
        every = self._config.painting.preview_every
        return self._policy.render(x0)[0] if every and step % every == 0 and step < steps else None
