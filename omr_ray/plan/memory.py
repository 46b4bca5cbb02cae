"""Memory of the three kinds of actors, by part."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from omr_ray.config.rewards import ImageRewardScorer
from omr_ray.config.run import Actor, AtelierModel, RunConfig
from omr_ray.plan.shapes import DiffusionShape, RewardShape, parameters_in
from omr_ray.plan.work import StepPlan
from omr_ray.vlm.engine import VLLM_SHARE
from omr_ray.workers.placement import learner_bundles, resources

GIB = 2**30
BYTES = {"float32": 4, "bfloat16": 2}
PROCESS_GIB = 0.7  # an actor that has imported torch, diffusers and transformers
CUDA_PROCESS_GIB = 2.5  # the same with a CUDA build
CUDA_CONTEXT_GIB = 0.8  # on the GPU, before the first tensor
DECODED_PIXELS = 2**21  # the sampler decodes at most so many pixels at once
DECODE_TRAINING = 7.5  # a decoding that keeps its activations, in plain decodings


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorPlan:
    """The actors of one pool and the memory of one of them, by part, in GiB."""

    pool: str
    count: int
    resources: dict[str, float]
    device: str  # "GPU" or "CPU": where the models are
    memory_gib: dict[str, float]  # on that device
    limit_gib: float | None  # its share of a GPU; None on the CPU, where a node's memory is shared
    host_gib: float  # main memory of one actor

    @property
    def total_gib(self) -> float:
        return sum(self.memory_gib.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Memory of the three kinds of actors."""

    config: RunConfig
    model: DiffusionShape
    reward: RewardShape
    latent: tuple[int, int, int]
    pixels: int

    @property
    def width(self) -> int:
        """Bytes of a number of the diffusion model; the embedded one runs in float32."""
        return 4 if isinstance(self.config.model, AtelierModel) else BYTES[self.config.model.dtype]

    @property
    def branches(self) -> int:
        return 2 if self.config.sampler.guidance_scale > 1 else 1

    @property
    def cells(self) -> int:
        return self.latent[1] * self.latent[2]

    def rollout(self, step: StepPlan) -> ActorPlan:
        actors = self.config.workers.rollout
        share = -(-self.config.dialogues_per_step // actors.count) * self.config.sampler.siblings
        batch = min(self.config.sampler.batch_size, share)
        noise = 4 * batch * (1 + self.config.sampler.steps) * self.latent[0] * self.cells
        decoded = max(1, min(batch, DECODED_PIXELS // self.pixels)) * self.pixels
        return self._actor(
            "rollout",
            actors.count,
            actors,
            {
                "weights": self.width * (self.model.unet_parameters + self.model.other_parameters),
                "adapter": step.weight_bytes,
                "noise": noise,
                # Denoising and decoding follow one another: the larger one counts.
                "activations": self.width
                * max(batch * self.branches * self.cells * self.model.forward_elements(), decoded * self.model.decode_elements()),
            },
        )

    def reward_worker(self) -> ActorPlan:
        actors, preference = self.config.workers.reward, self.config.rewards.preference
        width = BYTES[preference.dtype]
        batch = min(preference.batch_size, self.config.samples_per_step)
        parts = {"weights": width * self.reward.parameters, "activations": width * batch * self.reward.forward_elements(self.pixels)}
        beside = {f"weights of {name}": float(size) for name, size in self._scorers()}
        actor = self._actor("reward", actors.count, actors, parts | beside)
        if preference.engine == "transformers" or actor.limit_gib is None:
            return actor
        others = sum(beside.values()) / GIB
        taken = VLLM_SHARE * min(actors.num_gpus, 1) * self.config.cluster.gpu_memory_gib
        cache = {"KV cache": max(0.0, taken + others - actor.total_gib)}  # vLLM fills its part of the GPU, whatever it needs
        return replace(actor, memory_gib=actor.memory_gib | cache, limit_gib=taken + others)

    def _scorers(self) -> Iterator[tuple[str, int]]:
        """Bytes of the models that score `rewards.terms` here."""
        for term in self.config.rewards.terms:
            scorer = term.scorer
            if isinstance(scorer, ImageRewardScorer) and Path(scorer.path).is_dir():
                yield term.name, BYTES[scorer.dtype] * parameters_in(Path(scorer.path))

    def learner(self, step: StepPlan) -> ActorPlan:
        """ZeRO: stage 1 shards moments and master weights, 2 gradients too, 3 the frozen UNet too."""
        learner, algorithm = self.config.learner, self.config.algorithm
        ranks, adapter = learner.ranks, step.weight_bytes
        rows = min(learner.micro_batch, -(-step.trained_rows // (ranks * algorithm.minibatches)))
        unet = self.width * self.model.unet_parameters / (ranks if learner.zero_stage == 3 else 1)
        moments = 2 * adapter / (ranks if learner.zero_stage >= 1 else 1) + (adapter / ranks if learner.zero_stage >= 1 else 0)
        cells = rows * self.branches * self.cells
        activations = self.width * cells * self.model.training_elements(learner.gradient_checkpointing)
        if self.config.noise_loss.weight > 0 and self.config.noise_loss.through_rounds:
            activations *= 2
        parts = {
            "weights": unet + self.width * self.model.other_parameters,
            "adapter": adapter,
            "gradients": adapter / (ranks if learner.zero_stage >= 2 else 1),
            "optimizer": moments,
            "activations": activations,
        }
        if algorithm.reward_gradient > 0:
            width = BYTES[self.config.rewards.preference.dtype]
            parts["reward model"] = width * self.reward.parameters
            decoding = self.width * rows * self.pixels * self.model.decode_elements() * DECODE_TRAINING
            parts["image gradient"] = decoding + 5 * width * rows * self.reward.forward_elements(self.pixels)
        return self._actor("learner", ranks, self.config.workers.learner, parts)

    def _actor(self, pool: str, count: int, actors: Actor, parts: dict[str, float]) -> ActorPlan:
        on_gpu = actors.num_gpus > 0
        memory = {name: size / GIB for name, size in parts.items()} | {"process": CUDA_CONTEXT_GIB if on_gpu else PROCESS_GIB}
        return ActorPlan(
            pool=pool,
            count=count,
            resources=learner_bundles(self.config)[0] if pool == "learner" else resources(actors),
            device="GPU" if on_gpu else "CPU",
            memory_gib=memory,
            limit_gib=actors.num_gpus * self.config.cluster.gpu_memory_gib if on_gpu else None,
            host_gib=CUDA_PROCESS_GIB if on_gpu else sum(memory.values()),
        )
