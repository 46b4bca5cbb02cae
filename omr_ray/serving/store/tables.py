"""The tables. Times are seconds since 1970, UTC. A change here needs a migration beside it (`migrations/versions/`)."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, BigInteger, ForeignKey, Index, Integer, String, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

# SQLite counts up by itself only for a column of the type INTEGER.
Counter = BigInteger().with_variant(Integer, "sqlite")


class Table(DeclarativeBase):
    type_annotation_map = {dict[str, Any]: JSON(none_as_null=True), list[dict[str, Any]]: JSON(none_as_null=True)}


class Key(Table):
    """An API key: only its hash is kept. An owner may have several."""

    __tablename__ = "keys"
    id: Mapped[int] = mapped_column(Counter, primary_key=True)
    owner: Mapped[str] = mapped_column(String(64), index=True)
    sha256: Mapped[str] = mapped_column(String(64), unique=True)
    created_at: Mapped[float]
    revoked_at: Mapped[float | None]


class StoredSession(Table):
    __tablename__ = "sessions"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    owner: Mapped[str] = mapped_column(String(64))
    kind: Mapped[str] = mapped_column(String(16))  # "dialogue", or "image" for one request of the OpenAI API
    title: Mapped[str] = mapped_column(String(200))
    created_at: Mapped[float]
    updated_at: Mapped[float]
    head: Mapped[int | None]
    last_event: Mapped[int] = mapped_column(default=0)
    __table_args__ = (Index("sessions_of_owner", "owner", "kind", "updated_at"),)


class StoredRound(Table):
    """A dialogue.session.SessionRound, and who works on it."""

    __tablename__ = "rounds"
    row: Mapped[int] = mapped_column(Counter, primary_key=True)
    session_id: Mapped[str] = mapped_column(ForeignKey("sessions.id", ondelete="CASCADE"))
    id: Mapped[int]
    parent: Mapped[int | None]
    utterance: Mapped[str]
    answer: Mapped[str | None]
    mode: Mapped[str] = mapped_column(String(16))
    seed: Mapped[int] = mapped_column(BigInteger)
    strength: Mapped[float]
    adapter: Mapped[str | None] = mapped_column(String(140))
    status: Mapped[str] = mapped_column(String(16))
    modality: Mapped[str | None] = mapped_column(String(16))
    prompt: Mapped[str | None]
    image: Mapped[str | None] = mapped_column(String(64), index=True)
    scores: Mapped[list[dict[str, Any]] | None]
    ambiguity: Mapped[float | None]
    question: Mapped[dict[str, Any] | None]
    skipped: Mapped[bool]
    reply: Mapped[str | None]
    error: Mapped[str | None]
    adapter_sha256: Mapped[str | None] = mapped_column(String(64))
    created_at: Mapped[float]
    lease_holder: Mapped[str | None] = mapped_column(String(64))
    lease_until: Mapped[float | None]
    attempts: Mapped[int] = mapped_column(default=0)  # how often somebody took it on
    __table_args__ = (UniqueConstraint("session_id", "id"), Index("rounds_to_do", "status", "lease_until"))


class StoredEvent(Table):
    __tablename__ = "events"
    session_id: Mapped[str] = mapped_column(ForeignKey("sessions.id", ondelete="CASCADE"), primary_key=True)
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)  # from 1 in its session, without gaps when written
    round: Mapped[int]
    kind: Mapped[str] = mapped_column(String(16))
    data: Mapped[dict[str, Any]]


class Vote(Table):
    __tablename__ = "votes"
    id: Mapped[int] = mapped_column(Counter, primary_key=True)
    session_id: Mapped[str] = mapped_column(ForeignKey("sessions.id", ondelete="CASCADE"), index=True)
    owner: Mapped[str] = mapped_column(String(64), index=True)
    left: Mapped[int]
    right: Mapped[int]
    choice: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[float]


class AdapterUpdate(Table):
    """A version of an adapter that was learned from votes, or was to be."""

    __tablename__ = "updates"
    id: Mapped[int] = mapped_column(Counter, primary_key=True)
    adapter: Mapped[str] = mapped_column(String(140), index=True)
    owner: Mapped[str | None] = mapped_column(String(64))  # of the votes; null: everybody's
    up_to: Mapped[int] = mapped_column(BigInteger)  # the last vote
    status: Mapped[str] = mapped_column(String(16))  # running, published, refused, failed, rolled_back
    sha256: Mapped[str | None] = mapped_column(String(64))  # of what was learned
    figures: Mapped[dict[str, Any] | None]
    message: Mapped[str | None]
    created_at: Mapped[float]
    finished_at: Mapped[float | None]
    lease_holder: Mapped[str | None] = mapped_column(String(64))
    lease_until: Mapped[float | None]
    attempts: Mapped[int]
    __table_args__ = (UniqueConstraint("adapter", "up_to"),)


class Pair(Table):
    """Two images of one prompt that annotators judge."""

    __tablename__ = "pairs"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    prompt: Mapped[str]
    left: Mapped[str] = mapped_column(String(64), index=True)
    right: Mapped[str] = mapped_column(String(64), index=True)
    source: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[float]


class Annotation(Table):
    __tablename__ = "annotations"
    pair_id: Mapped[str] = mapped_column(ForeignKey("pairs.id", ondelete="CASCADE"), primary_key=True)
    annotator: Mapped[str] = mapped_column(String(64), primary_key=True)
    choice: Mapped[str] = mapped_column(String(16))
    seconds: Mapped[float]
    notes: Mapped[dict[str, Any]]  # as schemas.Notes
    created_at: Mapped[float]


class Answered(Table):
    """What was answered to a request with an Idempotency-Key."""

    __tablename__ = "idempotency"
    owner: Mapped[str] = mapped_column(String(64), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    fingerprint: Mapped[str] = mapped_column(String(64))  # SHA-256 of path and body
    answer: Mapped[dict[str, Any]]
    created_at: Mapped[float]


class Used(Table):
    """Requests that make something, by minute."""

    __tablename__ = "used"
    owner: Mapped[str] = mapped_column(String(64), primary_key=True)
    minute: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    requests: Mapped[int]
