"""What goes over HTTP at /v1: requests are frozen and refuse unknown keys, answers are what clients may rely on.

Every fault has one shape, `{"error": {"message", "type", "param", "code"}}`, also in the middle of a stream.

    POST   /v1/sessions                        SessionView       GET, DELETE /v1/sessions/{id}     GET /v1/sessions   SessionList
    POST   /v1/sessions/{id}/rounds            RoundView, 202    takes Idempotency-Key, as every POST that makes something
    GET    /v1/sessions/{id}/rounds/{n}        RoundView         POST .../cancel, .../skip         RoundView
    POST   /v1/sessions/{id}/undo, /branch     SessionView       GET  .../compare?one=&other=      DifferenceView
    POST   /v1/sessions/{id}/votes             VoteView, 201     GET  .../votes                    VoteList
    GET    /v1/sessions/{id}/events            server-sent events, see `events.py`; Last-Event-ID goes on behind an id
    GET    /v1/images/{address}                PNG that carries its Recipe       POST /v1/restore (multipart image)  Restored
    GET    /v1/adapters                        AdapterList
    GET    /v1/updates                         UpdateList        POST /v1/updates/rollback          AdapterList
    GET    /v1/updates/general                 UpdateList        POST /v1/updates/general/rollback  AdapterList, for operators
    GET    /v1/annotations/next, /mine         PairView, AnnotationList          POST /v1/annotations      AnnotationView, 201
    POST   /v1/images/..., GET /v1/models      see openai_schemas.py   GET /metrics   see metrics.py
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from omr_ray.dialogue.feedback_reflection import AspectScore, Question
from omr_ray.dialogue.session import Difference, Modality, Mode, Session, SessionRound, Status

ADDRESS = r"^[0-9a-f]{64}$"  # of an image: SHA-256 of what it shows
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"  # of an owner, of an adapter
ADAPTER = r"^(shared|users/[A-Za-z0-9][A-Za-z0-9._-]{0,63})/[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
LARGEST_SEED = 2**63 - 1
Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]
Number = Annotated[int, Field(ge=1, le=2**31 - 1)]
Choice = Literal["left", "right", "tie", "both_bad"]
Tag = Literal["content", "style", "background", "size", "color", "perspective", "others"]


class Schema(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


# -- requests ----------------------------------------------------------------------------------------------------------


class NewSession(Schema):
    title: str = Field("", max_length=200)


class NewRound(Schema):
    """What the user says. Without `parent` it follows the session's head; null `parent` starts anew.

    Example: {"utterance": "make it blue", "seed": 7, "strength": 0.8}
    """

    utterance: str = ""
    answer: str | None = Field(None, description="to the parent's question; without it the question is passed over")
    parent: Number | None = Field(None, description="a done round; leave it out to follow the head, null starts anew")
    seed: Seed | None = Field(None, description="drawn where it is left out")
    strength: float | None = Field(None, description="share of the noise that an edit starts from")
    mode: Mode | None = Field(None, description="edit the last image, or start from scratch; edit where there is an image")
    modality: Modality | None = Field(
        None, description="answer with a picture or in words; the language model decides where it is left out"
    )
    adapter: str | None = Field(None, pattern=ADAPTER, description="one of /v1/adapters")


class Branch(Schema):
    round: Number | None = Field(description="becomes the head; null starts anew")


class NewVote(Schema):
    """Which of two images of a session the user prefers."""

    left: Number
    right: Number
    choice: Choice


class Note(Schema):
    """What an annotator says of one image (TDRI section 4.1)."""

    description: str = Field("", max_length=2000)
    tags: tuple[Tag, ...] = Field((), max_length=7, description="aspects in which the image shows what the prompt asks for")


class Notes(Schema):
    left: Note = Note()
    right: Note = Note()


class NewAnnotation(Schema):
    pair: str = Field(max_length=64)
    choice: Choice
    seconds: float = Field(0.0, ge=0, le=86_400, description="that the annotator looked at it")
    notes: Notes = Notes()


# -- answers -----------------------------------------------------------------------------------------------------------


class ScoreView(Schema):
    """One aspect (TDRI eq. 5)."""

    aspect: str
    wanted: str | None
    shown: str
    similarity: float | None

    @classmethod
    def of(cls, score: AspectScore) -> ScoreView:
        return cls(aspect=score.aspect, wanted=score.wanted, shown=score.shown, similarity=score.similarity)


class QuestionView(Schema):
    aspect: str
    text: str
    suggestions: tuple[str, ...]

    @classmethod
    def of(cls, question: Question) -> QuestionView:
        return cls(aspect=question.aspect, text=question.text, suggestions=question.suggestions)


class RoundView(Schema):
    """One round; what is null is not known yet, or does not apply."""

    object: Literal["round"] = "round"
    id: int
    parent: int | None
    utterance: str
    answer: str | None
    mode: Mode
    seed: int
    strength: float
    adapter: str | None
    status: Status
    modality: Modality | None
    prompt: str | None
    image: str | None = Field(description="address, see /v1/images/{address}")
    scores: tuple[ScoreView, ...] | None
    ambiguity: float | None
    question: QuestionView | None
    skipped: bool
    reply: str | None
    error: str | None

    @classmethod
    def of(cls, round_: SessionRound) -> RoundView:
        plain = {name: getattr(round_, name) for name in cls.model_fields if name not in ("object", "scores", "question")}
        return cls(
            **plain,
            scores=None if round_.scores is None else tuple(map(ScoreView.of, round_.scores)),
            question=None if round_.question is None else QuestionView.of(round_.question),
        )


class SessionView(Schema):
    object: Literal["session"] = "session"
    id: str
    title: str
    created_at: int
    head: int | None
    rounds: tuple[RoundView, ...]
    last_event: int = Field(description="id of the newest event: give it as Last-Event-ID to see only what comes after this answer")

    @classmethod
    def of(cls, session: Session, *, title: str, created_at: float, last_event: int) -> SessionView:
        rounds = tuple(map(RoundView.of, session.rounds))
        return cls(id=session.id, title=title, created_at=int(created_at), head=session.head, rounds=rounds, last_event=last_event)


class SessionSummary(Schema):
    object: Literal["session"] = "session"
    id: str
    title: str
    created_at: int
    updated_at: int
    rounds: int
    image: str | None = Field(description="address of the newest one")


class SessionList(Schema):
    object: Literal["list"] = "list"
    data: tuple[SessionSummary, ...]
    has_more: bool = Field(description="then ask again with after= the last id")


class Deleted(Schema):
    id: str
    deleted: Literal[True] = True


class DifferenceView(Schema):
    """Two rounds side by side: field by field, what they do not have in common."""

    one: RoundView
    other: RoundView
    ancestor: int | None
    changed: dict[str, tuple[Any, Any]]

    @classmethod
    def of(cls, one: SessionRound, other: SessionRound, difference: Difference) -> DifferenceView:
        views = RoundView.of(one), RoundView.of(other)
        changed = {name: (getattr(views[0], name), getattr(views[1], name)) for name in difference.changed}
        return cls(one=views[0], other=views[1], ancestor=difference.ancestor, changed=changed)


class VoteView(Schema):
    object: Literal["vote"] = "vote"
    id: int
    left: int
    right: int
    choice: Choice
    created_at: int


class VoteList(Schema):
    object: Literal["list"] = "list"
    data: tuple[VoteView, ...]


class AdapterView(Schema):
    object: Literal["adapter"] = "adapter"
    id: str
    sha256: str


class AdapterList(Schema):
    object: Literal["list"] = "list"
    data: tuple[AdapterView, ...]


class UpdateView(Schema):
    """What came of the caller's votes, or of everybody's, every so many of them (TDRI section 3.2.3)."""

    object: Literal["update"] = "update"
    id: int
    adapter: str
    status: Literal["running", "published", "refused", "failed", "rolled_back"]
    message: str | None
    sha256: str | None
    figures: dict[str, float] | None = Field(description="wins: share of held-out votes that it agrees with; wins_before: what was in use")
    created_at: int


class UpdateList(Schema):
    object: Literal["list"] = "list"
    data: tuple[UpdateView, ...]


class PairView(Schema):
    """Two images of one prompt, to be judged."""

    object: Literal["pair"] = "pair"
    id: str
    prompt: str
    left: str
    right: str
    done: int = Field(description="pairs that this annotator has judged")
    remaining: int


class AnnotationView(Schema):
    object: Literal["annotation"] = "annotation"
    pair: str
    prompt: str
    left: str
    right: str
    choice: Choice
    seconds: float
    notes: Notes
    created_at: int


class AnnotationList(Schema):
    object: Literal["list"] = "list"
    data: tuple[AnnotationView, ...]


class Recipe(Schema):
    """How an image was made: it travels in the PNG, as the text chunk `omr_ray`, in JSON. Whoever reads one trusts nothing of it."""

    session: str = Field(max_length=64)
    round: Number
    utterance: str = Field(max_length=4000)
    prompt: str = Field(max_length=4000)
    seed: Seed
    strength: float = Field(gt=0, le=1)
    mode: Mode
    parent_image: str | None = Field(None, pattern=ADDRESS)
    adapter: str | None = Field(None, pattern=ADAPTER)
    adapter_sha256: str | None = Field(None, pattern=ADDRESS)
    model: str = Field(max_length=400)


class Restored(Schema):
    """A dropped image: the settings to go on with, and the round itself where it is the caller's own."""

    recipe: Recipe
    session: str | None
    round: RoundView | None
    same_adapter: bool = Field(description="whether the adapter is there and has not changed since")


class ErrorDetail(Schema):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorView(Schema):
    error: ErrorDetail
