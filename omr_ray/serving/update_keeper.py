"""Sees to it that updates are made: claims those that are due, and keeps their lease while a Ray task of its own makes each."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from typing import Any

import ray

from omr_ray.config.serve import ServeConfig
from omr_ray.serving.store import updates
from omr_ray.serving.store.database import Database
from omr_ray.serving.store.updates import Due
from omr_ray.types import Unavailable

logger = logging.getLogger(__name__)

POLL_S = 2.0
LEASE_S = 30.0
LONGEST_S = 4 * 3600.0  # of one update
MOST_ATTEMPTS = 3  # of one update; one that kills whoever makes it must not go round for ever


class UpdateKeeper:
    def __init__(self, config: ServeConfig) -> None:
        assert config.updates is not None
        self._config, self._every, self._database = config, config.updates.votes, Database(config.database)
        self._holder, self._over = uuid.uuid4().hex, threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def alive(self) -> bool:
        return self._thread.is_alive()

    def close(self) -> None:
        self._over.set()

    def _work(self) -> None:
        while not self._over.is_set():
            try:
                with self._database.write() as transaction:
                    due = updates.claim(transaction, self._holder, LEASE_S, self._every)
                if due is not None:
                    self._have_made(due)
                    continue
            except Exception:  # a database that is away for a while comes back
                logger.exception("no update could be taken on")
            self._over.wait(POLL_S)

    def _have_made(self, due: Due) -> None:
        """Until it has ended, or is no longer ours. One whose process died is made again when the lease has run out."""
        if due.attempts > MOST_ATTEMPTS:
            self._fail(due, "internal error; the next votes start another")
            return
        actors = self._config.replicas.updates
        environment = {"env_vars": {"OMP_NUM_THREADS": str(actors.threads)}}
        task: Any = make_update.options(num_cpus=actors.num_cpus, num_gpus=actors.num_gpus, runtime_env=environment)
        made, until = task.remote(self._config, due), time.monotonic() + LONGEST_S
        while not ray.wait([made], timeout=LEASE_S / 5)[0]:
            if late := time.monotonic() > until:
                self._fail(due, f"it took longer than {LONGEST_S / 3600:g} h; take a smaller updates.passes")
            if late or self._over.is_set() or not self._prolong(due):
                ray.cancel(made, force=True)
                return
        try:
            logger.info("update %d of %s: %s", due.id, due.adapter, ray.get(made))
        except ray.exceptions.RayError:
            logger.exception("update %d of %s was cut off", due.id, due.adapter)

    def _prolong(self, due: Due) -> bool:
        """Whether it is still ours, as far as can be known: while the database is away nobody else takes it either."""
        try:
            with self._database.write() as transaction:
                return updates.prolong(transaction, due, LEASE_S)
        except Unavailable:
            logger.exception("the lease of update %d of %s could not be kept", due.id, due.adapter)
            return True

    def _fail(self, due: Due, message: str) -> None:
        with self._database.write() as transaction:
            updates.finish(transaction, due, status="failed", message=message, sha256=None, figures={})


@ray.remote(max_retries=0)
def make_update(config: ServeConfig, due: Due) -> str:
    """The whole of one update; its status."""
    from omr_ray.loading import device_for
    from omr_ray.serving.updates import Updater

    actors = config.replicas.updates
    return Updater(config, device_for(actors, "updates"), actors.threads).make(due)
