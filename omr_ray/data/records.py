"""What importers yield: rows whose images are still where they lie. `rows.py` looks at them and makes them fit the schema."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from omr_ray.data.filters import Picture, Rejected
from omr_ray.data.splits import Split

Part = Mapping[str, Any]  # a piece of a source that one task reads, as JSON: a file, a range of rows
Look = Callable[[str], Picture]  # an image below the source by its name, decoded once; raises Rejected


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A prompt and two images, the first of them better (OMR section 4.2). An image is its name below the source, or its bytes.

    Example: Pair(id="005658-0040/0/2", group="deathly portal", prompt="deathly portal", negative="ranked",
                  chosen="images/a.webp", rejected="images/b.webp")
    """

    id: str
    group: str
    prompt: str
    negative: str
    chosen: str | bytes
    rejected: str | bytes
    split: Split | None = None  # where the source has splits of its own; otherwise the group decides
    placed: bool = False  # the id is no name, but the place below its source, which another source may have too


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    utterance: str
    prompt: str
    target: str | bytes | None = None
    reflection: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Talk:
    """A dialogue. Example: Talk(id="B001", group="B001", intent="a dress that is black", turns=(Turn(...), Turn(...)))"""

    id: str
    group: str
    intent: str
    turns: tuple[Turn, ...]
    split: Split | None = None
    placed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken:
    """A record that the importer could not make a row of; counted, and written to the rejects."""

    id: str
    why: Rejected


Record = Pair | Talk | Broken


class Importer(Protocol):
    """One source. `parts` runs once, where the build is driven; `records` runs in many tasks, and may be run again.

    A fault of one record is a Broken; a fault of the whole source (no such directory, wrong columns) is a UserError.
    """

    name: str
    license: str

    def parts(self, size: int) -> list[Part]:
        """Pieces of about `size` records."""
        ...

    def records(self, part: Part, look: Look) -> Iterator[Record]: ...
