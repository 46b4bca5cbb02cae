"""What every actor asks Ray for, and where Ray is asked to put it.

    rollout, reward   one actor each, spread over the nodes that carry the label pool=rollout or pool=reward
    learner           one placement group, packed onto few nodes (they talk all the time), label pool=learner

A label is a wish: where no node carries it, any node with enough resources will do. Inside a Ray Tune trial the
trial's own placement group holds `bundles(config)` already, and a second group would reserve everything twice:
there every actor goes into its own bundle of the trial's group, without labels. (Its own, because two small actors in
the bundle of a larger one would leave that without room.)

The first three functions need no Ray; `omr-ray plan` prints their numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from omr_ray.config.run import Actor, RunConfig
from omr_ray.types import UserError

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup

Resources = dict[str, float]
Pool = Literal["rollout", "reward", "learner"]


def resources(actors: Actor) -> Resources:
    """What one actor reserves, in Ray's names: {"CPU": 1.0, "GPU": 0.5}. Zeros are left out, as a bundle must."""
    return {name: amount for name, amount in (("CPU", actors.num_cpus), ("GPU", actors.num_gpus)) if amount > 0}


def amounts(resources: Resources) -> str:
    """For messages: "0.5 CPU and 1 GPU"."""
    return " and ".join(f"{amount:g} {name}" for name, amount in resources.items()) or "nothing"


def learner_bundles(config: RunConfig) -> list[Resources]:
    """One bundle a learner rank. A bundle may not be empty, so a rank that reserves nothing gets a sliver of a CPU."""
    return [resources(config.workers.learner) or {"CPU": 0.001} for _ in range(config.learner.ranks)]


def bundles(config: RunConfig) -> list[Resources]:
    """One bundle for every actor of a run: learner ranks, then rollout workers, then reward workers.

    A Tune trial reserves these; its own driver takes nothing, as that of a run.
    """
    pools = (config.workers.rollout, config.workers.reward)
    return learner_bundles(config) + [bundle for actors in pools for _ in range(actors.count) if (bundle := resources(actors))]


def groups_that_fit(wanted: Sequence[Resources], nodes: Sequence[Resources]) -> int:
    """How many groups of `wanted` bundles the nodes hold at a time, each bundle put on the first node with room for it."""
    free, groups = [dict(node) for node in nodes], 0
    while all(_take(free, bundle) for bundle in wanted):
        groups += 1
    return groups


def _take(free: Sequence[Resources], bundle: Resources) -> bool:
    for node in free:
        if all(node.get(name, 0.0) >= amount - 1e-6 for name, amount in bundle.items()):  # sums of fractions are not exact
            for name, amount in bundle.items():
                node[name] -= amount
            return True
    return False


def bundle_index(config: RunConfig, pool: Pool, index: int) -> int:
    """The place in `bundles(config)` of actor `index` of a pool; -1, any, for one that reserves nothing and has none."""
    rollout, reward = config.workers.rollout, config.workers.reward
    if pool == "learner":
        return index
    if not resources(rollout if pool == "rollout" else reward):
        return -1
    return config.learner.ranks + index + (rollout.count if pool == "reward" and resources(rollout) else 0)


def total_cpus(config: RunConfig) -> int:
    """Logical CPUs that all actors of a run ask for together."""
    return math.ceil(sum(bundle.get("CPU", 0) for bundle in bundles(config)))


def actor_options(config: RunConfig, pool: Literal["rollout", "reward"], index: int) -> dict[str, Any]:
    """Options of rollout or reward actor `index`.

    Ray restarts it whenever it dies, so that one lost between two steps is back before the next; a call that was lost
    is done again by the pool, which counts it, and not by Ray.
    """
    actors: Actor = getattr(config.workers, pool)
    options: dict[str, Any] = {
        "num_cpus": actors.num_cpus,
        "num_gpus": actors.num_gpus,
        "max_restarts": -1,
        "max_task_retries": 0,
    }
    if trial := in_trial(config, pool, index):
        return options | trial
    return options | {"scheduling_strategy": "SPREAD", "label_selector": {"pool": pool}, "fallback_strategy": [{"label_selector": {}}]}


def in_trial(config: RunConfig, pool: Pool, index: int) -> dict[str, Any]:
    """The option that puts actor `index` of a pool into its bundle of the Tune trial it is started in; {} outside of one."""
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    group = _trial_group()
    if group is None:
        return {}
    place = bundle_index(config, pool, index)
    return {"scheduling_strategy": PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=place)}


def learner_group(config: RunConfig) -> PlacementGroup | None:
    """Reserve one bundle a learner rank; None inside a Tune trial, whose group holds them already.

    Raises UserError where the cluster has no room within workers.start_timeout_s.
    """
    from ray.util.placement_group import placement_group, remove_placement_group

    from omr_ray.workers.nodes import room

    if _trial_group() is not None:
        return None
    wanted, limit = learner_bundles(config), config.workers.start_timeout_s
    labels = {"bundle_label_selector": [{"pool": "learner"}] * len(wanted)} if _labelled("learner") else {}
    group = placement_group(wanted, strategy="PACK", **labels)
    if not group.wait(limit):
        remove_placement_group(group)
        raise UserError(
            f"workers.learner: no room for {len(wanted)} x {wanted[0]} within {limit:g} s (workers.start_timeout_s), the cluster has "
            f"{room()}; lower learner.ranks or workers.*.num_cpus, or add machines"
        )
    return group


def _trial_group() -> PlacementGroup | None:
    from ray.util import get_current_placement_group

    return get_current_placement_group()


def _labelled(pool: Pool) -> bool:
    import ray

    return any(node["Alive"] and node.get("Labels", {}).get("pool") == pool for node in ray.nodes())
