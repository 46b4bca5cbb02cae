"""Takes rounds on and brings them to their end: a turn of the DialogueEngine, with every step stored before the next begins."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Protocol, TypeVar

import numpy as np
import tenacity
from sqlalchemy.orm import Session as Transaction

from omr_ray.config.serve import ServeConfig
from omr_ray.dialogue.engine import Cancelled, Commission, DialogueEngine, Picture
from omr_ray.dialogue.feedback_reflection import by_cosine
from omr_ray.dialogue.session import SessionRound
from omr_ray.serving.adapters import pinned
from omr_ray.serving.events import Preview, Progress
from omr_ray.serving.pictures import PictureStore, to_base64
from omr_ray.serving.store import queue, sessions
from omr_ray.serving.store.changes import Changes
from omr_ray.serving.store.database import Database
from omr_ray.serving.store.queue import Claim, Lost
from omr_ray.serving.store.sessions import NotFound
from omr_ray.types import Unavailable
from omr_ray.vlm.engine import Conversation

logger = logging.getLogger(__name__)

LOOK_S = 1.0  # at the latest: the lease of a round may have run out
CLOSING_S = 5
AWAY_S = 600  # that what was made waits for a database that cannot be written to; then the round is left to its lease
MOST_ATTEMPTS = 3  # of one round; one that kills whoever takes it on must not go round for ever

Found = TypeVar("Found")


class Models(Protocol):
    """The loaded models, wherever they are. `stop` is looked at while an image is made."""

    def complete(self, conversations: Sequence[Conversation], *, max_tokens: int) -> list[str]: ...

    def embed(self, texts: Sequence[str]) -> np.ndarray: ...

    def paint(self, commission: Commission, watch: Callable[[int, int, np.ndarray | None], None], stop: threading.Event) -> Picture: ...


class Conductor:
    """Threads that work on rounds, and one that keeps their leases."""

    def __init__(self, config: ServeConfig, models: Models) -> None:
        self._config, self._models = config, models
        self._database, self._pictures = Database(config.database), PictureStore(config.images)
        self._changes = Changes(self._database)
        self._holder, self._over = uuid.uuid4().hex, threading.Event()
        self._stops: dict[int, threading.Event] = {}  # by row
        self._looking = threading.Lock()
        count = config.replicas.rounds_at_once
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(count)]
        self._threads.append(threading.Thread(target=self._keep_leases, daemon=True))
        for thread in self._threads:
            thread.start()

    def alive(self) -> bool:
        return all(thread.is_alive() for thread in self._threads)

    def close(self) -> None:
        """Rounds that are being worked on are given back, if that is done within a few seconds; others find them by their leases."""
        self._over.set()
        self._changes.close()
        for stop in list(self._stops.values()):
            stop.set()
        limit = time.monotonic() + CLOSING_S
        for thread in self._threads:
            thread.join(max(0.0, limit - time.monotonic()))

    def _work(self) -> None:
        while (claimed := self._next()) is not None:
            try:
                self._conduct(claimed)
            except Exception:  # a database that is away for a while comes back; the lease runs out meanwhile
                logger.exception("round %d of session %s could not be gone on with", claimed.round, claimed.session)

    def _next(self) -> Claim | None:
        """A round to work on; None when it is over. One thread looks for all."""
        with self._looking:
            while not self._over.is_set():
                count = self._changes.count
                try:
                    with self._database.read() as transaction:
                        work = queue.waiting(transaction, besides=list(self._stops))
                    if not work:
                        self._changes.wait(count, LOOK_S)
                        continue
                    with self._database.write() as transaction:
                        claimed = queue.claim(transaction, self._holder, self._config.replicas.lease_s, besides=list(self._stops))
                    if claimed is not None:
                        return claimed
                except Exception:
                    logger.exception("no round could be taken on")
                    self._over.wait(1)
        return None

    def _conduct(self, claimed: Claim) -> None:
        stop = self._stops[claimed.row] = threading.Event()
        try:
            self._turn(claimed, stop)
        except (Lost, NotFound):
            logger.info("round %d of session %s is no longer ours", claimed.round, claimed.session)
        finally:
            del self._stops[claimed.row]

    def _turn(self, claimed: Claim, stop: threading.Event) -> None:
        session = self._stored(self._database.read, lambda transaction: sessions.find(transaction, claimed.session))
        if claimed.attempts > MOST_ATTEMPTS:
            begun = session if session.round(claimed.round).status == "running" else session.begin(claimed.round)
            self._save(claimed, begun.fail(claimed.round, "internal error; try again").round(claimed.round))
            return
        if claimed.kind == "image" and session.round(claimed.round).prompt is None:
            # A request for an image says its prompt itself: nothing is summed up, and nothing is asked afterwards.
            session = session if session.round(claimed.round).status == "running" else session.begin(claimed.round)
            session = session.record(claimed.round, prompt=session.round(claimed.round).said)
            self._save(claimed, session.round(claimed.round))
        for round_ in self._engine(claimed, stop).turn(session, claimed.round):
            if self._over.is_set():
                with self._database.write() as transaction:
                    queue.give_back(transaction, claimed)
                return
            if claimed.kind == "image" and round_.image is not None and round_.status == "running":
                self._save(claimed, session.updated(round_).finish(claimed.round).round(claimed.round))
                return
            self._save(claimed, round_)

    def _save(self, claimed: Claim, round_: SessionRound) -> None:
        self._stored(self._database.write, lambda transaction: queue.save(transaction, claimed, round_))

    def _stored(self, begin: Callable[[], AbstractContextManager[Transaction]], work: Callable[[Transaction], Found]) -> Found:
        """What `work` finds or has stored. A database that is away or full is waited for: what was made is not made again."""
        tries = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(Unavailable),
            wait=tenacity.wait_fixed(1),
            stop=tenacity.stop_any(tenacity.stop_after_delay(AWAY_S), tenacity.stop_when_event_set(self._over)),
            sleep=tenacity.sleep_using_event(self._over),
            reraise=True,
        )

        def once() -> Found:
            with begin() as transaction:
                return work(transaction)

        return tries(once)

    def _engine(self, claimed: Claim, stop: threading.Event) -> DialogueEngine:
        def watch(step: int, steps: int, preview: np.ndarray | None) -> None:
            try:
                self._tell(claimed, step, steps, preview)
            except Unavailable:  # the image is made all the same
                logger.exception("step %d of round %d of session %s is not told", step, claimed.round, claimed.session)

        def paint(commission: Commission) -> Picture:
            if commission.adapter is not None:
                commission = replace(commission, adapter=pinned(commission.adapter, claimed.adapter_sha256))
            try:
                return self._models.paint(commission, watch, stop)
            except Lost:
                raise Cancelled from None

        return DialogueEngine(
            language=self._models,
            painter=paint,
            pictures=self._pictures,
            embed=self._models.embed,
            similarity=by_cosine(self._models.embed),
            config=self._config.dialogue,
        )

    def _tell(self, claimed: Claim, step: int, steps: int, preview: np.ndarray | None) -> None:
        """Raises Lost and Unavailable."""
        with self._database.write() as transaction:
            queue.check(transaction, claimed)
            progress = Progress(round=claimed.round, step=step, steps=steps)
            sessions.tell(transaction, claimed.session, "progress", claimed.round, progress)
            if preview is not None:
                shown = Preview(round=claimed.round, step=step, b64_json=to_base64(preview))
                sessions.tell(transaction, claimed.session, "preview", claimed.round, shown)

    def _keep_leases(self) -> None:
        lease_s = self._config.replicas.lease_s
        while not self._over.wait(min(1.0, lease_s / 5)):
            rows = list(self._stops)
            if not rows:
                continue
            try:
                with self._database.write() as transaction:
                    still = queue.prolong(transaction, self._holder, rows, lease_s)
            except Exception:
                logger.exception("leases could not be kept")
                continue
            for row in set(rows) - still:
                if (stop := self._stops.get(row)) is not None:
                    stop.set()
