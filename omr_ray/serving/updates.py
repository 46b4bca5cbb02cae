"""Adaptive optimization as a service: votes become the next version of an adapter, if it is better (TDRI section 3.2.3).

40 new votes ──► draw again, learn (D3PO) ──► finite? better on held-out votes than what is in use? ──► in use from the next round on
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
from sqlalchemy.orm import Session as Transaction

from omr_ray.config.serve import ServeConfig
from omr_ray.dialogue.session import Session
from omr_ray.diffusion.adapters import Adapter
from omr_ray.loading import model_path, policy_from, sampler_from
from omr_ray.serving.pictures import PictureStore
from omr_ray.serving.store import sessions, updates
from omr_ray.serving.store.database import Database
from omr_ray.serving.store.tables import StoredRound, Vote
from omr_ray.serving.store.updates import Due
from omr_ray.serving.versions import Versions
from omr_ray.training.adaptive_optimization import Drawing, DrawnPair, Weights, held_out, judge, learn, redraw
from omr_ray.types import Unavailable, UserError

logger = logging.getLogger(__name__)

MOST_JUDGES = 200  # held-out votes that a version is judged by: the newest
MOST_DRIFT = 0.1  # nats a latent dimension; what has burst is far above


class Updater:
    """A policy of its own, that learns; nobody waits for its images."""

    def __init__(self, config: ServeConfig, device: str, threads: int) -> None:
        assert config.updates is not None
        self._config, self._learning = config, config.updates
        self._database, self._pictures, self._versions = Database(config.database), PictureStore(config.images), Versions(config.adapters)
        self._policy = policy_from(config.model, config.lora, device, threads)
        sampling = config.painting.sampler().model_copy(update={"batch_size": self._learning.batch})
        self._sampler = sampler_from(self._policy, sampling)
        self._base = self._policy.lora_weights()
        self._known: dict[str, Weights | None] = {}

    def make(self, due: Due) -> str:
        """Learn, judge and, where it is better, put into use; returns the status. What goes wrong ends the update as failed.

        Raises Unavailable where the store cannot be used: the votes are not lost, it is made again when its lease has run out.
        """
        try:
            return self._make(due)
        except Unavailable:
            raise
        except UserError as error:
            return self._finish(due, "failed", str(error))
        except Exception:
            logger.exception("update %d of %s failed", due.id, due.adapter)
            return self._finish(due, "failed", "internal error; the next votes start another")

    def _make(self, due: Due) -> str:
        with self._database.read() as transaction:
            # From the store, not from what the adapter's id leads to: who makes a cut-off update again must begin where it began.
            versions = updates.published(transaction, due.adapter)
            fresh, every = (self._drawn(transaction, updates.votes_of(transaction, due, all_before=old)) for old in (False, True))
        learned_from, judges = held_out(fresh, self._learning.held_out)[0], held_out(every, self._learning.held_out)[1][-MOST_JUDGES:]
        if not learned_from or not judges:
            return self._finish(due, "refused", f"{len(learned_from)} votes to learn from and {len(judges)} to judge by are too few")
        start = self._weights(versions[-1].sha256 if versions else None)
        after, figures = learn(self._sampler, redraw(self._sampler, learned_from, self._weights), start, self._learning, seed=due.id)
        if not all(np.isfinite(value).all() for value in after.values()):
            return self._finish(due, "refused", "what was learned is not finite", figures)
        steps = redraw(self._sampler, judges, self._weights)
        old, new = (judge(self._sampler, steps, weights) for weights in (start, after))
        before_rate, after_rate = float(old.wins.mean()), float(new.wins.mean())
        figures |= {"votes": float(len(learned_from)), "judges": float(len(judges)), "wins_before": before_rate, "wins": after_rate}
        figures["drift"] = new.drift
        if not new.drift <= MOST_DRIFT:
            return self._finish(due, "refused", f"it makes what was preferred unlikely itself, by {new.drift:.3g} a dimension", figures)
        if after_rate <= before_rate:
            said = f"it agrees with {after_rate:.0%} of {len(judges)} held-out votes, what is in use with {before_rate:.0%}"
            return self._finish(due, "refused", said, figures)
        lora = self._config.lora
        adapter = Adapter(weights=after, rank=lora.rank, alpha=lora.alpha, base_model=model_path(self._config.model))
        sha256 = self._versions.add(adapter, f"Learned from votes, update {due.id}", dict(figures))
        with self._database.write() as transaction:
            if updates.finish(transaction, due, status="published", message="in use", sha256=sha256, figures=figures):
                self._versions.use(due.adapter, sha256)
        return "published"

    def _finish(self, due: Due, status: str, message: str, figures: dict[str, float] | None = None) -> str:
        with self._database.write() as transaction:
            updates.finish(transaction, due, status=status, message=message, sha256=None, figures=figures or {})
        return status

    def _weights(self, sha256: str | None) -> Weights:
        if sha256 is None:
            return self._base
        found = self._weights_or_none(sha256)
        if found is None:
            raise UserError(f"no adapter has the hash {sha256[:12]} any more")
        return found

    def _weights_or_none(self, sha256: str) -> Weights | None:
        if sha256 not in self._known:
            self._known[sha256] = self._versions.weights(sha256, self._config.lora.rank, self._config.lora.alpha)
        return self._known[sha256]

    def _drawn(self, transaction: Transaction, votes: Sequence[tuple[Vote, StoredRound, StoredRound]]) -> list[DrawnPair]:
        """Votes whose images can be drawn again. Those whose adapter or parent image is gone teach nothing."""
        found = []
        for vote, left, right in votes:
            session = sessions.find(transaction, vote.session_id)
            winner, loser = (left, right) if vote.choice == "left" else (right, left)
            chosen, rejected = self._drawing(session, winner), self._drawing(session, loser)
            if chosen is not None and rejected is not None:
                found.append(DrawnPair(id=str(vote.id), winner=chosen, loser=rejected))
        return found

    def _drawing(self, session: Session, round_: StoredRound) -> Drawing | None:
        parent = None
        if round_.mode == "edit":
            try:
                parent = self._pictures.get(session.images_before(round_.id)[-1]).latents
            except FileNotFoundError:
                return None
            if parent is None or parent.shape != self._sampler.latent_shape:
                return None
        if round_.adapter is not None and (round_.adapter_sha256 is None or self._weights_or_none(round_.adapter_sha256) is None):
            return None
        sha256 = round_.adapter_sha256 if round_.adapter is not None else None
        return Drawing(prompt=round_.prompt or "", seed=round_.seed, parent=parent, strength=round_.strength, adapter=sha256)
