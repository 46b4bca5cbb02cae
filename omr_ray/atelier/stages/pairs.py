"""Preference pairs of renders: one prompt, an image that shows it and one that shows it with aspects changed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from omr_ray.atelier.render import render
from omr_ray.atelier.world import ASPECTS, VALUES, Scene, phrase, prompt_of, random_part, random_scene

FOCUS_SHARE = 0.4


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Rows of a picture collection: `chosen` shows the prompt, `rejected` shows it but for the `changed` aspects."""

    prompt: str
    chosen: int
    rejected: int
    changed: frozenset[str]


def other_value(aspect: str, value: str, rng: np.random.Generator) -> str:
    """A value of the aspect that is not `value`."""
    return str(rng.choice([known for known in VALUES[aspect] if known != value]))


def changed_scene(scene: Scene, named: dict[str, str], changed: frozenset[str], rng: np.random.Generator) -> Scene:
    """A scene that contradicts the `changed` ones of the named aspects, keeps the others, and is free where nothing was named."""
    values = {}
    for aspect in ASPECTS:
        if aspect in changed:
            values[aspect] = other_value(aspect, named[aspect], rng)
        elif aspect in named or rng.random() < 0.5:
            values[aspect] = getattr(scene, aspect)
        else:
            values[aspect] = str(rng.choice(VALUES[aspect]))
    return Scene(**values)


def fresh_pairs(aspect: str, count: int, rng: np.random.Generator) -> tuple[list[str], np.ndarray]:
    """Prompts, and new renders u8 [2 count H W 3]: first those that show them, then as many that are wrong in `aspect` alone."""
    prompts, chosen, rejected = [], [], []
    for _ in range(count):
        scene = random_scene(rng)
        named = random_part(scene, rng) | {aspect: getattr(scene, aspect)}
        prompts.append(prompt_of(named))
        chosen.append(render(scene, rng))
        rejected.append(render(scene.with_aspects({aspect: other_value(aspect, named[aspect], rng)}), rng))
    return prompts, np.stack(chosen + rejected)


class PairMaker:
    """Draws pairs from a collection of pictured scenes; hard ones, with a single aspect changed, most often.

    `focus` is an aspect that is the single one changed in `FOCUS_SHARE` of the pairs.
    """

    def __init__(self, scenes: Sequence[Scene], focus: str | None = None) -> None:
        self.scenes, self.focus = scenes, focus
        self.rows: dict[Scene, list[int]] = {}
        for row, scene in enumerate(scenes):
            self.rows.setdefault(scene, []).append(row)

    def draw(self, rng: np.random.Generator) -> Pair:
        while True:
            chosen = int(rng.integers(len(self.scenes)))
            named = random_part(self.scenes[chosen], rng)
            if self.focus is not None and rng.random() < FOCUS_SHARE:
                named[self.focus] = getattr(self.scenes[chosen], self.focus)
                changed = frozenset({self.focus})
            else:
                count = 1 if rng.random() < 0.6 else int(rng.integers(1, len(named) + 1))
                changed = frozenset(str(aspect) for aspect in rng.permutation(list(named))[:count])
            prompt = prompt_of(named) if rng.random() < 0.5 else phrase(named, rng)
            for _ in range(8):  # not every scene is in the collection
                if rows := self.rows.get(changed_scene(self.scenes[chosen], named, changed, rng)):
                    return Pair(prompt=prompt, chosen=chosen, rejected=int(rng.choice(rows)), changed=changed)
