"""Pairs and what was said of them in Label Studio's JSON: written by `omr-ray votes export`, read by `omr-ray votes import`.

A task has its images inside, as data addresses, so that a file is whole: nothing is ever fetched. A preference is a
`pairwise` result, which has no place for a tie: that, and both_bad, is a `choices` result. FILE.xml, written beside, is the
labeling interface that makes both.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import ijson
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from omr_ray.config.serve import ServeConfig
from omr_ray.dialogue.engine import Picture
from omr_ray.serving.judged import Judged, judged
from omr_ray.serving.pictures import PictureStore, read_upload, to_base64
from omr_ray.serving.schemas import NAME
from omr_ray.serving.store import votes
from omr_ray.serving.store.database import Database
from omr_ray.serving.store.tables import Pair
from omr_ray.types import UserError
from omr_ray.vlm.templates import clean
from omr_ray.weights import write_atomic

LONGEST_PROMPT = 4000
NOBODY = "label-studio"  # annotator whose name is not told
INTERFACE = """<View>
  <Text name="prompt" value="$prompt"/>
  <Pairwise name="preference" toName="left,right"/>
  <Image name="left" value="$left"/>
  <Image name="right" value="$right"/>
  <Choices name="verdict" toName="prompt" choice="single"><Choice value="tie"/><Choice value="both_bad"/></Choices>
</View>
"""


class Data(BaseModel):
    model_config = ConfigDict(frozen=True)
    prompt: str = Field(min_length=1, max_length=LONGEST_PROMPT)
    left: str
    right: str
    pair: str | None = Field(None, pattern=NAME)


class Selected(BaseModel):
    model_config = ConfigDict(frozen=True)
    selected: Literal["left", "right"] | None = None
    choices: tuple[Literal["tie", "both_bad"], ...] = ()


class Result(BaseModel):
    model_config = ConfigDict(frozen=True)
    type: str
    value: dict[str, Any]


class LabelStudioAnnotation(BaseModel):
    model_config = ConfigDict(frozen=True)
    result: tuple[Result, ...] = ()
    completed_by: int | str | dict[str, Any] | None = None
    lead_time: float | None = Field(None, ge=0)
    created_at: AwareDatetime | None = None
    was_cancelled: bool | None = None


class Task(BaseModel):
    model_config = ConfigDict(frozen=True)
    data: Data
    annotations: tuple[Any, ...] = ()  # one that is no LabelStudioAnnotation does not take its task with it


# -- out -----------------------------------------------------------------------------------------------------------------


def write_tasks(database: Database, pictures: PictureStore, path: Path) -> int:
    """A task for each vote, and one for each pair that was put up, with what its annotators said; how many."""
    found = judged(database)
    with database.read() as transaction:
        pairs = votes.pairs(transaction)
    said: dict[str, list[Judged]] = {}
    for one in found:
        if one.source == "annotations":
            said.setdefault(one.pair, []).append(one)
    listed = [(one.pair, one.prompt, one.left, one.right, [one]) for one in found if one.source == "votes"]
    listed += [(pair.id, pair.prompt, pair.left, pair.right, said.get(pair.id, [])) for pair in pairs]
    path.parent.mkdir(parents=True, exist_ok=True)
    part, count = path.with_name(f"{path.name}.part"), 0
    with part.open("w") as opened:  # written as it is made: it may be larger than memory
        for id, prompt, left, right, judgements in listed:
            try:
                images = {"left": _data_address(pictures, left), "right": _data_address(pictures, right)}
            except FileNotFoundError:
                continue
            task = {"data": {"prompt": prompt, **images, "pair": id}, "annotations": list(map(_annotation, judgements))}
            opened.write((",\n" if count else "[\n") + json.dumps(task))
            count += 1
        opened.write("\n]\n" if count else "[]\n")
    part.replace(path)
    write_atomic(path.with_suffix(".xml"), INTERFACE.encode())
    return count


def _annotation(one: Judged) -> dict[str, Any]:
    if one.choice in ("left", "right"):
        result = {"from_name": "preference", "to_name": "left,right", "type": "pairwise", "value": {"selected": one.choice}}
    else:
        result = {"from_name": "verdict", "to_name": "prompt", "type": "choices", "value": {"choices": [one.choice]}}
    made = datetime.fromtimestamp(one.created_at, UTC).isoformat()
    return {"completed_by": {"email": one.annotator}, "lead_time": one.seconds, "created_at": made, "result": [result]}


def _data_address(pictures: PictureStore, address: str) -> str:
    return "data:image/png;base64," + to_base64(pictures.get(address).image)


# -- in ------------------------------------------------------------------------------------------------------------------


def read_file(config: ServeConfig, path: Path) -> dict[str, Any]:
    """Put up the pairs of a file and keep its annotations; returns counts. What cannot be used is counted under its reason.

    A pair that is there already stays as it is, and only the annotations are taken. Raises UserError for what is no such file.
    """
    database, pictures = Database(config.database), PictureStore(config.images)
    database.migrate()
    counts: Counter[str] = Counter(dict.fromkeys(("pairs", "known_pairs", "annotations", "skipped"), 0))
    reasons: Counter[str] = Counter()
    try:
        for task in _tasks(path, reasons):
            _keep(task, config, database, pictures, counts, reasons)
    finally:
        database.close()
    return {"file": str(path), **counts, "reasons": dict(sorted(reasons.items()))}


def _tasks(path: Path, reasons: Counter[str]) -> Iterator[Task]:
    try:
        with path.open("rb") as opened:
            if not opened.peek(64).lstrip().startswith(b"["):
                raise UserError(f"{path}: is no list of tasks; give the JSON that Label Studio exports")
            for item in ijson.items(opened, "item", use_float=True):
                try:
                    yield Task.model_validate(item)
                except ValidationError as error:
                    reasons[f"task: {'.'.join(map(str, error.errors()[0]['loc']))}"] += 1
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give the JSON that Label Studio exports") from None
    except (ijson.JSONError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is no JSON ({' '.join(str(error).split())[:100]}); give the JSON that Label Studio exports") from None


def _keep(task: Task, config: ServeConfig, database: Database, pictures: PictureStore, counts: Counter[str], reasons: Counter[str]) -> None:
    said = task.data
    id = said.pair or "ls-" + hashlib.sha256(f"{said.prompt}\0{said.left}\0{said.right}".encode("utf-8", "replace")).hexdigest()[:24]
    with database.read() as transaction:
        known = votes.pair(transaction, id) is not None
    new = []
    if not known:
        try:
            # Their pixels are stored anew: an address in a file could name an image that its author may not see.
            left, right = (pictures.put(_picture(text, config)) for text in (said.left, said.right))
        except UserError as error:
            reasons[f"image: {error}"] += 1
            return
        now = datetime.now(UTC).timestamp()
        new = [Pair(id=id, prompt=clean(said.prompt), left=left, right=right, source="label_studio", created_at=now)]
    with database.write() as transaction:
        counts["pairs" if votes.put_up(transaction, new) else "known_pairs"] += 1
        for told in task.annotations:
            annotation = _annotation_of(told)
            choice = None if annotation is None or annotation.was_cancelled else _choice(annotation.result)
            if annotation is None or choice is None:
                counts["skipped"] += 1
                continue
            at = None if annotation.created_at is None else annotation.created_at.timestamp()
            seconds = annotation.lead_time or 0.0
            votes.annotate(transaction, _annotator(annotation.completed_by), id, choice=choice, seconds=seconds, at=at)
            counts["annotations"] += 1


def _annotation_of(told: Any) -> LabelStudioAnnotation | None:
    try:
        return LabelStudioAnnotation.model_validate(told)
    except ValidationError:
        return None


def _choice(results: Sequence[Result]) -> str | None:
    """What an annotation says; None where it says nothing, or two things."""
    found = set[str]()
    for result in results:
        try:
            value = Selected.model_validate(result.value)
        except ValidationError:
            return None
        if result.type == "pairwise" and value.selected:
            found.add(value.selected)
        elif result.type == "choices":
            found.update(value.choices)
    return found.pop() if len(found) == 1 else None


def _annotator(told: int | str | dict[str, Any] | None) -> str:
    """A name as the service's owners have one."""
    if isinstance(told, dict):
        told = told.get("email") or told.get("username") or told.get("id")
    if isinstance(told, int) and not isinstance(told, bool):
        return f"{NOBODY}-{told}"
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", str(told or "")).lstrip("._-")[:64]
    return name if re.fullmatch(NAME, name) else NOBODY


def _picture(address: str, config: ServeConfig) -> Picture:
    head, _, content = address.partition(";base64,")
    if head not in ("data:image/png", "data:image/jpeg", "data:image/webp"):
        raise UserError("an image must be inside its task as data:image/png;base64,...; nothing is fetched")
    if len(content) > config.limits.image_bytes * 4 // 3 + 4:
        raise UserError(f"an image has at most {config.limits.image_bytes} bytes")
    try:
        decoded = base64.b64decode(content, validate=True)
    except binascii.Error:
        raise UserError("an image is no base64") from None
    return Picture(image=read_upload(decoded, most_pixels=config.limits.image_pixels)[0])
