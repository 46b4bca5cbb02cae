"""A JSON list that may be larger than memory, item by item, and in ranges."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import ijson

from omr_ray.data.filters import Rejected
from omr_ray.data.records import Broken, Part, Record
from omr_ray.data.store import Folder
from omr_ray.types import UserError


def ranges(folder: Folder, name: str, size: int) -> list[Part]:
    """Ranges of `size` items of the list in a file. Raises UserError where its first item already cannot be read.

    A list that breaks off is read up to there; the last range then says so when it is read.
    """
    count = 0
    try:
        with folder.open(name) as opened:
            for _ in ijson.items(opened, "item"):
                count += 1
    except (ijson.JSONError, UnicodeDecodeError) as error:
        if count == 0:
            raise UserError(f"{folder.shown(name)}: is not a JSON list ({_line(error)}); mend it or leave the source out") from None
        count += 1  # the item that cannot be read belongs to a range too
    if count == 0:
        raise UserError(f"{folder.shown(name)}: holds no record; a JSON list with at least one is expected")
    return [{"file": name, "start": start, "stop": min(start + size, count)} for start in range(0, count, size)]


def items(folder: Folder, part: Part, record_of: Callable[[int, Any], Iterator[Record]]) -> Iterator[Record]:
    """The records of a range: `record_of` gets an item's number and the item, and may raise Rejected."""
    number = -1
    try:
        with folder.open(part["file"]) as opened:
            for number, item in enumerate(ijson.items(opened, "item", use_float=True)):
                if number >= part["stop"]:
                    return
                if number >= part["start"]:
                    try:
                        yield from record_of(number, item)
                    except Rejected as why:
                        yield Broken(id=f"{part['file']}#{number}", why=why)
    except (ijson.JSONError, UnicodeDecodeError) as error:
        if part["start"] <= number + 1 < part["stop"]:
            yield Broken(
                id=f"{part['file']}#{number + 1}", why=Rejected("json_broken", f"the file cannot be read from here on: {_line(error)}")
            )


def fields(item: Any, /, **kinds: type | tuple[type, ...]) -> list[Any]:
    """The named fields of a JSON object. Raises Rejected for one that is missing or of another type."""
    if not isinstance(item, dict):
        raise Rejected("malformed", f"an object with {', '.join(kinds)} was expected, got {item!r:.60}")
    for name, kind in kinds.items():
        if not isinstance(item.get(name), kind):
            said = "is missing" if name not in item else f"is {item[name]!r:.60}"
            raise Rejected("malformed", f"{name} {said}; keys {', '.join(map(str, item))[:100]}")
    return [item[name] for name in kinds]


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
