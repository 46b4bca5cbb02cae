"""Calls that threads make at about the same time, made as one: so that many dialogues share the batches of a model.

Each dialogue is plain sequential code in a thread of its own. When all threads wait for an answer, or have ended, the calls of one kind
go out together, in the order of the threads; so what is in a batch follows from the work alone, and never from the clock. Where several
kinds wait, the first one goes: who has less to ask first catches up with the others.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

LONGEST_S = 3600  # that a thread waits for an answer, which comes unless the main thread was interrupted

Result = TypeVar("Result")
Call = Callable[[list[Any], Any], Iterable[Any]]  # items, and what the calls of one batch have in common, to an answer an item


class Ask(Protocol):
    def __call__(self, kind: str, items: Sequence[Any], common: Any = None) -> list[Any]:
        """The answers to the items. Raises what the call raised."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    place: int  # of the thread
    kind: str
    items: Sequence[Any]
    common: Any
    answer: Future[list[Any]] = field(default_factory=Future)


class Together:
    """calls: by kind, in the order in which they go; those of one kind go by what they have in common, ascending.

    Example: Together({"embed": lambda texts, _: clip.embed_texts(texts)}).run(works)
    """

    def __init__(self, calls: Mapping[str, Call]) -> None:
        self._calls, self._order = calls, {kind: place for place, kind in enumerate(calls)}

    def run(self, works: Sequence[Callable[[Ask], Result]]) -> list[Result]:
        """What N works return. Raises what the first of them raised, after all have ended. The calls run in this thread."""
        posted: queue.SimpleQueue[_Asked | None] = queue.SimpleQueue()
        results: list[Any] = [None] * len(works)

        def work(place: int) -> None:
            def ask(kind: str, items: Sequence[Any], common: Any = None) -> list[Any]:
                asked = _Asked(place=place, kind=kind, items=items, common=common)
                posted.put(asked)
                return asked.answer.result(LONGEST_S)

            try:
                results[place] = works[place](ask)
            except Exception as error:
                results[place] = error
            finally:
                posted.put(None)

        for place in range(len(works)):
            threading.Thread(target=work, args=(place,), daemon=True).start()
        waiting: list[_Asked] = []
        running = len(works)
        while running:  # each running thread posts once: a call, or its end
            waiting += [one for one in (posted.get() for _ in range(running)) if one is not None]
            first = min(map(self._turn, waiting), default=None)
            batch = sorted((one for one in waiting if self._turn(one) == first), key=lambda one: one.place)
            waiting = [one for one in waiting if self._turn(one) != first]
            self._answer(batch)
            running = len(batch)
        for result in results:
            if isinstance(result, Exception):
                raise result
        return results

    def _turn(self, one: _Asked) -> tuple[int, Any]:
        return self._order[one.kind], one.common

    def _answer(self, batch: Sequence[_Asked]) -> None:
        """Calls of one kind. What one of them is to blame for does not end the others."""
        if not batch:
            return
        items = [item for one in batch for item in one.items]
        try:
            answers = list(self._calls[batch[0].kind](items, batch[0].common))
        except Exception as error:
            if len(batch) == 1:
                batch[0].answer.set_exception(error)
            else:
                for one in batch:
                    self._answer([one])
            return
        for one in batch:
            own, answers = answers[: len(one.items)], answers[len(one.items) :]
            one.answer.set_result(own)
