"""Human votes on pairs: blind assignments, win rates, Bradley-Terry ranks (OMR table 1, TDRI table 1, "Human").

A judged pair is one line of JSON: {"pair": ID, "annotator": NAME, "choice": "left" | "right" | "tie" | "both_bad"}, as the
annotation page stores it; which model is left and right stands in a key file that annotators never see.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, get_args

import numpy as np

from omr_ray.evaluation.metrics import Interval
from omr_ray.types import UserError

Choice = Literal["left", "right", "tie", "both_bad"]
BOOTSTRAP_SAMPLES = 2_000
LEFT_WINS = {"left": 1.0, "tie": 0.5, "right": 0.0}  # both_bad says nothing about which of the two is better


@dataclass(frozen=True, slots=True, kw_only=True)
class BlindPair:
    """Two images of one prompt under a name that does not tell who made them. Left and right are models."""

    id: str
    dialogue: str
    round: int
    sibling: int
    prompt: str
    left: str
    right: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote:
    """Example: Vote(item="heldout-0-000001/4/0", annotator="a1", left="Base", right="Ours", choice="right")"""

    item: str  # what was painted; the unit that is resampled, because votes on one picture are not independent
    annotator: str
    left: str
    right: str
    choice: Choice


def blind_pairs(items: Sequence[tuple[str, int, int, str]], models: Sequence[str], seed: int) -> list[BlindPair]:
    """Every two models on every item (dialogue, round, sibling, prompt), in both orders."""
    return [
        BlindPair(
            id=_blind_id(seed, dialogue, round_, sibling, left, right),
            dialogue=dialogue,
            round=round_,
            sibling=sibling,
            prompt=prompt,
            left=left,
            right=right,
        )
        for dialogue, round_, sibling, prompt in items
        for left, right in itertools.permutations(models, 2)
    ]


def cross_over(pairs: Sequence[BlindPair], annotators: Sequence[str], seed: int) -> dict[str, list[str]]:
    """Ids for each annotator: a blind cross-over of two periods (OMR section 4.3).

    In the first period an annotator sees every two models of every item in one order, in the second in the other order, each
    period shuffled anew. Which order comes first alternates from pair to pair, and is the opposite for every second annotator.
    """
    orders: dict[tuple, list[BlindPair]] = {}
    for pair in pairs:
        orders.setdefault((pair.dialogue, pair.round, pair.sibling, *sorted((pair.left, pair.right))), []).append(pair)
    shown: dict[str, list[str]] = {}
    for number, annotator in enumerate(annotators):
        rng = np.random.default_rng([seed, number])
        shown[annotator] = []
        for period in (0, 1):
            ids = [both[(period + place + number) % 2].id for place, both in enumerate(orders.values())]
            shown[annotator] += [ids[i] for i in rng.permutation(len(ids))]
    return shown


def read_votes(lines: Sequence[str], key: Mapping[str, Mapping], source: str) -> list[Vote]:
    """Judged pairs with the models behind them. Raises UserError for a line that is not one, or a pair that is not in the key."""
    votes = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            said = json.loads(line)
            pair, choice = said["pair"], said["choice"]
        except (json.JSONDecodeError, KeyError, TypeError):
            raise UserError(f'{source}:{number}: not a judged pair; write {{"pair": ID, "annotator": NAME, "choice": CHOICE}}') from None
        if choice not in get_args(Choice):
            raise UserError(f"{source}:{number}: choice {choice!r} is none of {', '.join(get_args(Choice))}")
        if pair not in key:
            raise UserError(f"{source}:{number}: pair {pair!r} is not in votes/key.json of this directory; take the votes on its pairs")
        behind = key[pair]
        item = f"{behind['dialogue']}/{behind['round']}/{behind['sibling']}"
        annotator = str(said.get("annotator", ""))
        votes.append(Vote(item=item, annotator=annotator, left=behind["left"], right=behind["right"], choice=choice))
    return votes


def key_of(pairs: Sequence[BlindPair]) -> dict[str, dict]:
    """Who is behind a blind pair."""
    return {pair.id: {name: value for name, value in asdict(pair).items() if name != "id"} for pair in pairs}


def counts(votes: Sequence[Vote], models: Sequence[str]) -> np.ndarray:
    """Wins of row over column, f64 [M M]; a tie is half a win for both, and what is bad on both sides counts for neither."""
    place = {name: index for index, name in enumerate(models)}
    wins = np.zeros((len(models), len(models)))
    for vote in votes:
        if vote.choice in LEFT_WINS and vote.left in place and vote.right in place:
            left, right, share = place[vote.left], place[vote.right], LEFT_WINS[vote.choice]
            wins[left, right] += share
            wins[right, left] += 1 - share
    return wins


def win_rates(wins: np.ndarray) -> np.ndarray:
    """Share of its decided comparisons that each model won, f64 [M]; NaN without any."""
    played = wins.sum(axis=1) + wins.sum(axis=0)
    return np.divide(wins.sum(axis=1), played, out=np.full(len(wins), np.nan), where=played > 0)


def bradley_terry(wins: np.ndarray, *, iterations: int = 10_000, tolerance: float = 1e-10) -> np.ndarray:
    """log strengths f64 [M], mean 0, with P(i beats j) = p_i / (p_i + p_j) (Bradley & Terry 1952), by the MM algorithm of Hunter 2004.

    The maximum does not exist where some models never lose to the others; half a comparison won on each side of every pair that
    was compared keeps it finite and hardly moves it otherwise. NaN for a model that was never compared.
    """
    played = wins + wins.T
    known = played.sum(axis=1) > 0
    beaten = np.all((wins > 0) | (played == 0))
    smoothed = wins if beaten else wins + 0.5 * (played > 0)
    played = smoothed + smoothed.T
    won, strength = smoothed.sum(axis=1), np.ones(len(wins))
    for _ in range(iterations):
        expected = (played / (strength[:, None] + strength[None, :])).sum(axis=1)
        new = np.where(known, won / np.where(known, expected, 1.0), 1.0)
        new /= np.exp(np.log(new[known]).mean()) if known.any() else 1.0
        done = np.abs(np.log(new[known]) - np.log(strength[known])).max(initial=0.0) < tolerance
        strength = new
        if done:
            break
    return np.where(known, np.log(strength), np.nan)


def bootstrapped(votes: Sequence[Vote], models: Sequence[str], seed: int = 0) -> tuple[list[Interval], list[Interval]]:
    """Win rates and Bradley-Terry strengths with 95% percentile intervals, resampling items with all their votes."""
    items = sorted({vote.item for vote in votes})
    by_item = np.stack([counts([vote for vote in votes if vote.item == item], models) for item in items])
    rng = np.random.default_rng(seed)
    drawn = [by_item[rng.integers(len(items), size=len(items))].sum(axis=0) for _ in range(BOOTSTRAP_SAMPLES)]
    whole = by_item.sum(axis=0)
    return (
        _intervals(win_rates(whole), np.stack([win_rates(wins) for wins in drawn])),
        _intervals(bradley_terry(whole), np.stack([bradley_terry(wins, tolerance=1e-6) for wins in drawn])),
    )


def _intervals(values: np.ndarray, drawn: np.ndarray) -> list[Interval]:
    found = []
    for value, column in zip(values, drawn.T, strict=True):
        known = column[np.isfinite(column)]
        low, high = np.percentile(known, [2.5, 97.5]) if known.size else (np.nan, np.nan)
        found.append(Interval(value=float(value), low=float(low), high=float(high)))
    return found


def _blind_id(*parts: object) -> str:
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:24]
