"""Images that do not fit a prompt (OMR section 4.2): a mismatched one, drawn from another group of the same split."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from omr_ray.data.filters import Rejected
from omr_ray.data.records import Broken, Pair, Record


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitting:
    """A prompt and an image that shows it."""

    id: str
    group: str
    prompt: str
    image: str | bytes
    placed: bool = False  # records.Pair


def mismatched(fitting: Sequence[Fitting], side_of: Callable[[str], object], seed: Sequence[int]) -> Iterator[Record]:
    """One pair for each prompt: its own image, and one drawn among those of another group and with another prompt.

    side_of: the split and purpose of a group, which chosen and rejected must share. Where no such image is at hand the
    prompt is a Broken ("no_negative"). The draw depends on (seed, position) alone.
    """
    sides: dict[object, list[int]] = {}
    for index, item in enumerate(fitting):
        sides.setdefault(side_of(item.group), []).append(index)
    for index, item in enumerate(fitting):
        others = sides[side_of(item.group)]
        rng = np.random.default_rng([*seed, index])
        for place in rng.permutation(len(others)) if len(others) < 64 else rng.integers(len(others), size=64):
            other = fitting[others[place]]
            if other.group != item.group and other.prompt != item.prompt:
                yield Pair(
                    id=item.id,
                    group=item.group,
                    prompt=item.prompt,
                    negative="mismatched",
                    chosen=item.image,
                    rejected=other.image,
                    placed=item.placed,
                )
                break
        else:
            yield Broken(id=item.id, why=Rejected("no_negative", "every other image at hand may fit the prompt as well"))
