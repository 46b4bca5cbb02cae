"""ImageReward (arXiv:2304.05977): prompts with images that people ranked. The prompt is the group.

test.json                 [{"id", "prompt", "generations": [path, ...], "ranking": [1 is best, ties and gaps occur]}]
metadata-*.parquet        image_path, prompt_id, prompt, rank: one row an image, those of a prompt together
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations, groupby

from omr_ray.data.filters import Rejected
from omr_ray.data.importers import json_stream, parquet_rows
from omr_ray.data.records import Broken, Look, Pair, Part, Record
from omr_ray.data.store import Folder


class ImageReward:
    name, license = "imagereward", "Apache-2.0"

    def __init__(self, path: str) -> None:
        self.folder = Folder(path)

    def parts(self, size: int) -> list[Part]:
        files = [name for name, _ in self.folder.files((".json", ".parquet")) if not name.endswith("benchmark-prompts.json")]
        parts: list[Part] = []
        for name in files:
            ranges = parquet_rows.ranges if name.endswith(".parquet") else json_stream.ranges
            parts += ranges(self.folder, name, max(1, size // 8))
        return parts

    def records(self, part: Part, look: Look) -> Iterator[Record]:
        if part["file"].endswith(".json"):
            yield from json_stream.items(self.folder, part, self._json)
            return
        columns = ("prompt_id", "prompt", "image_path", "rank")
        rows = parquet_rows.rows(self.folder, part, columns, whole="prompt_id")
        for (id_, prompt), images in groupby(rows, key=lambda row: (row["prompt_id"], row["prompt"])):
            ranked = [(row["image_path"], row["rank"]) for row in images]
            yield from ranked_pairs(id_, prompt, [path for path, _ in ranked], [rank for _, rank in ranked])

    def _json(self, number: int, item: object) -> Iterator[Record]:
        id_, prompt, images, ranking = json_stream.fields(item, id=str, prompt=str, generations=list, ranking=list)
        if len(images) != len(ranking):
            raise Rejected("malformed", f"{len(images)} generations but {len(ranking)} ranks")
        yield from ranked_pairs(id_, prompt, images, ranking)


def ranked_pairs(id_: str, prompt: str, images: Sequence[str], ranking: Sequence[int]) -> Iterator[Record]:
    """Every two images of a prompt, the better ranked one first; equal ranks are a tie, which teaches nothing and is counted."""
    if any(not isinstance(rank, int) or isinstance(rank, bool) for rank in ranking) or any(not isinstance(name, str) for name in images):
        raise Rejected("malformed", f"images must be paths and ranks whole numbers, got {list(ranking)!r:.60}")
    for i, j in combinations(range(len(images)), 2):
        name = f"{id_}/{i}/{j}"
        if ranking[i] == ranking[j]:
            yield Broken(id=name, why=Rejected("tie", f"both are ranked {ranking[i]}"))
            continue
        better, worse = (i, j) if ranking[i] < ranking[j] else (j, i)
        yield Pair(id=name, group=prompt, prompt=prompt, negative="ranked", chosen=images[better], rejected=images[worse])
