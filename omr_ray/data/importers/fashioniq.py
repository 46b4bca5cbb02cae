"""FashionIQ (arXiv:1905.12794): what makes a target garment differ from a candidate, in two people's words.

    captions/cap.{dress,shirt,toptee}.{train,val}.json   [{"candidate", "target", "captions": [a, b]}]
    images/ASIN.jpg                                      some are gone from the shop

Every target has one candidate, so the pairs of a category form trees: a way from a root to a leaf is a dialogue, in which
each caption is what a user says of the picture before. All products of one tree are one group: they share dialogues.
The test captions have no target and say nothing that could be learned.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from omr_ray.data.filters import Rejected
from omr_ray.data.importers.json_stream import fields
from omr_ray.data.negatives import Fitting, mismatched
from omr_ray.data.records import Broken, Look, Part, Record, Talk, Turn
from omr_ray.data.splits import Shares, place_of
from omr_ray.data.store import Folder, read_json
from omr_ray.types import UserError

NOUN = {"dress": "dress", "shirt": "shirt", "toptee": "top"}


class FashionIq:
    name, license = "fashioniq", "CDLA-Permissive-1.0"

    def __init__(self, path: str, shares: Shares) -> None:
        self.folder, self.shares = Folder(path), shares

    def parts(self, size: int) -> list[Part]:
        names = [name for name, _ in self.folder.files((".json",), "captions") if ".test." not in name]
        parts: list[Part] = []
        for category in NOUN:
            files = [name for name in names if name.startswith(f"captions/cap.{category}.")]
            trees = _trees([edge for name in files for edge in self._edges(name)])
            parts += [{"category": category, "trees": bundle} for bundle in _bundles(trees, size)]
        if not parts:
            raise UserError(f"{self.folder.path}/captions: no cap.dress.train.json or the like in it; set path to where FashionIQ lies")
        return parts

    def records(self, part: Part, look: Look) -> Iterator[Record]:
        fitting: list[Fitting] = []
        for tree in part["trees"]:
            edges: dict[str, dict[str, Any]] = {}
            for edge in tree:
                try:
                    _check(edge, edges)
                    edges[edge["target"]] = edge
                except Rejected as why:
                    yield Broken(id=edge["id"], why=why)
            group = f"fashioniq/{min(name for edge in tree for name in (edge['candidate'], edge['target']))}"
            yield from _dialogues(edges, NOUN[part["category"]], group)
            fitting += [
                Fitting(
                    id=target,
                    group=group,
                    prompt=f"a {NOUN[part['category']]} that {said(edge)}",
                    image=image_of(target),
                )
                for target, edge in edges.items()
            ]
        yield from mismatched(fitting, lambda group: place_of(group, self.shares), [len(fitting)])

    def _edges(self, name: str) -> Iterator[dict[str, Any]]:
        items = read_json(self.folder, name)
        if not isinstance(items, list) or not items:
            raise UserError(f"{self.folder.shown(name)}: holds no caption; a list of candidate, target and captions is expected")
        for number, item in enumerate(items):
            item = item if isinstance(item, dict) else {}
            edge = {"id": f"{name}#{number}", "captions": item.get("captions")}
            yield edge | {end: str(item.get(end) or f"{name}#{number}") for end in ("candidate", "target")}


def image_of(asin: str) -> str:
    return f"images/{asin}.jpg"


def said(edge: Mapping[str, Any]) -> str:
    """Both captions of a pair as one sentence."""
    return " and ".join(caption.strip().rstrip(".").lower() for caption in edge["captions"])


def _check(edge: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Raises Rejected for an edge that cannot be one."""
    (captions,) = fields(edge, captions=list)
    if edge["candidate"] == edge["target"]:
        raise Rejected("malformed", "candidate and target must be two products")
    if not captions or not all(isinstance(caption, str) and caption.strip() for caption in captions):
        raise Rejected("text_missing", f"captions must be texts, got {captions!r:.80}")
    if edge["target"] in known:
        raise Rejected("duplicate_id", f"{edge['target']} is the target of two pairs")


def _dialogues(edges: Mapping[str, dict[str, Any]], noun: str, group: str) -> Iterator[Record]:
    """One dialogue for every way from a root to a leaf."""
    candidates = {edge["candidate"] for edge in edges.values()}
    for leaf in edges:
        if leaf in candidates:
            continue
        way: list[dict[str, Any]] = []
        node = leaf
        while node in edges and edges[node] not in way:  # data that runs in a circle ends where it began
            way.insert(0, edges[node])
            node = edges[node]["candidate"]
        prompts = [f"a {noun}"]
        for index, edge in enumerate(way):
            prompts.append(f"{prompts[-1]}{', then' if index else ' that'} {said(edge)}")
        turns = [Turn(utterance=f"i am looking for a {noun}", prompt=prompts[0], target=image_of(node))]
        turns += [
            Turn(utterance=said(edge), prompt=prompt, target=image_of(edge["target"]))
            for edge, prompt in zip(way, prompts[1:], strict=True)
        ]
        yield Talk(id=leaf, group=group, intent=prompts[-1], turns=tuple(turns))


def _trees(edges: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Edges whose products are linked, however far, in one list each (union-find)."""
    above: dict[str, str] = {}

    def root(name: str) -> str:
        while above.setdefault(name, name) != name:
            above[name] = above[above[name]]
            name = above[name]
        return name

    for edge in edges:
        above[root(edge["candidate"])] = root(edge["target"])
    trees: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for edge in edges:
        trees[root(edge["target"])].append(edge)
    return list(trees.values())


def _bundles(trees: Sequence[list[dict[str, Any]]], size: int) -> Iterator[list[list[dict[str, Any]]]]:
    """Trees, whole, until a bundle holds `size` edges."""
    bundle: list[list[dict[str, Any]]] = []
    for tree in trees:
        bundle.append(tree)
        if sum(map(len, bundle)) >= size:
            yield bundle
            bundle = []
    if bundle:
        yield bundle
