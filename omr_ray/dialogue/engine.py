"""One turn of TDRI's interactive system, step by step (section 3.2; OMR table 2 for pictures and words).

    utterance ──► route ──► words ──► answer
                    │
                    └─────► picture ──► D2P ──► paint ──► describe, compare ──► question, or none

A turn does what its round still lacks. So a turn that was cut off in the middle is gone on with, and makes from the same
seed the same image.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from omr_ray.config.dialogue import DialogueConfig
from omr_ray.dialogue.d2p import Embed, History, context_vector, to_prompt
from omr_ray.dialogue.feedback_reflection import Similarity, ambiguity, aspect_scores, aspect_to_ask, clarification, describe, split
from omr_ray.dialogue.session import Modality, Session, SessionRound
from omr_ray.types import NoSpace, Unavailable, UserError
from omr_ray.vlm.engine import LanguageModel, NoAnswer
from omr_ray.vlm.structured import ask_one
from omr_ray.vlm.templates import IN_WORDS, ROUTE

logger = logging.getLogger(__name__)

NO_SPACE = "there was no space left to keep the image; try again when the operator has made room"
AWAY = "a part of the service was away for the moment; try again"

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """What a painter makes. Its latents are what an edit of it starts from, if they are kept: an image alone loses detail."""

    image: np.ndarray  # u8 [H W 3]
    latents: np.ndarray | None = None  # f32 [C H W]


@dataclass(frozen=True, slots=True, kw_only=True)
class Commission:
    """One image to be made, I_t = G(P_t, pose, C_{t-1}) (TDRI eq. 3)."""

    prompt: str
    seed: int
    strength: float  # share of the noise that an edit of `parent` starts from
    parent: Picture | None  # None: from scratch
    pose_from: Picture | None  # I_1 of this path, whose pose the later ones keep; None where this is the first
    context: np.ndarray  # f32 [D], the context vector of TDRI eq. 2
    adapter: str | None


class Painter(Protocol):
    def __call__(self, commission: Commission) -> Picture:
        """The same commission gives the same picture. Raises Cancelled soon after it was told to stop."""
        ...


class Pictures(Protocol):
    """A store in which a picture's address follows from its content."""

    def put(self, picture: Picture) -> str: ...

    def get(self, address: str) -> Picture: ...


class Cancelled(Exception):
    """The image is not wanted any more."""


class DialogueEngine:
    """The models of a dialogue. It keeps nothing of a session, so one engine serves any number of them, a turn at a time."""

    def __init__(
        self, *, language: LanguageModel, painter: Painter, pictures: Pictures, embed: Embed, similarity: Similarity, config: DialogueConfig
    ) -> None:
        self._language, self._painter, self._pictures = language, painter, pictures
        self._embed, self._similarity, self._config = embed, similarity, config

    def turn(self, session: Session, id: int) -> Iterator[SessionRound]:
        """Take the pending or running round `id` to its end, and give it after every step: to be saved, and shown.

        Only the round is given, because others may be started meanwhile; `Session.updated` puts it where it belongs.
        The last one is done, failed or cancelled; no fault of a step is raised. Closing the iterator stops between two
        steps and leaves the round running. Raises UserError for a round that has ended.
        """
        if session.round(id).status != "running":
            session = session.begin(id)
            yield session.round(id)
        latest = session
        try:
            for latest in self._steps(session, id):
                yield latest.round(id)
            latest = latest.finish(id)
        except Cancelled:
            latest = latest.cancel(id)
        except Unavailable as error:  # what it says is for the operator
            logger.error("session %s, round %d failed: %s", session.id, id, error)
            latest = latest.fail(id, NO_SPACE if isinstance(error, NoSpace) else AWAY)
        except UserError as error:
            latest = latest.fail(id, str(error))
        except NoAnswer as error:
            logger.warning("session %s, round %d failed: %s", session.id, id, error)
            latest = latest.fail(id, "the language model gave no valid answer; say it in other words, or try again")
        except Exception:
            # What went wrong in there is nothing that a user should read, and nothing that should end other sessions.
            logger.exception("session %s, round %d failed", session.id, id)
            latest = latest.fail(id, "internal error; try again")
        yield latest.round(id)

    def _steps(self, session: Session, id: int) -> Iterator[Session]:
        if session.round(id).modality is None:
            session = session.record(id, modality=self._route(session, id))
            yield session
        if session.round(id).modality == "words":
            if session.round(id).reply is None:
                yield session.record(id, reply=self._in_words(session, id))
            return
        if session.round(id).prompt is None:
            session = session.record(id, prompt=self._to_prompt(session, id))
            yield session
        if session.round(id).image is None:
            session = session.record(id, image=self._paint(session, id))
            yield session
        try:
            yield from self._reflect(session, id)
        except Exception:
            # The user has their image. Scores that cannot be had are missing, and there is no question.
            logger.warning("session %s, round %d is not reflected on", session.id, id, exc_info=True)

    # -- the steps -----------------------------------------------------------------------------------------------------------

    def _route(self, session: Session, id: int) -> Modality:
        """Pictures or words. Whoever answers a question about a picture wants the next one."""
        round_ = session.round(id)
        if round_.answer is not None:
            return "picture"
        return ask_one(self._language, ROUTE(history=self._history(session, id), latest=round_.said)).reply

    def _in_words(self, session: Session, id: int) -> str:
        """A question about the last image, or about none (OMR table 2, I+T->T and T->T)."""
        images = [self._pictures.get(address).image for address in session.images_before(id)[-1:]]
        return ask_one(self._language, IN_WORDS(images=images, history=self._history(session, id), latest=session.round(id).said)).answer

    def _to_prompt(self, session: Session, id: int) -> str:
        d2p = self._config.d2p
        return to_prompt(self._language, self._history(session, id), session.round(id).said, w_h=d2p.w_h, w_u=d2p.w_u)

    def _paint(self, session: Session, id: int) -> str:
        round_, d2p = session.round(id), self._config.d2p
        before = session.images_before(id)
        commission = Commission(
            prompt=_known(round_.prompt),
            seed=round_.seed,
            strength=round_.strength,
            parent=self._pictures.get(before[-1]) if round_.mode == "edit" else None,
            pose_from=self._pictures.get(before[0]) if before else None,
            context=context_vector(self._embed, self._history(session, id), round_.said, w_h=d2p.w_h, w_u=d2p.w_u),
            adapter=round_.adapter,
        )
        return self._pictures.put(self._painter(commission))

    def _reflect(self, session: Session, id: int) -> Iterator[Session]:
        """What the image shows, how far that is from the prompt, and a question where it is too far (TDRI eq. 4, 5, 6)."""
        config, prompt = self._config.reflection, _known(session.round(id).prompt)
        if session.round(id).scores is None:
            shown = describe(self._language, self._pictures.get(_known(session.round(id).image)).image)
            scores = aspect_scores(split(self._language, prompt), shown, self._similarity)
            found = ambiguity(scores, config.weights.by_aspect(), config.unnamed_similarity)
            session = session.record(id, scores=scores, ambiguity=found)
            yield session
        round_ = session.round(id)
        unclear = aspect_to_ask(
            _known(round_.scores),
            ambiguity=_known(round_.ambiguity),
            threshold=config.threshold,
            unnamed_similarity=config.unnamed_similarity,
            passed_over=session.passed_over(id),
            rng=np.random.default_rng(round_.seed),
        )
        if unclear is not None and round_.question is None:
            yield session.record(id, question=clarification(self._language, prompt, unclear))

    def _history(self, session: Session, id: int) -> History:
        return session.history(id)[-self._config.d2p.history_rounds :]


def _known(value: Value | None) -> Value:
    """What an earlier step has recorded."""
    assert value is not None
    return value
