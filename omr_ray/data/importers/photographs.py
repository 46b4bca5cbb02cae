"""Photographs of clothes, one folder a class: dialogues and pairs from the class and the colors that dominate.

    PATH/dress/0001.jpg  PATH/t-shirt/0002.jpg  ...

The class is what is shown; k-means in CIELAB says in which color and before which background. Every photograph ends one
dialogue: from any photograph of its class in another color, by one in its color before another background, to itself.
Photographs of one description are one group; those of a dialogue, or a pair, are taken from the same split.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from omr_ray.data.colors import dominant_colors
from omr_ray.data.filters import Rejected
from omr_ray.data.negatives import Fitting, mismatched
from omr_ray.data.records import Broken, Look, Part, Record, Talk, Turn
from omr_ray.data.splits import Place, Shares, place_of
from omr_ray.data.store import Folder
from omr_ray.types import UserError

NEGATIVES = 4  # pairs of a photograph, each with another image that does not fit: with one, a model soon knows them by heart
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


@dataclass(frozen=True, slots=True, kw_only=True)
class Photograph:
    """Example: Photograph(name="dress/0001.jpg", noun="dress", garment="blue", background="white", place=Place(...))"""

    name: str
    noun: str
    garment: str
    background: str
    place: Place

    @property
    def prompt(self) -> str:
        return described(self.noun, self.garment, self.background)


def described(noun: str, garment: str, background: str) -> str:
    return f"a {garment} {noun} before a {background} background"


class Photographs:
    name, license = "photographs", "unknown"

    def __init__(self, path: str, shares: Shares) -> None:
        self.folder, self.shares = Folder(path), shares

    def parts(self, size: int) -> list[Part]:
        names = [name for name, _ in self.folder.files(SUFFIXES) if "/" in name]
        if not names:
            raise UserError(f"{self.folder.path}: no CLASS/IMAGE.jpg in it; give a folder with one folder a class")
        # Every part gets photographs of all classes: what differs from a photograph is looked for among its neighbours.
        names.sort(key=lambda name: hashlib.blake2b(name.encode(), digest_size=8).digest())
        even = math.ceil(len(names) / math.ceil(len(names) / size))
        return [{"names": names[start : start + even]} for start in range(0, len(names), even)]

    def records(self, part: Part, look: Look) -> Iterator[Record]:
        photographs: list[Photograph] = []
        for name in part["names"]:
            try:
                colors = dominant_colors(look(name).bytes)
            except Rejected as why:
                yield Broken(id=name, why=why)
                continue
            noun = name.rsplit("/", 2)[-2].replace("_", " ").lower()
            group = described(noun, colors.garment, colors.background)
            place = place_of(group, self.shares)
            photographs.append(Photograph(name=name, noun=noun, garment=colors.garment, background=colors.background, place=place))
        yield from _dialogues(photographs)
        for number in range(NEGATIVES):
            fitting = [
                Fitting(id=f"{item.name}#{number}", group=item.prompt, prompt=item.prompt, image=item.name, placed=True)
                for item in photographs
            ]
            yield from mismatched(fitting, lambda group: place_of(group, self.shares), [len(fitting), number])


def _dialogues(photographs: Sequence[Photograph]) -> Iterator[Record]:
    by_class: dict[tuple[str, Place], list[Photograph]] = {}
    for item in photographs:
        by_class.setdefault((item.noun, item.place), []).append(item)
    for index, last in enumerate(photographs):
        rng = np.random.default_rng([len(photographs), index])
        siblings = by_class[last.noun, last.place]
        first = [item for item in siblings if item.garment != last.garment]
        between = [item for item in siblings if item.garment == last.garment and item.background != last.background]
        if not first:
            yield Broken(id=last.name, why=Rejected("no_chain", f"no other {last.noun} of another color at hand to begin with"))
            continue
        turns = [Turn(utterance=f"i am looking for a {last.noun}", prompt=f"a {last.noun}", target=_drawn(first, rng))]
        if between:
            turns.append(Turn(utterance=f"make it {last.garment}", prompt=f"a {last.garment} {last.noun}", target=_drawn(between, rng)))
            wish = f"put it before a {last.background} background"
        else:
            wish = f"make it {last.garment}, before a {last.background} background"
        turns.append(Turn(utterance=wish, prompt=last.prompt, target=last.name))
        yield Talk(id=last.name, group=last.prompt, intent=last.prompt, turns=tuple(turns), placed=True)


def _drawn(photographs: Sequence[Photograph], rng: np.random.Generator) -> str:
    return photographs[int(rng.integers(len(photographs)))].name
