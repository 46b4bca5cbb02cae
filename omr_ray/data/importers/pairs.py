"""Sources that are pairs already: a prompt, two images, and which of them people preferred.

Pick-a-Pic v2 (arXiv:2305.01569)  Parquet: caption, jpg_0, jpg_1, label_0, label_1; 0.5 and 0.5 is a tie
HPDv2 (arXiv:2306.09341)          JSON list: prompt, file_path [2], human_preference [2] of 0 and 1
HPDv3 (arXiv:2508.03789)          JSON list: prompt, path1 (preferred), path2
"""

from __future__ import annotations

from collections.abc import Iterator

from omr_ray.data.filters import Rejected
from omr_ray.data.importers import json_stream, parquet_rows
from omr_ray.data.records import Broken, Look, Pair, Part, Record
from omr_ray.data.store import Folder


class PickAPic:
    name, license = "pickapic", "MIT"

    def __init__(self, path: str) -> None:
        self.folder = Folder(path)

    def parts(self, size: int) -> list[Part]:
        return [part for name, _ in self.folder.files((".parquet",)) for part in parquet_rows.ranges(self.folder, name, size)]

    def records(self, part: Part, look: Look) -> Iterator[Record]:
        columns = ("caption", "jpg_0", "jpg_1", "label_0", "label_1")
        for number, row in enumerate(parquet_rows.rows(self.folder, part, columns), start=part["row"]):
            id_ = f"{part['file']}#{number}"
            try:
                first = preferred(row["label_0"], row["label_1"])
                images = (row["jpg_0"], row["jpg_1"]) if first == 0 else (row["jpg_1"], row["jpg_0"])
                if not all(isinstance(image, bytes) for image in images):
                    raise Rejected("image_missing", "jpg_0 and jpg_1 must both hold an image")
                yield _pair(id_, row["caption"], *images)
            except Rejected as why:
                yield Broken(id=id_, why=why)


class Hpdv2:
    name, license = "hpdv2", "Apache-2.0"

    def __init__(self, path: str) -> None:
        self.folder = Folder(path)

    def parts(self, size: int) -> list[Part]:
        return [part for name, _ in self.folder.files((".json",)) for part in json_stream.ranges(self.folder, name, size)]

    def records(self, part: Part, look: Look) -> Iterator[Record]:
        yield from json_stream.items(self.folder, part, lambda number, item: self._record(f"{part['file']}#{number}", item))

    def _record(self, id_: str, item: object) -> Iterator[Record]:
        prompt, paths, labels = json_stream.fields(item, prompt=str, file_path=list, human_preference=list)
        if len(paths) != 2 or len(labels) != 2 or not all(isinstance(path, str) for path in paths):
            raise Rejected("malformed", f"two paths and two preferences were expected, got {len(paths)} and {len(labels)}")
        first = preferred(*labels)
        yield _pair(id_, prompt, paths[first], paths[1 - first])


class Hpdv3(Hpdv2):
    name, license = "hpdv3", "MIT"

    def _record(self, id_: str, item: object) -> Iterator[Record]:
        prompt, better, worse = json_stream.fields(item, prompt=str, path1=str, path2=str)
        yield _pair(id_, prompt, better, worse)


def _pair(place: str, prompt: str, better: str | bytes, worse: str | bytes) -> Pair:
    return Pair(id=place, group=str(prompt), prompt=prompt, negative="ranked", chosen=better, rejected=worse, placed=True)


def preferred(label_0: object, label_1: object) -> int:
    """Which of two images is labelled 1, the other being 0. Raises Rejected for a tie and for anything else."""
    if label_0 == label_1 == 0.5:
        raise Rejected("tie", "both are labelled 0.5")
    if (label_0, label_1) not in ((1, 0), (0, 1)):
        raise Rejected("bad_label", f"labels must be 1 and 0, or both 0.5, got {label_0!r:.20} and {label_1!r:.20}")
    return 0 if label_0 == 1 else 1
