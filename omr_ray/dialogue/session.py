"""A session: a tree of rounds, and the rules by which it grows (TDRI section 3.2). Pure: every change gives a new Session.

    start ──► pending ──► running ──► done        any done round can be the parent of the next
                 │           ├──────► failed
                 └───────────┴──────► cancelled

`head` is the round that the next one follows. Undo and branch move it; nothing is ever taken out of the tree.
Whatever the rules do not allow raises UserError.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any, Literal, TypeAlias

from omr_ray.dialogue.d2p import Exchange
from omr_ray.dialogue.feedback_reflection import AspectScore, Question
from omr_ray.types import Dialogue, Round, UserError
from omr_ray.vlm.templates import clean

Status: TypeAlias = Literal["pending", "running", "done", "failed", "cancelled"]
Mode: TypeAlias = Literal["edit", "scratch"]  # edit the last image of the path, or start from noise (TDRI table 3)
Modality: TypeAlias = Literal["picture", "words"]  # what the system answers with (OMR table 2)

LONGEST_UTTERANCE = 2000  # characters
UPLOADED = "an uploaded image"  # utterance and prompt of a round that holds one
_FROM: Mapping[str, tuple[Status, ...]] = {
    "running": ("pending",),
    "done": ("running",),
    "failed": ("running",),
    "cancelled": ("pending", "running"),
}
# What must be known of a round before this can be, and in which modality it is.
_AFTER = {"prompt": "modality", "image": "prompt", "scores": "image", "ambiguity": "image", "question": "scores", "reply": "modality"}
_ONLY_IN = {"prompt": "picture", "reply": "words"}


class UnknownRound(UserError):
    """The session has no such round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRound:
    """One turn: what the user said, and what became of it. Fields that are None are not known yet.

    Example: SessionRound(id=2, parent=1, utterance="make it blue", mode="edit", seed=7, strength=0.6)
    """

    id: int  # from 1, in the order of the rounds' start
    parent: int | None
    utterance: str  # may be empty where there is an answer
    answer: str | None = None  # to the parent's question; None passes over it
    mode: Mode
    seed: int
    strength: float  # share of the noise that an edit starts from
    adapter: str | None = None
    status: Status = "pending"
    modality: Modality | None = None
    prompt: str | None = None  # P_t
    image: str | None = None  # content address
    scores: tuple[AspectScore, ...] | None = None
    ambiguity: float | None = None  # A_t
    question: Question | None = None
    skipped: bool = False  # the user does not want to answer this round's question
    reply: str | None = None  # the answer in words
    error: str | None = None

    @property
    def said(self) -> str:
        """u_t: the answer to the last question, if there was one, and the utterance."""
        return ", ".join(text for text in (self.answer, self.utterance) if text)

    @property
    def response(self) -> str:
        """s_t: words, or the prompt that the image was made from with the question that was asked about it."""
        if self.modality == "words":
            return self.reply or ""
        return ". ".join(text for text in (self.prompt, self.question.text if self.question else None) if text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Two rounds side by side.

    Example: Difference(ancestor=1, changed={"prompt": ("a red dress", "a blue dress")})
    """

    ancestor: int | None  # the last round that both paths share
    changed: Mapping[str, tuple[Any, Any]]  # what the rounds do not have in common, field by field


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A dialogue with all its branches.

    Example: Session(id="s").start("a red dress", seed=1, strength=0.6).begin(1)
    """

    id: str
    rounds: tuple[SessionRound, ...] = ()  # round number i at i - 1
    head: int | None = None

    # -- looking -----------------------------------------------------------------------------------------------------------

    def round(self, id: int) -> SessionRound:
        if not 1 <= id <= len(self.rounds):
            raise UnknownRound(f"session {self.id}: there is no round {id}, it has {len(self.rounds)}; list them and take one of those")
        return self.rounds[id - 1]

    def path(self, id: int | None) -> tuple[SessionRound, ...]:
        """From the first round to round `id`, both included."""
        found: list[SessionRound] = []
        while id is not None:
            found.append(self.round(id))
            id = found[-1].parent
        return tuple(reversed(found))

    def history(self, id: int) -> tuple[Exchange, ...]:
        """H_t of round `id` (TDRI eq. 1): the exchanges before it on its path."""
        return tuple(Exchange(round_.said, round_.response) for round_ in self.path(id)[:-1])

    def images_before(self, id: int) -> tuple[str, ...]:
        """Addresses of the images on the path before round `id`, in order: the first gives the pose, the last is edited."""
        return self._images(self.round(id).parent)

    def passed_over(self, id: int) -> tuple[AspectScore, ...]:
        """The aspects that were asked about before round `id` and not answered, as they stood then."""
        found: list[AspectScore] = []
        for asking, following in pairwise(self.path(id)):
            if asking.question is not None and following.answer is None:
                found += [score for score in asking.scores or () if score.aspect == asking.question.aspect]
        return tuple(found)

    def compare(self, one: int, other: int) -> Difference:
        first, second = self.round(one), self.round(other)
        shared = [a.id for a, b in zip(self.path(one), self.path(other), strict=False) if a.id == b.id]
        names = (field.name for field in fields(SessionRound) if field.name not in ("id", "parent"))
        pairs = {name: (getattr(first, name), getattr(second, name)) for name in names}
        return Difference(
            ancestor=shared[-1] if shared else None, changed={name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
        )

    def to_dialogue(self, id: int) -> Dialogue:
        """The path to round `id` as training data: its finished pictures, with the last prompt as the intent.

        The images are no targets: what was made is not what was wanted.
        """
        path = self.path(id)
        rounds: list[Round] = []
        for before, round_ in zip((None, *path), path, strict=False):
            if round_.modality == "picture" and round_.status == "done":
                asked = before.question if before and round_.answer else None
                reflection = f"{asked.text} {round_.answer}" if asked else None
                rounds.append(Round(index=len(rounds) + 1, utterance=round_.said, prompt=round_.prompt or "", reflection=reflection))
        if not rounds:
            raise UserError(f"session {self.id}: no round up to {id} has made a picture; take a later one")
        return Dialogue(id=f"{self.id}-{id}", intent=rounds[-1].prompt, rounds=tuple(rounds))

    # -- growing -----------------------------------------------------------------------------------------------------------

    def start(
        self,
        utterance: str = "",
        *,
        seed: int,
        strength: float,
        answer: str | None = None,
        mode: Mode | None = None,
        modality: Modality | None = None,
        adapter: str | None = None,
    ) -> Session:
        """A pending round after the head, which becomes the head.

        mode None: edit where the path has an image, else scratch. modality None: the engine decides it.
        """
        parent = None if self.head is None else self.round(self.head)
        if parent is not None and parent.status != "done":
            raise UserError(f"round {parent.id} is {parent.status}, the next one needs what it makes; wait for it or cancel it")
        if answer is not None and (parent is None or parent.question is None or parent.skipped):
            raise UserError(f"there is no open question to answer with {answer!r:.60}; say it as an utterance")
        has_image = bool(self._images(self.head))
        if mode == "edit" and not has_image:
            raise UserError("mode edit needs an image on the path, there is none yet; use scratch")
        if not 0 < strength <= 1:
            raise UserError(f"strength must be above 0 and at most 1, got {strength:g}; 0.6 to 0.8 are usual")
        if seed < 0:
            raise UserError(f"a seed must not be negative, got {seed}; choose another")
        round_ = SessionRound(
            id=len(self.rounds) + 1,
            parent=self.head,
            utterance=_checked(utterance),
            answer=None if answer is None else _checked(answer),
            mode=mode or ("edit" if has_image else "scratch"),
            seed=seed,
            strength=strength,
            modality=modality,
            adapter=adapter,
        )
        if not round_.said or answer is not None and not round_.answer:
            raise UserError("a round needs an utterance or an answer with at least one visible character; say what to change")
        return replace(self, rounds=(*self.rounds, round_), head=round_.id)

    def uploaded(self, address: str) -> Session:
        """With a done round after the head that shows an image which was made elsewhere."""
        session = self.start(UPLOADED, seed=0, strength=1.0, mode="scratch", modality="picture")
        id = session.rounds[-1].id
        return session.begin(id).record(id, prompt=UPLOADED).record(id, image=address).finish(id)

    def updated(self, round_: SessionRound) -> Session:
        """The session with what a turn has made of one of its rounds, which may have been cancelled in the meantime."""
        now = self.round(round_.id)
        if now.status not in ("pending", "running"):
            raise UserError(f"round {now.id} is {now.status}, it cannot be changed any more; start another round")
        return self._with(round_)

    def begin(self, id: int) -> Session:
        return self._moved(id, "running")

    def record(self, id: int, **found: Any) -> Session:
        """What a step of the engine found out about a running round: modality, prompt, image, scores, ambiguity, question or reply."""
        round_ = self.round(id)
        if round_.status != "running":
            raise UserError(f"round {id} is {round_.status}, only a running one can get {', '.join(found)}; start another round")
        for name in found:
            if getattr(round_, name) is not None:
                raise UserError(f"round {id} has its {name} already; start another round for another one")
            needed = _AFTER.get(name)
            if needed is not None and getattr(round_, needed) is None:
                raise UserError(f"round {id} cannot have its {name} before its {needed}; record that first")
            if round_.modality != _ONLY_IN.get(name, round_.modality):
                raise UserError(f"round {id} answers with {round_.modality}, so it has no {name}; start another round for that")
        return self._with(replace(round_, **found))

    def finish(self, id: int) -> Session:
        round_ = self.round(id)
        if (round_.reply if round_.modality == "words" else round_.image) is None:
            raise UserError(f"round {id} has made neither an image nor words yet, so it is not done; fail or cancel it instead")
        return self._moved(id, "done")

    def fail(self, id: int, error: str) -> Session:
        return self._moved(id, "failed", error=error)

    def cancel(self, id: int) -> Session:
        return self._moved(id, "cancelled")

    def skip(self, id: int) -> Session:
        """The question of round `id` is not to be answered."""
        round_ = self.round(id)
        if round_.status != "done" or round_.question is None or round_.skipped:
            raise UserError(f"round {id} has no open question to skip; go on with an utterance")
        return self._with(replace(round_, skipped=True))

    def branch(self, id: int | None) -> Session:
        """Round `id` becomes the head; None starts anew."""
        if id is not None and self.round(id).status != "done":
            raise UserError(f"round {id} is {self.round(id).status}, only a done one can be gone on from; take another")
        return replace(self, head=id)

    def undo(self) -> Session:
        """The head's parent becomes the head."""
        if self.head is None:
            raise UserError("there is no round to undo, the session is at its beginning; start one")
        if self.round(self.head).status != "done":
            raise UserError(f"round {self.head} is {self.round(self.head).status}, it cannot be undone; cancel it")
        return replace(self, head=self.round(self.head).parent)

    def _images(self, id: int | None) -> tuple[str, ...]:
        return tuple(round_.image for round_ in self.path(id) if round_.image is not None)

    def _moved(self, id: int, status: Status, error: str | None = None) -> Session:
        round_ = self.round(id)
        if round_.status not in _FROM[status]:
            raise UserError(f"round {id} is {round_.status}, it cannot become {status}; start another round")
        return self._with(replace(round_, status=status, error=error))

    def _with(self, round_: SessionRound) -> Session:
        # Nothing can follow a round that made nothing.
        head = round_.parent if self.head == round_.id and round_.status in ("failed", "cancelled") else self.head
        return replace(self, rounds=(*self.rounds[: round_.id - 1], round_, *self.rounds[round_.id :]), head=head)


def _checked(text: str) -> str:
    if len(text) > LONGEST_UTTERANCE:
        raise UserError(f"an utterance has at most {LONGEST_UTTERANCE} characters, got {len(text)}; say it in several rounds")
    return clean(text)
