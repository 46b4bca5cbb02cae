"""Simulated users talk to a system, turn by turn, until each sees its hidden intent or the turns are over (TDRI section 4).

    user ──says──► system ──shows──► oracle reads ──► satisfied, or what to say next: feedback, and an answer to the question
      ▲                                                                             │
      └─────────────────────────────────────────────────────────────────────────────┘

The system is the engine in this process (`in_process`) or a service (`over_http`). What a user says follows from (seed, dialogue) and
what the images showed, so variants of a system meet the same users. The oracle judges, and is the users' eyes; nothing learns from it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from omr_ray.atelier import world
from omr_ray.dialogue.session import Modality, Mode, Status
from omr_ray.dialogue.simulated_user import SimulatedUser, wrong_aspects
from omr_ray.evaluation.generating import Read, derived_seed
from omr_ray.evaluation.stored import png
from omr_ray.types import Dialogue, UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """What of the system is left in. Example: Variant(name="no questions", asks=False)"""

    name: str
    asks: bool = True  # clarification questions (TDRI eq. 6)
    adapted: bool = True  # paints with the adapter, where one is given
    mode: Mode | None = None  # None: edits where there is an image (TDRI table 3)
    alone: bool = False  # no dialogue: each time the user says the whole wish, and it is rewritten and painted on its own


FULL = Variant(name="full")
SCRATCH = Variant(name="scratch", mode="scratch")
VARIANTS = {
    variant.name: variant
    for variant in (
        FULL,
        Variant(name="no-questions", asks=False),
        Variant(name="no-adapter", adapted=False),
        Variant(name="augmentation", asks=False, adapted=False, mode="scratch", alone=True),
        SCRATCH,
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What one user says in one turn. Example: Said(talk=0, turn=2, seed=7, utterance="make it blue", answer="with a belt")"""

    talk: int  # which user's
    turn: int  # from 1
    seed: int  # of the image
    utterance: str
    answer: str | None = None  # to the question of the turn before
    skips: bool = False  # that question


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What the system answered with. What is None there was not, or the system does not tell."""

    status: Status
    modality: Modality | None = None
    prompt: str | None = None
    image: np.ndarray | None = None  # u8 [H W 3]
    question: str | None = None  # the aspect it is about
    ambiguity: float | None = None
    features: np.ndarray | None = None  # f32 [F], f(z) of the image
    error: str | None = None


class System(Protocol):
    """One system for the users of one batch; a user's first turn opens a session."""

    def turns(self, said: Sequence[Said]) -> list[Shown]:
        """One turn of each user who goes on, in the order of `said`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TalkedTurn:
    """One turn as it is stored."""

    dialogue: str
    turn: int  # from 1
    seed: int
    utterance: str
    answer: str | None
    prompt: str | None
    status: Status
    modality: Modality | None
    wrong: tuple[str, ...] | None  # aspects of the intent that the image does not show; None without an image
    satisfied: bool
    question: str | None
    answered: bool | None  # that question; None where nothing was asked, or nothing more was said
    ambiguity: float | None
    consistency: float | None  # cosine of f(z) of this image and the one before (OMR eq. 7)
    seconds: float  # its share of the turn that it went through with others
    image: bytes | None = None  # PNG, where it is kept


@dataclass(slots=True, kw_only=True)
class _Talk:
    """A user in the middle of a dialogue."""

    dialogue: Dialogue
    user: SimulatedUser
    next: Said
    features: np.ndarray | None = None
    over: bool = False


def talk(
    system: System,
    read: Read,
    dialogues: Sequence[Dialogue],
    *,
    variant: Variant,
    seed: int,
    max_turns: int,
    skip_probability: float,
    pictures: int = 0,
) -> list[TalkedTurn]:
    """All turns of one user a dialogue. The images of the first `pictures` users are kept.

    Raises UserError for an intent that names nothing, and where turn 1 or 2 failed for all: then it is the system that is at fault.
    """
    talks = [_opened(number, dialogue, seed) for number, dialogue in enumerate(dialogues)]
    turns: list[TalkedTurn] = []
    for turn in range(1, max_turns + 1):
        active = [one for one in talks if not one.over]
        if not active:
            break
        began = time.perf_counter()
        shown = system.turns([one.next for one in active])
        share = (time.perf_counter() - began) / len(active)
        if turn <= 2 and all(one.status == "failed" for one in shown):  # the first image, and the first edit
            raise UserError(f"every round of turn {turn} failed, the first with: {shown[0].error}; mend the config or the service")
        for one, found, seen in zip(active, shown, _readings(read, shown), strict=True):
            last = turn == max_turns
            turns.append(_heard(one, found, seen, variant, seed, share, last, skip_probability, keep=one.next.talk < pictures))
    return turns


def _opened(number: int, dialogue: Dialogue, seed: int) -> _Talk:
    user = SimulatedUser.of(dialogue, world)
    if not user.target:
        raise UserError(f"dialogue {dialogue.id!r}: intent {dialogue.intent!r:.60} names no aspect that can be judged; name a color")
    first = Said(talk=number, turn=1, seed=derived_seed(seed, dialogue.id, 0, 1), utterance=user.utterance)
    return _Talk(dialogue=dialogue, user=user, next=first)


def _readings(read: Callable[[np.ndarray], list[dict[str, str]]], shown: Sequence[Shown]) -> list[dict[str, str] | None]:
    """What each image shows; None where there is none."""
    images = [one.image for one in shown if one.image is not None]
    found = iter(read(np.stack(images)) if images else [])
    return [None if one.image is None else next(found) for one in shown]


def _heard(
    one: _Talk,
    shown: Shown,
    seen: dict[str, str] | None,
    variant: Variant,
    seed: int,
    seconds: float,
    last: bool,
    skip_probability: float,
    *,
    keep: bool,
) -> TalkedTurn:
    """The turn that is over; `one` knows afterwards what it says next, or that it is over."""
    said, consistency, answered = one.next, _cosine(one.features, shown.features), None
    satisfied = seen is not None and one.user.satisfied(seen)
    one.features = one.features if shown.features is None else shown.features
    one.over = satisfied or last
    if not one.over:
        one.next = _reply(one, shown, seen, variant, seed, skip_probability)
        answered = None if shown.question is None else one.next.answer is not None
    return TalkedTurn(
        dialogue=one.dialogue.id,
        turn=said.turn,
        seed=said.seed,
        utterance=said.utterance,
        answer=said.answer,
        prompt=shown.prompt,
        status=shown.status,
        modality=shown.modality,
        wrong=None if seen is None else wrong_aspects(one.user.target, seen),
        satisfied=satisfied,
        question=shown.question,
        answered=answered,
        ambiguity=shown.ambiguity,
        consistency=consistency,
        seconds=seconds,
        image=png(shown.image) if keep and shown.image is not None else None,
    )


def _reply(
    one: _Talk,
    shown: Shown,
    seen: dict[str, str] | None,
    variant: Variant,
    seed: int,
    skip_probability: float,
) -> Said:
    """What a user says who is not satisfied: the answer to the question, and what else is wrong."""
    user, answer = one.user, None
    if shown.question is not None:
        # A stream of its own: whether somebody was asked must not change the words of the rest.
        drawn = np.random.default_rng([one.next.seed, 1])
        user, answer = user.answer(shown.question, drawn, skip_probability=skip_probability)
    rng = np.random.default_rng(one.next.seed)
    user = user.again(rng) if seen is None else user.look(seen, rng, answered=None if answer is None else shown.question)
    one.user, turn = user, one.next.turn + 1
    return Said(
        talk=one.next.talk,
        turn=turn,
        seed=derived_seed(seed, one.dialogue.id, 0, turn),
        utterance=user.prompt if variant.alone else user.utterance,
        answer=answer,
        skips=shown.question is not None and answer is None,
    )


def _cosine(one: np.ndarray | None, other: np.ndarray | None) -> float | None:
    if one is None or other is None:
        return None
    return float(one @ other / max(float(np.linalg.norm(one) * np.linalg.norm(other)), 1e-12))
