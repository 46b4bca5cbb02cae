"""The embedded world as a source: its dialogues with their targets, and pairs in which one aspect, or any, was drawn otherwise.

Intents keep the world's own split, so that held-out dialogues of a training run are never among the rows to train on.
"""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
from PIL import Image

from omr_ray.atelier.dialogues import dialogue_at, split_of
from omr_ray.atelier.render import render
from omr_ray.atelier.stages.pairs import changed_scene
from omr_ray.atelier.world import phrase, prompt_of, random_part, random_scene
from omr_ray.data.records import Look, Pair, Part, Record, Talk, Turn
from omr_ray.data.splits import Split

ONE_ASPECT = 0.7  # of the pairs; in the others every named aspect may differ
HELD_OUT = 5  # every fifth dialogue is one of the held-out split
SIDES: dict[str, Split] = {"train": "train", "heldout": "test"}


class Atelier:
    name, license = "atelier", "Apache-2.0"

    def __init__(self, *, dialogues: int, pairs: int, rounds: int, seed: int) -> None:
        self.counts, self.rounds, self.seed = {"dialogues": dialogues, "pairs": pairs}, rounds, seed

    def parts(self, size: int) -> list[Part]:
        return [
            {"what": what, "start": start, "stop": min(start + size, count)}
            for what, count in self.counts.items()
            for start in range(0, count, size)
        ]

    def records(self, part: Part, look: Look) -> Iterator[Record]:
        make = self._dialogue if part["what"] == "dialogues" else self._pair
        return (make(index) for index in range(part["start"], part["stop"]))

    def _dialogue(self, index: int) -> Talk:
        side: str = "heldout" if index % HELD_OUT == HELD_OUT - 1 else "train"
        made = dialogue_at(side, index, rounds=self.rounds, seed=self.seed)  # type: ignore[arg-type]
        turns = tuple(Turn(utterance=turn.utterance, prompt=turn.prompt, target=png(turn.target)) for turn in made.rounds)
        return Talk(id=made.id, group=made.intent, intent=made.intent, turns=turns, split=SIDES[side])

    def _pair(self, index: int) -> Pair:
        rng = np.random.default_rng([self.seed, 1, index])
        scene = random_scene(rng)
        named = random_part(scene, rng)
        one = rng.random() < ONE_ASPECT
        count = 1 if one else int(rng.integers(2, len(named) + 1))
        changed = frozenset(str(aspect) for aspect in rng.permutation(list(named))[:count])
        other = changed_scene(scene, named, changed, rng)
        return Pair(
            id=f"atelier-{self.seed}-{index:09d}",
            group=prompt_of(scene.aspects()),
            prompt=prompt_of(named) if rng.random() < 0.5 else phrase(named, rng),
            negative=f"aspect:{next(iter(changed))}" if one else "aspects",
            chosen=png(render(scene, rng)),
            rejected=png(render(other, rng)),
            split=SIDES[split_of(scene)],
        )


def png(image: np.ndarray | None) -> bytes:
    """A u8 [H W 3] image as PNG bytes."""
    held = io.BytesIO()
    Image.fromarray(np.asarray(image)).save(held, "PNG", compress_level=1)
    return held.getvalue()
