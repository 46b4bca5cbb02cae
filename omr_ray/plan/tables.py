"""A plan as tables on standard output."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from omr_ray.plan import Plan


def show(plan: Plan) -> None:
    """Actors, placement, memory and one step of `plan`."""
    console = Console()
    console.print(f"[bold]{plan.name}[/bold]  {plan.model}, {plan.pixels[0]} x {plan.pixels[1]}, latent {list(plan.latent)}")
    console.print(f"LoRA {plan.lora_parameters:,} parameters; reward model {plan.reward_model}")
    console.print(_actors(plan))
    console.print(_nodes(plan))
    console.print(_step(plan))
    for note in plan.notes:
        console.print(f"note: {note}")


def _actors(plan: Plan) -> Table:
    table = Table("pool", "actors", "reserves", title="Actors, and the memory of one in GiB (estimate)", title_justify="left")
    for title in ("weights", "working", "rest", "sum", "share"):
        table.add_column(title, justify="right")
    for actor in plan.actors:
        memory = dict(actor.memory_gib)
        weights, activations = memory.pop("weights"), memory.pop("activations")
        reserved = " + ".join(f"{amount:g} {name}" for name, amount in actor.resources.items())
        limit = "main memory" if actor.limit_gib is None else f"{actor.limit_gib:.1f}"
        figures = (f"{value:.2f}" for value in (weights, activations, sum(memory.values()), actor.total_gib))
        table.add_row(actor.pool, str(actor.count), reserved, *figures, limit)
    return table


def _nodes(plan: Plan) -> Table:
    cluster = plan.cluster
    shape = f"{cluster.cpus_per_node} CPUs, {cluster.gpus_per_node} GPUs, {cluster.memory_gib_per_node:g} GiB"
    table = Table("node", "actors", title=f"Placement on {cluster.name} ({cluster.nodes} x {shape})", title_justify="left")
    for index, actors in enumerate(plan.nodes, start=1):
        table.add_row(str(index), ", ".join(f"{count} {pool}" for pool, count in sorted(actors.items())) or "free")
    return table


def _step(plan: Plan) -> Table:
    step = plan.step
    table = Table("one training step", "", title="Work and traffic", title_justify="left")
    table.columns[1].justify = "right"
    for name, value in (
        ("dialogue rounds", f"{step.rounds}"),
        ("samples of a round", f"{step.samples_per_round:,}"),
        ("samples in all", f"{step.trajectories:,}"),
        ("rows that are trained", f"{step.trained_rows:,}"),
        ("UNet forwards, sampling", f"{step.sampling_forwards:,}"),
        ("UNet forwards, features", f"{step.feature_forwards:,}"),
        ("UNet forwards and backwards, learning", f"{step.learning_forwards:,}"),
        ("UNet forwards, reference", f"{step.reference_forwards:,}"),
        ("bytes of a trajectory, by round", ", ".join(f"{size:,}" for size in sorted(set(step.bytes_per_trajectory)))),
        ("rollouts", f"{step.rollout_bytes / 2**20:,.1f} MiB"),
        ("adapter", f"{step.weight_bytes / 2**20:,.2f} MiB"),
    ):
        table.add_row(name, value)
    return table
