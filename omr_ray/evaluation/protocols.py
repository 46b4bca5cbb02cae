"""What is measured about a policy, always on the same held-out dialogues with the same seeds.

    held_out          every dialogue's own rounds: accuracy, preference, diversity and consistency by round
    rounds_to_intent  a simulated user who goes on until the image shows the whole intent
    compare           two evaluations, dialogue by dialogue, with 95% intervals
    averaged          several runs (seeds) of one thing as one evaluation, dialogue by dialogue

Everything is called through plain callables, so that tests run it without models. Axis letters as in types.py, D dialogues.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from omr_ray.atelier import world
from omr_ray.dialogue.simulated_user import wrong_aspects
from omr_ray.evaluation import metrics
from omr_ray.evaluation.generating import Generate, sessions
from omr_ray.evaluation.metrics import Interval
from omr_ray.evaluation.results import Comparison, Evaluation, HeldOut, RoundsToIntent, SheetRound, SheetRow, load, save
from omr_ray.rewards.consistency import consistency_credits
from omr_ray.rewards.diversity import diversity
from omr_ray.types import Dialogue, Rollout, UserError

__all__ = [
    "Comparison",
    "Evaluation",
    "HeldOut",
    "RoundsToIntent",
    "SheetRound",
    "SheetRow",
    "averaged",
    "compare",
    "evaluate",
    "held_out",
    "load",
    "rounds_to_intent",
    "save",
]

BOOTSTRAP_SAMPLES, BOOTSTRAP_SEED = 10_000, 0

Preferences = Sequence[Sequence[Sequence[float | None]]]  # [D][R][G]


class Oracle(Protocol):
    """Says what an image shows. Judges only: no reward is made from it."""

    def read(self, images: np.ndarray) -> list[dict[str, str]]: ...

    def accuracy(self, images: np.ndarray, prompts: Sequence[str]) -> np.ndarray: ...


def evaluate(
    dialogues: Sequence[Dialogue],
    *,
    phase: str,
    weights: str,
    sample: Callable[[Sequence[Dialogue]], list[Rollout]],
    preferences: Callable[[list[Rollout]], Preferences],
    generate: Generate,
    oracle: Oracle | None,
    strength: Sequence[float],
    siblings: int,
    max_rounds: int,
    seed: int,
    contact_sheet: int,
) -> Evaluation:
    """Both protocols with one policy. Without an oracle (images nobody can read exactly) accuracy and intent stay empty."""
    rollouts = sample(dialogues)
    return Evaluation(
        phase=phase,
        weights=weights,
        seed=seed,
        held_out=held_out(dialogues, rollouts, preferences(rollouts), oracle.accuracy if oracle else None),
        intent=rounds_to_intent(generate, oracle.read, dialogues, max_rounds, seed, strength=strength, siblings=siblings)
        if oracle
        else None,
        sheet=tuple(_sheet_row(rollout, oracle) for rollout in rollouts[:contact_sheet]),
    )


def held_out(
    dialogues: Sequence[Dialogue],
    rollouts: Sequence[Rollout],
    preferences: Preferences,
    accuracy: Callable[[np.ndarray, Sequence[str]], np.ndarray] | None,
) -> HeldOut:
    """Figures of dialogues that were never trained on, by round (OMR fig. 5 and 7).

    accuracy: images u8 [N H W 3] and their prompts to f64 [N], NaN where a prompt names nothing that can be judged.
    """
    rounds = max(len(dialogue.rounds) for dialogue in dialogues)
    figures = {name: np.full((len(dialogues), rounds), np.nan) for name in ("accuracy", "preference", "diversity", "consistency")}
    for d, (rollout, scores) in enumerate(zip(rollouts, preferences, strict=True)):
        features = np.array([[t.features for t in siblings] for siblings in rollout.trajectories])  # [R G F]
        cosines = consistency_credits(features)
        for r, siblings in enumerate(rollout.trajectories):
            if accuracy is not None:
                images, prompts = np.stack([t.image for t in siblings]), [t.prompt for t in siblings]
                figures["accuracy"][d, r] = _mean(accuracy(images, prompts))
            figures["preference"][d, r] = _mean([np.nan if score is None else score for score in scores[r]])
            figures["diversity"][d, r] = diversity(features[r])
            figures["consistency"][d, r] = _mean(cosines[r]) if r else np.nan
    return HeldOut(dialogues=tuple(dialogue.id for dialogue in dialogues), **figures)


def rounds_to_intent(
    generate: Generate,
    read: Callable[[np.ndarray], list[dict[str, str]]],
    dialogues: Sequence[Dialogue],
    max_rounds: int,
    seed: int,
    *,
    strength: Sequence[float] = (0.6,),
    siblings: int = 1,
) -> RoundsToIntent:
    """Rounds until the image shows the whole intent (OMR table 1, "Round"; TDRI fig. 10).

    Every dialogue is held `siblings` times with different noise. Round 1 starts from noise under the dialogue's first
    prompt; later rounds edit the last image under a prompt that has grown by what the user found wrong.
    """
    matches = np.zeros((len(dialogues) * siblings, max_rounds), dtype=bool)
    for turn in sessions(generate, read, dialogues, max_rounds, seed, strength=strength, siblings=siblings):
        matches[turn.session, turn.round - 1] = turn.satisfied
    rounds = metrics.rounds_to_intent(matches).reshape(len(dialogues), siblings)
    return RoundsToIntent(dialogues=tuple(dialogue.id for dialogue in dialogues), rounds=rounds, max_rounds=max_rounds)


def compare(before: Evaluation, after: Evaluation) -> Comparison:
    """Every figure paired by dialogue. Raises UserError unless both saw the same dialogues with the same seed."""
    _refuse_other_dialogues(before, after)
    old, new = before.held_out, after.held_out
    change = None
    if before.intent is not None and after.intent is not None:
        ratio = _ratio(before.intent.rounds.mean(axis=1), after.intent.rounds.mean(axis=1))
        if ratio is not None:
            change = Interval(value=100 * (ratio.value - 1), low=100 * (ratio.low - 1), high=100 * (ratio.high - 1))
    by_round = (_gain(old.accuracy[:, r], new.accuracy[:, r]) for r in range(old.accuracy.shape[1]))
    return Comparison(
        accuracy_by_round=tuple(interval for interval in by_round if interval is not None),
        last_round_gain=_gain(last_round(old.accuracy), last_round(new.accuracy)),
        preference_gain=_gain(over_rounds(old.preference), over_rounds(new.preference)),
        consistency_gain=_gain(over_rounds(old.consistency), over_rounds(new.consistency)),
        diversity_ratio=_ratio(over_rounds(old.diversity), over_rounds(new.diversity)),
        rounds_to_intent_change_percent=change,
    )


def averaged(results: Sequence[Evaluation]) -> Evaluation:
    """Several evaluations on the same dialogues and seed as one: the mean of every dialogue's figures, and no pictures.

    So an interval over dialogues covers which dialogues were drawn, and not which training seeds were. Raises UserError
    where the dialogues or the seed differ.
    """
    first = results[0]
    for result in results[1:]:
        _refuse_other_dialogues(first, result)
    figures = {
        name: _mean_known([getattr(result.held_out, name) for result in results])
        for name in ("accuracy", "preference", "diversity", "consistency")
    }
    intents = [result.intent for result in results if result.intent is not None]
    return replace(
        first,
        weights=first.weights if len(results) == 1 else f"{first.weights}, and {len(results) - 1} more",
        held_out=HeldOut(dialogues=first.held_out.dialogues, **figures),
        intent=replace(intents[0], rounds=np.concatenate([i.rounds for i in intents], axis=1)) if len(intents) == len(results) else None,
        sheet=(),
    )


def last_round(figures: np.ndarray) -> np.ndarray:
    """The last known figure of every dialogue: f64 [D R] to [D]."""
    known = np.isfinite(figures)
    last = figures.shape[1] - 1 - known[:, ::-1].argmax(axis=1)
    return figures[np.arange(len(figures)), last]


def over_rounds(figures: np.ndarray) -> np.ndarray:
    """Mean of a dialogue's known figures: f64 [D R] to [D]."""
    return np.array([_mean(row) for row in figures])


def _refuse_other_dialogues(one: Evaluation, other: Evaluation) -> None:
    if one.held_out.dialogues != other.held_out.dialogues or one.seed != other.seed:
        raise UserError("a comparison needs the same held-out dialogues and seed on both sides; evaluate both again with one config")


def _mean_known(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Mean over arrays of one shape, NaN left out where another is known."""
    stack = np.stack(arrays)
    known = np.isfinite(stack)
    totals, counts = np.where(known, stack, 0.0).sum(axis=0), known.sum(axis=0)
    return np.divide(totals, counts, out=np.full(totals.shape, np.nan), where=counts > 0)


def _gain(before: np.ndarray, after: np.ndarray) -> Interval | None:
    return _known(metrics.paired_bootstrap(before, after, BOOTSTRAP_SAMPLES, BOOTSTRAP_SEED))


def _ratio(before: np.ndarray, after: np.ndarray) -> Interval | None:
    return _known(metrics.paired_ratio(before, after, BOOTSTRAP_SAMPLES, BOOTSTRAP_SEED))


def _known(figures: tuple[float, float, float]) -> Interval | None:
    value, low, high = figures
    return Interval(value=value, low=low, high=high) if np.isfinite(figures).all() else None


def _mean(values: Sequence[float] | np.ndarray) -> float:
    known = np.asarray(values, dtype=np.float64)
    known = known[np.isfinite(known)]
    return float(known.mean()) if known.size else float("nan")


def _sheet_row(rollout: Rollout, oracle: Oracle | None) -> SheetRow:
    images = [siblings[0].image for siblings in rollout.trajectories]
    readings = oracle.read(np.stack(images)) if oracle else [None] * len(images)
    rounds = (
        SheetRound(
            utterance=round_.utterance,
            prompt=round_.prompt,
            image=image,
            target=round_.target,
            wrong=None if seen is None else wrong_aspects(world.parse(round_.prompt), seen),
        )
        for round_, image, seen in zip(rollout.dialogue.rounds, images, readings, strict=True)
    )
    return SheetRow(dialogue=rollout.dialogue.id, intent=rollout.dialogue.intent, rounds=tuple(rounds))
