"""Adaptive optimization: what votes between two images teach an adapter (TDRI section 3.2.3, eq. 7).

    votes ──redraw──► stored steps z_t, z_{t-1} of winner and loser ──D3PO, `passes` times──► the next version of an adapter

An image is never kept as a chain of latents: from its seed it is drawn again, under the adapter it was drawn with.
Axis letters as in types.py; M rows, each one step of one pair.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from omr_ray.algorithm.d3po import d3po_loss
from omr_ray.algorithm.gaussian import log_prob
from omr_ray.config.dialogue import AdaptiveOptimization
from omr_ray.diffusion.ddim import executed_steps
from omr_ray.diffusion.generation import generate_guided
from omr_ray.diffusion.sampler import MultiRoundSampler
from omr_ray.types import UserError

Weights = Mapping[str, np.ndarray]
LARGEST_GRADIENT = 1.0  # norm


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """How one image was made: the same drawing gives the same image."""

    prompt: str
    seed: int
    parent: np.ndarray | None  # f32 [C h w], latent that an edit started from; None: from scratch
    strength: float
    adapter: str | None  # key of the weights it was drawn with; None: the base


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnPair:
    """A vote that chose: how the better image was made, and how the other."""

    id: str  # decides, for ever, whether the vote is learned from or held out
    winner: Drawing
    loser: Drawing


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """M rows of stored steps, winner and loser beside each other."""

    pair: np.ndarray  # i64 [M], number of its vote
    prompt_ids: np.ndarray  # i64 [2 M E L]
    latents: np.ndarray  # f32 [2 M C h w]
    next_latents: np.ndarray  # f32 [2 M C h w]
    timesteps: np.ndarray  # i64 [2 M]
    previous_timesteps: np.ndarray  # i64 [2 M]


def held_out(votes: Sequence[DrawnPair], share: float) -> tuple[list[DrawnPair], list[DrawnPair]]:
    """Votes to learn from, and votes to judge by: which of the two a vote is follows from its id alone."""

    def kept_back(vote: DrawnPair) -> bool:
        return int.from_bytes(hashlib.sha256(vote.id.encode()).digest()[:8], "big") < share * 2**64

    return [vote for vote in votes if not kept_back(vote)], [vote for vote in votes if kept_back(vote)]


def redraw(sampler: MultiRoundSampler, votes: Sequence[DrawnPair], weights_of: Callable[[str | None], Weights]) -> Steps:
    """Draw every image of the votes again and keep its steps, those that both images of a vote ran and that have a variance.

    weights_of: an adapter's key to its weights. The last step of a schedule is left out: its sigma is so small that its
    log-probability would drown the others. Raises UserError where no step is left.
    """
    drawings = [drawing for vote in votes for drawing in (vote.winner, vote.loser)]
    begins = [_begin(drawing, sampler.steps) for drawing in drawings]
    stored: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    groups: dict[tuple[str | None, bool, float], list[int]] = defaultdict(list)
    for number, drawing in enumerate(drawings):
        groups[drawing.adapter, drawing.parent is None, drawing.strength if drawing.parent is not None else 1.0].append(number)
    for (adapter, _, strength), numbers in groups.items():
        sampler.policy.load_lora(weights_of(adapter))
        parents = [parent for number in numbers if (parent := drawings[number].parent) is not None]
        made = generate_guided(
            sampler,
            [drawings[number].prompt for number in numbers],
            seeds=[drawings[number].seed for number in numbers],
            from_latents=np.stack(parents) if parents else None,
            strength=strength,
            kept=range(begins[numbers[0]], sampler.steps - 1),
        )
        for row, number in enumerate(numbers):
            stored[number] = made.stored_latents[row], made.stored_next_latents[row]
    rows = []  # (vote, drawing, step) of winners, each beside its loser's
    for number in range(len(votes)):
        shared = range(max(begins[2 * number], begins[2 * number + 1]), sampler.steps - 1)
        rows += [(number, step) for step in shared]
    if not rows:
        raise UserError(f"no vote has a step to learn from: images take {sampler.steps} steps; set painting.steps to 2 or more")
    both = [(2 * number + side, step) for side in (0, 1) for number, step in rows]
    steps = np.array([step for _, step in both])
    ids = sampler.policy.tokenize([drawings[number].prompt for number, _ in both])
    return Steps(
        pair=np.array([number for number, _ in rows]),
        prompt_ids=ids,
        latents=np.stack([stored[number][0][step - begins[number]] for number, step in both]),
        next_latents=np.stack([stored[number][1][step - begins[number]] for number, step in both]),
        timesteps=sampler.timesteps[steps],
        previous_timesteps=sampler.previous_timesteps[steps],
    )


def learn(
    sampler: MultiRoundSampler, steps: Steps, start: Weights, config: AdaptiveOptimization, seed: int
) -> tuple[Weights, dict[str, float]]:
    """`config.passes` passes of D3PO over the steps, from the adapter `start`; returns the new adapter and its figures.

    The reference of eq. 7 is the adapter turned off. A function of its arguments alone.
    """
    policy = sampler.policy
    policy.load_lora(start)
    parameters = list(policy.lora_parameters().values())
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=0.0)
    reference = log_probs(sampler, steps, adapter=False)
    count, total, updates = len(steps.pair), 0.0, 0
    left_out = 0
    for pass_ in range(config.passes):
        order = np.random.default_rng([seed, pass_]).permutation(count)
        for rows in np.array_split(order, max(1, math.ceil(count / config.batch))):
            current = _log_probs(sampler, steps, np.concatenate([rows, count + rows]))
            winner, loser = current.chunk(2)
            step = d3po_loss(winner, loser, reference[rows].to(winner), reference[count + rows].to(winner), config.beta)
            learned = int((~step.left_out).sum())
            left_out += len(rows) - learned
            if learned == 0:
                continue
            loss = step.loss.sum() / learned
            optimizer.zero_grad()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(parameters, LARGEST_GRADIENT)
            if torch.isfinite(norm):
                optimizer.step()
                total, updates = total + loss.item(), updates + 1
    weights = policy.lora_weights()
    return weights, {"loss": total / max(1, updates), "updates": float(updates), "left_out": float(left_out), "rows": float(count)}


class Verdict(NamedTuple):
    """What held-out votes say about an adapter."""

    wins: np.ndarray  # f64 [votes]: 1 where it leans to the winner, 0 where to the loser, 0.5 where nowhere, as the base does
    drift: float  # how much less likely the winners' own steps have become, a latent dimension; 0 for the base


def judge(sampler: MultiRoundSampler, steps: Steps, weights: Weights) -> Verdict:
    """An adapter leans to what its log-probability has risen for, against the base, over all stored steps of a vote (the margin of eq. 7).

    A policy that makes losers unlikely by making everything unlikely leans to winners too: hence the drift. Where
    log-probabilities are not finite, the vote is lost.
    """
    count = len(steps.pair)
    reference = log_probs(sampler, steps, adapter=False)
    sampler.policy.load_lora(weights)
    gained = (log_probs(sampler, steps) - reference).double().numpy()
    margins = np.bincount(steps.pair, weights=gained[:count] - gained[count:])
    return Verdict(wins=np.where(np.isfinite(margins), 0.5 + 0.5 * np.sign(margins), 0.0), drift=-float(gained[:count].mean()))


@torch.no_grad()
def log_probs(sampler: MultiRoundSampler, steps: Steps, *, adapter: bool = True) -> Tensor:
    """f32 [2 M] of the stored steps, with the adapter that is loaded or without any."""
    with nullcontext() if adapter else sampler.policy.adapter_off():
        parts = [_log_probs(sampler, steps, rows).cpu() for rows in _chunks(len(steps.timesteps), sampler.batch_size)]
    return torch.cat(parts)


def _log_probs(sampler: MultiRoundSampler, steps: Steps, rows: np.ndarray) -> Tensor:
    policy = sampler.policy
    times, previous = (torch.from_numpy(values[rows]).to(policy.device) for values in (steps.timesteps, steps.previous_timesteps))
    latents, following = (torch.from_numpy(values[rows]).to(policy.device) for values in (steps.latents, steps.next_latents))
    text = policy.encode_text(steps.prompt_ids[rows])
    mean, sigma, _ = policy.step(latents, times, previous, text, eta=sampler.eta, guidance_scale=sampler.guidance_scale)
    return log_prob(following, mean, sigma)


def _begin(drawing: Drawing, steps: int) -> int:
    """Number of the first step that the drawing ran."""
    return 0 if drawing.parent is None else steps - executed_steps(drawing.strength, steps)


def _chunks(count: int, size: int) -> Iterator[np.ndarray]:
    yield from np.array_split(np.arange(count), max(1, math.ceil(count / size)))
