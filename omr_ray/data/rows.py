"""One part of one source becomes rows: records are cleaned, their images looked at, placed in a split, and written.

A part is the unit of work and of failure: it writes files of its own name, whole or not at all, and says what is in them,
so a part that is done again replaces its files and changes nothing else.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any

from omr_ray.config.data import AtelierSource, DataConfig, FileSource
from omr_ray.data import filters
from omr_ray.data.filters import Limits, Picture, Rejected
from omr_ray.data.importers.atelier import Atelier
from omr_ray.data.importers.deepfashion import DeepFashionInShop, DeepFashionMultiModal
from omr_ray.data.importers.fashioniq import FashionIq
from omr_ray.data.importers.imagereward import ImageReward
from omr_ray.data.importers.json_forms import JsonDialogues, JsonPreferences
from omr_ray.data.importers.pairs import Hpdv2, Hpdv3, PickAPic
from omr_ray.data.importers.photographs import Photographs
from omr_ray.data.records import Broken, Importer, Look, Pair, Part, Talk
from omr_ray.data.splits import Shares, place_of
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
    files: list[str] = field(default_factory=list)

    def add(self, other: Mapping[str, Any]) -> None:
        for name in ("rows", "rejects", "pictures"):
            getattr(self, name).update(other[name])
        self.files += other["files"]

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


def write_part(config: DataConfig, index: int, number: int, part: Part, out: str) -> dict[str, Any]:
    """Part `number` of source `index`: writes its files below `out`, and returns its Counts as JSON."""
    source = config.sources[index]
    shares = Shares(**config.split.model_dump())
    importer = importer_of(source, shares)
    limits = Limits(**config.filters.model_dump(exclude={"missing_images"}))
    pictures = Pictures(getattr(importer, "folder", None), limits)
    maker = _Rows(
        source=importer.name,
        license=getattr(source, "license", None) or importer.license,
        limits=limits,
        shares=shares,
        keep_missing=config.filters.missing_images == "keep",
        look=pictures,
    )
    folder, counts, shards = Folder(out), Counts(), dict[str, Shard]()
    with ExitStack() as stack:
        for table, row, size in maker.rows(importer.records(part, pictures)):
            place = [row["split"], row["purpose"]] if "split" in row else []
            name = "/".join([table, *place, f"{index:02d}-{importer.name}-{number:06d}.parquet"])
            if name not in shards:
                shards[name] = stack.enter_context(Shard(folder, name, table))
            shards[name].add(row, size)
            if table == "rejects":
                counts.rejects[f"{importer.name}/{row['reason']}"] += 1
            else:
                counts.rows["/".join([importer.name, table, *place, row.get("negative", "")]).rstrip("/")] += 1
    counts.pictures[importer.name] += pictures.looked_at
    counts.files = list(shards)
    return counts.to_json()


@dataclass(frozen=True, kw_only=True)
class _Rows:
    source: str
    license: str
    limits: Limits
    shares: Shares
    keep_missing: bool
    look: Look

    def rows(self, records: Iterable[Pair | Talk | Broken]) -> Iterable[tuple[str, dict[str, Any], int]]:
        """(table, row, bytes of its images) for every record, a reject being a row too. Ids are unique here."""
        seen: set[tuple[type, str]] = set()
        for record in _guarded(records):
            try:
                if isinstance(record, Broken):
                    raise record.why
                if (type(record), record.id) in seen:
                    raise Rejected("duplicate_id", "another record has this id")
                seen.add((type(record), record.id))
                table, row = ("preferences", self._pair(record)) if isinstance(record, Pair) else ("dialogues", self._talk(record))
                images = [row["chosen"], row["rejected"]] if table == "preferences" else [turn["target"] for turn in row["rounds"]]
                yield table, row, sum(len(image["bytes"]) for image in images if image)
            except Rejected as why:
                told = {"id": _storable(record.id), "reason": why.reason, "detail": _storable(str(why))}
                yield "rejects", {"source": self.source, **told}, 0

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
            "id": filters.clean_text(record.id, self.limits),
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


def _guarded(records: Iterable[Pair | Talk | Broken]) -> Iterator[Pair | Talk | Broken]:
    """A file that cannot be read, or has other columns, is one reject: the rest of the build goes on."""
    try:
        yield from records
    except UserError as error:
        yield Broken(id="", why=Rejected("unreadable", str(error)))


def _storable(text: str) -> str:
    """`text` without what UTF-8 cannot hold."""
    return text.encode("utf-8", "replace").decode()[:500]
