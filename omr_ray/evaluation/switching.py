"""A picture or words (OMR table 2): the dialogue engine is asked for one or the other, with a picture before it or without.

    T->T    a question about the dialogue or about what there is to choose from; no picture so far
    T->I    the first wish; no picture so far
    I+T->I  a wish that changes the last picture; in round 1 the user brings one
    I+T->T  a question about the last picture; in round 1 the user brings one

A dialogue is walked as a tree, so that every kind has its turn in every round. Each is judged by itself: where the engine chose
wrongly, what follows goes on from the same turn with the modality that was asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from omr_ray.atelier import answers
from omr_ray.atelier.world import ASPECTS, VALUES, WORDINGS, Scene, parse, prompt_of
from omr_ray.config.dialogue import DialogueConfig
from omr_ray.dialogue.d2p import History
from omr_ray.dialogue.engine import Commission, DialogueEngine, Picture
from omr_ray.dialogue.session import Modality, Session, SessionRound
from omr_ray.dialogue.simulated_user import wrong_aspects
from omr_ray.evaluation.generating import Generate, Read, derived_seed
from omr_ray.evaluation.interactive.in_process import Album
from omr_ray.evaluation.interactive.together import Ask, Together
from omr_ray.evaluation.stored import SwitchedTurn, png
from omr_ray.types import Dialogue
from omr_ray.vlm.engine import Conversation, LanguageModel

KINDS = ("T->T", "T->I", "I+T->I", "I+T->T")
ROUNDS = 3

Paint = Callable[[Sequence[Commission]], list[Picture]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One turn to be judged. Example: Step(kind="T->I", round=1, utterance="i want a red dress", named={"content": "dress", ...})"""

    kind: str
    round: int  # from 1
    utterance: str
    named: Mapping[str, str] | None = None  # what the picture has to show; None: words are wanted
    after: int | None = None  # the step that it follows, by its place in the script
    brings: np.ndarray | None = None  # u8 [H W 3], the user's own picture before it

    @property
    def modality(self) -> Modality:
        return "words" if self.named is None else "picture"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outcome:
    """A step's turn, and what it followed."""

    step: Step
    round: SessionRound
    history: History
    seen: np.ndarray | None  # the last picture before it


def script(dialogue: Dialogue, seed: int) -> list[Step]:
    """The steps of a dialogue, each behind the one that it follows; a dialogue of fewer rounds has fewer steps."""
    rng = np.random.default_rng(derived_seed(seed, dialogue.id, 0, 0))
    rounds = dialogue.rounds[:ROUNDS]
    first, *_ = rounds
    wish: dict[str, Any] = {"utterance": first.utterance, "named": parse(first.prompt)}
    steps: list[Step] = []
    words: int | None = None  # the last step of the path without pictures, and that of the path with them
    picture: int | None = None
    for round_ in rounds:
        r = round_.index
        steps.append(Step(kind="T->I", round=r, after=words, **wish))
        drawn = len(steps) - 1
        steps.append(Step(kind="T->T", round=r, utterance=_about_the_dialogue(rng), after=words))
        words = len(steps) - 1
        if r == 1:
            picture = drawn
            if len(rounds) > 1:  # the user brings the picture that the first wish means, and says the second one
                brought: dict[str, Any] = {"round": 1, "brings": np.asarray(first.target)}
                second = rounds[1].utterance
                steps.append(Step(kind="I+T->I", utterance=second, named=parse(second), **brought))
                steps.append(Step(kind="I+T->T", utterance=_about_the_picture(rng), **brought))
        else:
            steps.append(Step(kind="I+T->T", round=r, utterance=_about_the_picture(rng), after=picture))
            steps.append(Step(kind="I+T->I", round=r, utterance=round_.utterance, named=parse(round_.prompt), after=picture))
            picture = len(steps) - 1
    return steps


def switch(
    language: LanguageModel, paint: Paint, read: Read, dialogues: Sequence[Dialogue], *, seed: int, strength: Sequence[float]
) -> list[SwitchedTurn]:
    """Every step of every dialogue, judged. The dialogues go side by side and share the batches of the models."""
    album = Album()
    together = Together(
        {
            "complete": lambda conversations, max_tokens: language.complete(conversations, max_tokens=max_tokens),
            "paint": lambda commissions, _: paint(commissions),
        }
    )
    talks = together.run([partial(_talk, dialogue, album, seed, strength) for dialogue in dialogues])
    rows = [(dialogue, outcome) for dialogue, talk in zip(dialogues, talks, strict=True) for outcome in talk]
    shown = [_to_read(outcome, album) for _, outcome in rows]
    images = [image for image in shown if image is not None]
    readings = iter(read(np.stack(images)) if images else ())
    return [
        _judged(dialogue.id, outcome, album, None if image is None else next(readings))
        for (dialogue, outcome), image in zip(rows, shown, strict=True)
    ]


def painted_together(generate: Generate, encode: Callable[[np.ndarray], np.ndarray], commissions: Sequence[Commission]) -> list[Picture]:
    """The pictures of commissions: those of one strength go through the network together. `encode` gives a brought picture its latents."""
    alike: dict[float | None, list[int]] = {}
    for row, one in enumerate(commissions):
        alike.setdefault(None if one.parent is None else one.strength, []).append(row)
    pictures: dict[int, Picture] = {}
    for strength, rows in alike.items():
        asked = [commissions[row] for row in rows]
        parents = None if strength is None else _latents([one.parent for one in asked if one.parent], encode)
        images, latents = generate(
            [one.prompt for one in asked], seeds=[one.seed for one in asked], from_latents=parents, strength=strength or 1.0
        )
        made = [Picture(image=image, latents=np.asarray(latent)) for image, latent in zip(images, latents, strict=True)]
        pictures |= zip(rows, made, strict=True)
    return [pictures[row] for row in range(len(commissions))]


def _talk(dialogue: Dialogue, album: Album, seed: int, strength: Sequence[float], ask: Ask) -> list[_Outcome]:
    engine = DialogueEngine(
        language=_Front(ask),
        painter=lambda commission: ask("paint", [commission])[0],
        pictures=album,
        embed=lambda texts: np.zeros((len(texts), 1), np.float32),  # a context vector that nobody reads
        similarity=lambda wanted, shown: np.ones(len(wanted), np.float32),  # a turn ends at its picture: nothing is compared
        config=DialogueConfig(),
    )
    steps, session = script(dialogue, seed), Session(id=dialogue.id)
    followed, made = {step.after for step in steps}, dict[int, int]()
    outcomes = []
    for number, step in enumerate(steps):
        if step.after is not None and step.after not in made:
            continue  # what it follows could not be had even when it was insisted on
        session = session.branch(None if step.after is None else made[step.after])
        if step.brings is not None:
            session = session.uploaded(album.put(Picture(image=step.brings)))
        parent = session.head
        tau = strength[min(max(step.round - 2, 0), len(strength) - 1)]
        session, round_ = _turn(engine, session, step, derived_seed(seed, f"{dialogue.id}/{step.kind}", 0, step.round), tau)
        before = session.images_before(round_.id)
        seen = album.get(before[-1]).image if before else None
        outcomes.append(_Outcome(step=step, round=round_, history=session.history(round_.id), seen=seen))
        if number in followed and (round_.status, round_.modality) != ("done", step.modality):
            session, round_ = _turn(engine, session.branch(parent), step, round_.seed, tau, step.modality)
        if round_.status == "done":
            made[number] = round_.id
    return outcomes


def _turn(
    engine: DialogueEngine, session: Session, step: Step, seed: int, strength: float, modality: Modality | None = None
) -> tuple[Session, SessionRound]:
    """Without the reflection on its picture. modality None: the engine chooses."""
    session = session.start(step.utterance, seed=seed, strength=strength, modality=modality)
    id = session.rounds[-1].id
    for round_ in engine.turn(session, id):
        session = session.updated(round_)
        if round_.image is not None and round_.status == "running":
            session = session.finish(id)
            break
    return session, session.round(id)


def _to_read(outcome: _Outcome, album: Album) -> np.ndarray | None:
    """The picture that the oracle has to read for a judgement."""
    if outcome.step.named is None:
        return outcome.seen
    return None if outcome.round.image is None else album.get(outcome.round.image).image


def _judged(dialogue: str, outcome: _Outcome, album: Album, reading: Mapping[str, str] | None) -> SwitchedTurn:
    step, round_, share = outcome.step, outcome.round, None
    if step.named is None:
        wanted = answers.in_words(outcome.history, step.utterance, None if reading is None else Scene(**reading))
        right = round_.status == "done" and round_.modality == "words" and answers.agrees(round_.reply or "", wanted)
    else:
        wanted = prompt_of(step.named)
        share = None if reading is None else 1 - len(wrong_aspects(step.named, reading)) / len(step.named)
        right = share == 1
    return SwitchedTurn(
        dialogue=dialogue,
        round=step.round,
        kind=step.kind,
        utterance=step.utterance,
        modality=round_.modality,
        prompt=round_.prompt,
        reply=round_.reply,
        wanted=wanted,
        share=share,
        right=right,
        image=None if round_.image is None else png(album.get(round_.image).image),
    )


def _about_the_dialogue(rng: np.random.Generator) -> str:
    if rng.random() < 0.25:
        return str(rng.choice(answers.QUESTIONS["asked"]))
    return answers.CHOICES[str(rng.choice(ASPECTS))]


def _about_the_picture(rng: np.random.Generator) -> str:
    if rng.random() < 0.3:
        aspect = str(rng.choice(ASPECTS))
        return answers.whether(aspect, str(rng.choice(WORDINGS[aspect][str(rng.choice(VALUES[aspect]))])))
    return str(rng.choice(answers.QUESTIONS[str(rng.choice([*ASPECTS, "all"]))]))


def _latents(parents: Sequence[Picture], encode: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """f32 [N C H W]."""
    brought = [parent.image for parent in parents if parent.latents is None]
    encoded = iter(encode(np.stack(brought)) if brought else ())
    return np.stack([next(encoded) if parent.latents is None else parent.latents for parent in parents])


class _Front:
    """The language model as one dialogue sees it."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask

    def complete(self, conversations: Sequence[Conversation], *, max_tokens: int) -> list[str]:
        return self._ask("complete", conversations, max_tokens)
