"""Whether all actors of a run find room in a cluster."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from omr_ray.config.run import Cluster
from omr_ray.plan.memory import ActorPlan
from omr_ray.types import UserError

HEAD_GIB = 1.0  # Ray's own processes and the driver, on the first node
_SMALLER = {
    "rollout": "lower sampler.batch_size",
    "reward": "lower rewards.preference.batch_size",
    "learner": "lower learner.micro_batch, set learner.gradient_checkpointing=true",
}


def refuse_small_share(actor: ActorPlan, cluster: Cluster) -> None:
    """An actor's models and activations must fit the share of a GPU that it reserves."""
    if actor.limit_gib is not None and cluster.gpus_per_node > 0 and actor.total_gib > actor.limit_gib:
        raise UserError(
            f"workers.{actor.pool}: one actor needs about {actor.total_gib:.1f} GiB of GPU memory and reserves "
            f"{actor.resources['GPU']:g} GPU of {cluster.gpu_memory_gib:g} GiB, that is {actor.limit_gib:.1f}; "
            f"{_SMALLER[actor.pool]}, or raise workers.{actor.pool}.num_gpus"
        )


def place(actors: Sequence[ActorPlan], cluster: Cluster, rollout_gib: float) -> tuple[dict[str, int], ...]:
    """Actors of each pool on every node, as Ray puts them: the learner first, packed; then the other pools, spread.

    Within a node Ray gives a part of a GPU from the fullest GPU that has it. Two learner ranks on one GPU cannot talk
    through NCCL, so a rank must reserve more than half of one.
    """
    nodes = [
        _Node(
            cpus=cluster.cpus_per_node,
            gpus=[1.0] * cluster.gpus_per_node,
            memory=cluster.memory_gib_per_node - (HEAD_GIB + rollout_gib if index == 0 else 0),
        )
        for index in range(cluster.nodes)
    ]
    for actor in sorted(actors, key=lambda actor: actor.pool != "learner"):
        _refuse_shared_gpu(actor)
        for number in range(1, actor.count + 1):
            ready = [node for node in nodes if node.lacks(actor) is None]
            if not ready:
                _refuse_placement(actor, number, nodes, cluster)
            chosen = ready[0] if actor.pool == "learner" else min(ready, key=lambda node: node.actors.get(actor.pool, 0))
            chosen.take(actor)
    return tuple(node.actors for node in nodes)


@dataclass(slots=True)
class _Node:
    cpus: float
    gpus: list[float]
    memory: float
    actors: dict[str, int] = field(default_factory=dict)

    def lacks(self, actor: ActorPlan) -> str | None:
        """The first resource of which too little is left, as "name, wanted, left"."""
        cpus, gpus = actor.resources.get("CPU", 0), actor.resources.get("GPU", 0)
        if cpus > self.cpus + 1e-6:
            return f"{cpus:g} CPUs, {self.cpus:g} left"
        if len(self._gpus_for(gpus)) < math.ceil(gpus):
            return f"{gpus:g} GPU, {sum(self.gpus):g} left"
        if actor.host_gib > self.memory:
            return f"about {actor.host_gib:.1f} GiB of main memory, {max(0, self.memory):.1f} left"
        return None

    def take(self, actor: ActorPlan) -> None:
        gpus = actor.resources.get("GPU", 0)
        self.cpus -= actor.resources.get("CPU", 0)
        self.memory -= actor.host_gib
        for index in self._gpus_for(gpus)[: math.ceil(gpus)]:
            self.gpus[index] -= min(1.0, gpus)
        self.actors[actor.pool] = self.actors.get(actor.pool, 0) + 1

    def _gpus_for(self, wanted: float) -> list[int]:
        """GPUs that have `wanted` left, the fullest first."""
        fitting = [index for index, left in enumerate(self.gpus) if left + 1e-6 >= min(1.0, wanted)]
        return sorted(fitting, key=lambda index: self.gpus[index])


def _refuse_shared_gpu(actor: ActorPlan) -> None:
    gpus = actor.resources.get("GPU", 0)
    if actor.pool == "learner" and actor.count > 1 and 0 < gpus <= 0.5:
        raise UserError(
            f"workers.learner.num_gpus must be above 0.5 with {actor.count} ranks, got {gpus:g}: two ranks on one GPU cannot talk "
            "through NCCL; raise it, or set learner.ranks=1"
        )


def _refuse_placement(actor: ActorPlan, number: int, nodes: Sequence[_Node], cluster: Cluster) -> None:
    freest = max(nodes, key=lambda node: (sum(node.gpus), node.cpus, node.memory))
    count = "learner.ranks" if actor.pool == "learner" else f"workers.{actor.pool}.count"
    raise UserError(
        f"cluster {cluster.name!r} ({cluster.nodes} x {cluster.cpus_per_node} CPUs, {cluster.gpus_per_node} GPUs, "
        f"{cluster.memory_gib_per_node:g} GiB): no room for {actor.pool} actor {number} of {actor.count}, "
        f"which needs {freest.lacks(actor)}; "
        f"lower {count} or workers.*.num_cpus and num_gpus, or raise cluster.nodes"
    )
