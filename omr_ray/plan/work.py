"""How much sampling, learning and traffic one training step is."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from omr_ray.config.run import AtelierDialogues, RunConfig
from omr_ray.plan.shapes import DiffusionShape
from omr_ray.types import UserError

ASSUMED_ROUNDS = 4  # of dialogues that are not on this machine


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPlan:
    """What one training step is made of. A forward is one sample through the UNet, guidance counted twice."""

    rounds: int
    samples_per_round: int
    trajectories: int
    trained_rows: int
    sampling_forwards: int
    feature_forwards: int
    learning_forwards: int  # with a backward pass
    reference_forwards: int
    bytes_per_trajectory: tuple[int, ...]  # by round
    rollout_bytes: int
    weight_bytes: int  # of the adapter, put into the object store once


def trajectory_bytes(model: DiffusionShape, latent: tuple[int, int, int], stored: int, pixels: int) -> int:
    """Bytes of the arrays of one Trajectory with `stored` steps: prompt ids, latents twice, steps, features, image."""
    cells = latent[0] * latent[1] * latent[2]
    return 8 * model.encoders * model.tokens + stored * (2 * 4 * cells + 2 * 8 + 4) + 4 * model.features + 3 * pixels


def executed_steps(config: RunConfig, round_: int) -> int:
    """Denoising steps of a round: all in round 1, then the share `strength` of them (the last value repeats)."""
    if round_ == 1:
        return config.sampler.steps
    strength = config.sampler.strength
    return max(1, round(strength[min(round_ - 2, len(strength) - 1)] * config.sampler.steps))


def longest_dialogue(config: RunConfig, notes: list[str]) -> int:
    """The longest dialogue's rounds."""
    if isinstance(config.dialogues, AtelierDialogues):
        return config.dialogues.rounds
    files = sorted(Path(config.dialogues.path).glob("*.json"))
    lengths = []
    for file in files:
        try:
            lengths.append(len(json.loads(file.read_text())["rounds"]))
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(f"{file}: not a dialogue file; it must be one JSON object with a list 'rounds'") from None
    if not lengths:
        notes.append(f"no dialogues at {config.dialogues.path} on this machine: {ASSUMED_ROUNDS} rounds a dialogue are assumed")
    return max(lengths, default=ASSUMED_ROUNDS)


def steps_in_flight(config: RunConfig) -> int:
    """Steps whose rollouts may be held at a time."""
    return 1 if config.overlap is None else config.overlap.max_staleness + 1


def work_of_a_step(config: RunConfig, model: DiffusionShape, latent: tuple[int, int, int], rounds: int, pixels: int) -> StepPlan:
    """Raises UserError where a round runs no step of the window."""
    sampler, algorithm = config.sampler, config.algorithm
    samples, branches = config.samples_per_step, 2 if sampler.guidance_scale > 1 else 1
    low, high = sampler.window
    stored = []
    for round_ in range(1, rounds + 1):
        inside = min(high, executed_steps(config, round_)) - low + 1
        if inside < 1:
            ran = executed_steps(config, round_)
            raise UserError(
                f"sampler.window {[low, high]} holds none of the {ran} steps of round {round_}; lower T1 or raise sampler.strength"
            )
        stored.append(min(sampler.train_steps_per_round, inside))
    sizes = tuple(trajectory_bytes(model, latent, count, pixels) for count in stored)
    rows = samples * sum(stored)
    pair_forwards = 2 * config.noise_loss.pairs_per_step if config.noise_loss.weight > 0 else 0
    return StepPlan(
        rounds=rounds,
        samples_per_round=samples,
        trajectories=samples * rounds,
        trained_rows=rows,
        sampling_forwards=samples * branches * sum(executed_steps(config, round_) for round_ in range(1, rounds + 1)),
        feature_forwards=samples * rounds,
        learning_forwards=algorithm.passes * (rows * branches + pair_forwards),
        reference_forwards=algorithm.passes * rows * branches if algorithm.kl_weight > 0 else 0,
        bytes_per_trajectory=sizes,
        rollout_bytes=samples * sum(sizes),
        weight_bytes=4 * model.lora_parameters(config.lora.rank),
    )
