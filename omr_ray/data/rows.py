"""One part of one source becomes rows: records are cleaned, their images looked at, placed in a split, and written.

A part is the unit of work and of failure: it writes files of its own name, whole or not at all, and says what is in them,
so a part that is done again replaces its files and changes nothing else.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import product
from typing import Any, get_args

from omr_ray.config.data import AtelierSource, DataConfig, FileSource
from omr_ray.data import filters
from omr_ray.data.duplicates import key_of
from omr_ray.data.filters import Limits, Picture, Rejected
from omr_ray.data.importers.atelier import Atelier
from omr_ray.data.importers.deepfashion import DeepFashionInShop, DeepFashionMultiModal
from omr_ray.data.importers.fashioniq import FashionIq
from omr_ray.data.importers.imagereward import ImageReward
from omr_ray.data.importers.json_forms import JsonDialogues, JsonPreferences
from omr_ray.data.importers.pairs import Hpdv2, Hpdv3, PickAPic
from omr_ray.data.importers.photographs import Photographs
from omr_ray.data.records import Broken, Importer, Look, Pair, Part, Record, Talk
from omr_ray.data.splits import Purpose, Shares, Split, place_of
from omr_ray.data.store import Folder, Shard
from omr_ray.types import UserError

CACHED_BYTES = 128 * 2**20  # of pictures a task keeps: one image often stands in several rows

PLAIN: dict[str, Callable[[str], Importer]] = {
    "imagereward": ImageReward,
    "pickapic": PickAPic,
    "hpdv2": Hpdv2,
    "hpdv3": Hpdv3,
    "json_dialogues": JsonDialogues,
    "json_preferences": JsonPreferences,
}
# These draw images that do not fit, or link images, and so have to know who shares a split with whom.
LINKING: dict[str, Callable[[str, Shares], Importer]] = {
    "fashioniq": FashionIq,
    "deepfashion_inshop": DeepFashionInShop,
    "deepfashion_multimodal": DeepFashionMultiModal,
    "photographs": Photographs,
}


def importer_of(source: FileSource | AtelierSource, shares: Shares) -> Importer:
    """The importer of a source. Raises UserError where its path cannot be one."""
    if isinstance(source, AtelierSource):
        return Atelier(dialogues=source.dialogues, pairs=source.pairs, rounds=source.rounds, seed=source.seed)
    if source.kind in PLAIN:
        return PLAIN[source.kind](source.path)
    return LINKING[source.kind](source.path, shares)


@dataclass(kw_only=True)
class Counts:
    """What one part, or a whole build, made. Keys are "source/table/split/purpose/negative", and "source/reason"."""

    rows: Counter[str] = field(default_factory=Counter)
    rejects: Counter[str] = field(default_factory=Counter)
    pictures: Counter[str] = field(default_factory=Counter)  # source -> images that were decoded, each once a part
    files: set[str] = field(default_factory=set)

    def add(self, other: Mapping[str, Any]) -> None:
        for name in ("rows", "rejects", "pictures"):
            getattr(self, name).update(other[name])
        self.files.update(other["files"])

    def remove(self, other: Mapping[str, Any]) -> None:
        """Take back what was added."""
        for name in ("rows", "rejects", "pictures"):
            counter = getattr(self, name)
            counter.subtract(other[name])
            for key in other[name]:
                if not counter[key]:
                    del counter[key]
        self.files.difference_update(other["files"])

    def to_json(self) -> dict[str, Any]:
        counters = {"rows": self.rows, "rejects": self.rejects, "pictures": self.pictures}
        return {name: dict(sorted(counter.items())) for name, counter in counters.items()} | {"files": sorted(self.files)}


class Pictures:
    """Images of a source by name, each read, decoded and measured once."""

    def __init__(self, folder: Folder | None, limits: Limits) -> None:
        self._folder, self._limits = folder, limits
        self._kept: OrderedDict[str, Picture] = OrderedDict()
        self._held = self.looked_at = 0

    def __call__(self, image: str | bytes) -> Picture:
        """Raises Rejected."""
        if isinstance(image, bytes):
            self.looked_at += 1
            return filters.look(image, self._limits)
        if image in self._kept:
            self._kept.move_to_end(image)
            return self._kept[image]
        picture = filters.look(self._read(image), self._limits)
        self.looked_at += 1
        self._kept[image] = picture
        self._held += len(picture.bytes)
        while self._held > CACHED_BYTES and len(self._kept) > 1:
            self._held -= len(self._kept.popitem(last=False)[1].bytes)
        return picture

    def _read(self, name: str) -> bytes:
        if self._folder is None or name.startswith("/") or ".." in name.split("/"):
            raise Rejected("image_missing", f"{name:.200}: an image must lie below its source")
        try:
            return self._folder.read(name)
        except FileNotFoundError:
            raise Rejected("image_missing", f"{name:.200}") from None
        except (OSError, ValueError) as error:  # ValueError: a name that no file can have
            raise Rejected("image_unreadable", f"{name:.200}: {' '.join(str(error).split())[:120]}") from None


def write_part(
    config: DataConfig, index: int, number: int, part: Part, out: str, left_out: Collection[str] = frozenset()
) -> dict[str, Any]:
    """Part `number` of source `index`: writes its files below `out`, and returns its Counts as JSON.

    `left_out`: keys (duplicates.key_of) of rows that an earlier part has.
    """
    source = config.sources[index]
    shares = Shares(**config.split.model_dump())
    importer = importer_of(source, shares)
    limits = Limits(**config.filters.model_dump(exclude={"missing_images"}))
    pictures = Pictures(getattr(importer, "folder", None), limits)
    place = f"{index:02d}-{importer.name}"
    maker = _Rows(
        source=importer.name,
        place=place,
        license=getattr(source, "license", None) or importer.license,
        limits=limits,
        shares=shares,
        keep_missing=config.filters.missing_images == "keep",
        look=pictures,
    )
    folder, counts, shards = Folder(out), Counts(), dict[str, Shard]()
    file = f"{place}-{number:06d}.parquet"
    with ExitStack() as stack:
        for table, row, size in maker.rows(importer.records(part, pictures), left_out):
            where = [table, row["split"], row["purpose"]] if "split" in row else [table]
            name = "/".join([*where, file])
            if name not in shards:
                shards[name] = stack.enter_context(Shard(folder, name, table))
            shards[name].add(row, size)
            if table == "rejects":
                counts.rejects[f"{importer.name}/{row['reason']}"] += 1
            else:
                counts.rows["/".join([importer.name, *where, row.get("negative", "")]).rstrip("/")] += 1
    for table, split, purpose in product({key.split("/")[0] for key in left_out}, get_args(Split), get_args(Purpose)):
        name = f"{table}/{split}/{purpose}/{file}"
        if name not in shards:
            folder.delete(name)  # of the time before, when it had rows that are all left out now
    counts.pictures[importer.name] += pictures.looked_at
    counts.files = set(shards)
    return counts.to_json()


@dataclass(frozen=True, kw_only=True)
class _Rows:
    source: str
    place: str  # of the source among those of the build, which no other has
    license: str
    limits: Limits
    shares: Shares
    keep_missing: bool
    look: Look

    def rows(self, records: Iterable[Record], left_out: Collection[str]) -> Iterable[tuple[str, dict[str, Any], int]]:
        """(table, row, bytes of its images) for every record, a reject being a row too. Ids are unique here, and not in `left_out`."""
        seen = set(left_out)
        for record in _guarded(records):
            try:
                if isinstance(record, Broken):
                    raise record.why
                table, id_ = "preferences" if isinstance(record, Pair) else "dialogues", self._id(record)
                if key_of(table, id_) in seen:
                    raise Rejected("duplicate_id", f"an earlier row of {table} has the id {id_:.200}")
                row = self._pair(record) if isinstance(record, Pair) else self._talk(record)
                seen.add(key_of(table, id_))
                images = [row["chosen"], row["rejected"]] if table == "preferences" else [turn["target"] for turn in row["rounds"]]
                yield table, row, sum(len(image["bytes"]) for image in images if image)
            except Rejected as why:
                told = {"id": _storable(record.id), "reason": why.reason, "detail": _storable(str(why))}
                yield "rejects", {"source": self.source, **told}, 0

    def _id(self, record: Pair | Talk) -> str:
        return filters.clean_text(f"{self.place}/{record.id}" if record.placed else record.id, self.limits)

    def _pair(self, pair: Pair) -> dict[str, Any]:
        prompt = filters.clean_prompt(pair.prompt, self.limits)
        images = {"chosen": self._image(pair.chosen), "rejected": self._image(pair.rejected)}
        return self._origin(pair) | {"prompt": prompt, "negative": filters.clean_text(pair.negative, self.limits)} | images

    def _talk(self, talk: Talk) -> dict[str, Any]:
        rounds = [
            {
                "utterance": filters.clean_text(turn.utterance, self.limits),
                "prompt": filters.clean_prompt(turn.prompt, self.limits),
                "reflection": turn.reflection and filters.clean_text(turn.reflection, self.limits),
                "target": None if turn.target is None else self._image(turn.target),
            }
            for turn in talk.turns
        ]
        return self._origin(talk) | {"intent": filters.clean_text(talk.intent, self.limits), "rounds": rounds}

    def _origin(self, record: Pair | Talk) -> dict[str, Any]:
        group = filters.clean_text(record.group, self.limits)
        place = place_of(group, self.shares)
        return {
            "id": self._id(record),
            "source": self.source,
            "group": group,
            "split": record.split or place.split,
            "purpose": place.purpose,
            "license": self.license,
        }

    def _image(self, image: str | bytes) -> dict[str, Any] | None:
        try:
            return asdict(self.look(image))  # type: ignore[arg-type]
        except Rejected as why:
            if why.reason == "image_missing" and self.keep_missing:
                return None
            raise


def _guarded(records: Iterable[Record]) -> Iterator[Record]:
    """A file that cannot be read, or has other columns, is one reject: the rest of the build goes on."""
    try:
        yield from records
    except UserError as error:
        yield Broken(id="", why=Rejected("unreadable", str(error)))


def _storable(text: str) -> str:
    """`text` without what UTF-8 cannot hold."""
    return text.encode("utf-8", "replace").decode()[:500]
