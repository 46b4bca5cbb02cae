"""The rollout worker: policy and multi-round sampler in a process of their own."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from omr_ray.config.generation import AttendAndExcite
from omr_ray.config.run import RunConfig
from omr_ray.loading import device_for, policy_from, sampler_from
from omr_ray.types import Dialogue, Rollout

if TYPE_CHECKING:
    from omr_ray.diffusion.sampler import MultiRoundSampler

Weights = Mapping[str, np.ndarray]
Timings = dict[str, float]


class RolloutWorker:
    """Samples dialogues. Every call is idempotent: it carries seed, policy version and weights, so any worker can do it again.

    The models load at the first call and not in the constructor: Ray hands a fault of a call over as what it is, and
    a fault of a constructor only as text.
    """

    def __init__(self, config: RunConfig) -> None:
        self._config = config

    def ready(self) -> tuple[None, Timings]:
        """Load the models."""
        start = time.perf_counter()
        assert self._sampler is not None
        return None, {"load": time.perf_counter() - start}

    def sample(self, dialogues: Sequence[Dialogue], seed: int, version: int, weights: Weights | None) -> tuple[list[Rollout], Timings]:
        """All rounds and siblings of `dialogues`, in their order, under the adapter `weights` (None: untrained)."""
        start = time.perf_counter()
        self._load(weights)
        loaded = time.perf_counter()
        rollouts = self._sampler.sample(dialogues, seed=seed, policy_version=version)
        return rollouts, {"weights": loaded - start, "sample": time.perf_counter() - loaded}

    def generate(
        self, prompts: Sequence[str], seeds: Sequence[int], latents: np.ndarray | None, strength: float, weights: Weights | None
    ) -> tuple[tuple[np.ndarray, np.ndarray], Timings]:
        """One round for N samples: images u8 [N H W 3] and final latents f32 [N C H W]."""
        start = time.perf_counter()
        self._load(weights)
        loaded = time.perf_counter()
        images, final = self._sampler.generate(prompts, seeds=seeds, from_latents=latents, strength=strength)
        return (images, np.asarray(final)), {"weights": loaded - start, "sample": time.perf_counter() - loaded}

    def excite(
        self, prompts: Sequence[str], seeds: Sequence[int], attention: AttendAndExcite, weights: Weights | None
    ) -> tuple[tuple[np.ndarray, np.ndarray], Timings]:
        """A first round of N samples under Attend-and-Excite: images u8 [N H W 3], and whether it acted, bool [N] (TDRI table 6)."""
        from omr_ray.diffusion import attend_and_excite
        from omr_ray.diffusion.generation import generate_guided

        start = time.perf_counter()
        self._load(weights)
        exciting = attend_and_excite.AttendAndExcite(self._sampler.policy, **attention.model_dump())
        made = generate_guided(self._sampler, prompts, seeds=seeds, attention=exciting)
        return (made.images, made.excited), {"sample": time.perf_counter() - start}

    def encode(self, images: np.ndarray) -> tuple[np.ndarray, Timings]:
        """Latents f32 [N C H W] of images u8 [N H W 3]: what an edit of them starts from."""
        start = time.perf_counter()
        return self._sampler.policy.encode_images(images).cpu().numpy(), {"sample": time.perf_counter() - start}

    @cached_property
    def _sampler(self) -> MultiRoundSampler:
        actors = self._config.workers.rollout
        policy = policy_from(self._config.model, self._config.lora, device_for(actors, "rollout"), actors.threads)
        self._untrained = policy.lora_weights()
        return sampler_from(policy, self._config.sampler)

    def _load(self, weights: Weights | None) -> None:
        """Load at every call: it costs milliseconds, and two runs may both have a version 10 with different weights."""
        policy = self._sampler.policy
        policy.load_lora(self._untrained if weights is None else weights)
