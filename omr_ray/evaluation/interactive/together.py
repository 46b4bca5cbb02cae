"""Calls that threads make at about the same time, made as one: so that many dialogues share the batches of a model.

Each dialogue is plain sequential code in a thread of its own. When all threads wait for an answer, or have ended, the calls of one kind
go out together, in the order of the threads; so what is in a batch follows from the work alone, and never from the clock.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

LONGEST_S = 3600  # that a thread waits for an answer, which comes unless the main thread was interrupted

Result = TypeVar("Result")
Call = Callable[[list[Any], Any], Sequence[Any]]  # items, and what the calls of one batch have in common, to an answer an item


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
    """Example: Together({"embed": lambda texts, _: clip.embed_texts(texts)}).run(works)"""

    def __init__(self, calls: Mapping[str, Call]) -> None:
        self._calls = calls

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
        running = len(works)
        while running:  # each running thread posts once: a call, or its end
            asked = sorted((one for one in (posted.get() for _ in range(running)) if one is not None), key=lambda one: one.place)
            self._answer(asked)
            running = len(asked)
        for result in results:
            if isinstance(result, Exception):
                raise result
        return results

    def _answer(self, asked: Sequence[_Asked]) -> None:
        batches: dict[Any, list[_Asked]] = {}
        for one in asked:
            batches.setdefault((one.kind, one.common), []).append(one)
        for (kind, common), batch in batches.items():
            items = [item for one in batch for item in one.items]
            try:
                answers = iter(self._calls[kind](items, common))
                for one in batch:
                    one.answer.set_result([next(answers) for _ in one.items])
            except Exception as error:
                self._answer_alone(batch, error)

    def _answer_alone(self, batch: Sequence[_Asked], error: Exception) -> None:
        """What one of them is to blame for must not end the others."""
        if len(batch) == 1:
            batch[0].answer.set_exception(error)
            return
        for one in batch:
            self._answer([one])
