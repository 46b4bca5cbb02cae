"""What a run will ask for, worked out from its config alone: no weights, no torch, no Ray.

Actors and where they fit, memory of each by its parts, bytes of a trajectory, and how much sampling and learning one
step is. Shapes and bytes are exact; memory is an estimate (see shapes.py). A config whose actors do not fit the
`cluster` section is refused with the rule, the value and the remedy.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from omr_ray.atelier import WEIGHTS
from omr_ray.config.rewards import FunctionScorer, ImageRewardScorer, Term
from omr_ray.config.run import Cluster, DiffusersModel, RunConfig
from omr_ray.plan.fit import place, refuse_small_share
from omr_ray.plan.memory import GIB, ActorPlan, Memory
from omr_ray.plan.shapes import DiffusionShape, RewardShape, reward_shape_of, shape_of
from omr_ray.plan.work import StepPlan, longest_dialogue, steps_in_flight, work_of_a_step
from omr_ray.types import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    name: str
    model: str
    reward_model: str
    lora_parameters: int
    latent: tuple[int, int, int]
    pixels: tuple[int, int]
    cluster: Cluster
    actors: tuple[ActorPlan, ...]
    nodes: tuple[dict[str, int], ...]  # actors of each pool on every node
    step: StepPlan
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values, all figures."""
        values = asdict(self) | {"cluster": self.cluster.model_dump()}
        for actor, plain in zip(self.actors, values["actors"], strict=True):
            plain["total_gib"] = actor.total_gib
        return values

    def print(self) -> None:
        """Tables on standard output."""
        from omr_ray.plan.tables import show

        show(self)


def plan(config: RunConfig) -> Plan:
    """Work out what `config` will ask for. Raises UserError if an actor or all of them together do not fit the cluster."""
    model, reward = _shapes(config)
    notes: list[str] = []
    height, width = config.sampler.height or model.pixels[0], config.sampler.width or model.pixels[1]
    if height % model.vae_factor or width % model.vae_factor:
        raise UserError(f"sampler.height and width must be multiples of {model.vae_factor}, got {height} x {width}; round them")
    latent = (model.latent_channels, height // model.vae_factor, width // model.vae_factor)
    rounds = longest_dialogue(config, notes)
    notes += [
        f"rewards.terms, {term.name}: what its scorer holds in memory is not counted" for term in config.rewards.terms if _unknown(term)
    ]
    memory = Memory(config=config, model=model, reward=reward, latent=latent, pixels=height * width)
    step = work_of_a_step(config, model, latent, rounds, height * width)
    actors = (memory.rollout(step), memory.reward_worker(), memory.learner(step))
    for actor in actors:
        refuse_small_share(actor, config.cluster)
    return Plan(
        name=config.name,
        model=model.name,
        reward_model=reward.name,
        lora_parameters=model.lora_parameters(config.lora.rank),
        latent=latent,
        pixels=(height, width),
        cluster=config.cluster,
        actors=actors,
        nodes=place(actors, config.cluster, steps_in_flight(config) * step.rollout_bytes / GIB),
        step=step,
        notes=tuple(notes),
    )


def _unknown(term: Term) -> bool:
    """Whether nobody knows what the scorer will load: a function's module, or a model that lies on another machine."""
    scorer = term.scorer
    return isinstance(scorer, FunctionScorer) or (isinstance(scorer, ImageRewardScorer) and not Path(scorer.path).is_dir())


def _shapes(config: RunConfig) -> tuple[DiffusionShape, RewardShape]:
    model = shape_of(config.model.path) if isinstance(config.model, DiffusersModel) else replace(shape_of(str(WEIGHTS)), name="atelier")
    path = config.rewards.preference.path
    reward = replace(reward_shape_of(str(WEIGHTS / "reward_model")), name="atelier") if path == "atelier" else reward_shape_of(path)
    return model, reward
