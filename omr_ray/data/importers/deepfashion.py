"""DeepFashion, in-shop and MultiModal: photographs of products from several sides, and what the shop or a person says of them.

In-shop clothes retrieval (Liu et al., CVPR 2016)
    Anno/list_description_inshop.json            [{"item", "color", "description": [sentence, ...]}]
    Anno/list_bbox_inshop.txt                    a count, a header, then: image clothes_type pose_type x1 y1 x2 y2
    Img/img/WOMEN/Dresses/id_00000002/02_1_front.jpg
MultiModal (Jiang et al., SIGGRAPH 2022)
    captions.json                                {image name: caption}
    images/WOMEN-Dresses-id_00000002-02_1_front.jpg

The product is the group. In-shop dialogues walk round it: its kind first, its color next, then its other sides. MultiModal
dialogues say the caption sentence by sentence, about one photograph.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from omr_ray.data.filters import Rejected
from omr_ray.data.importers.json_stream import fields
from omr_ray.data.negatives import Fitting, mismatched
from omr_ray.data.records import Broken, Look, Part, Record, Talk, Turn
from omr_ray.data.splits import Shares, place_of
from omr_ray.data.store import Folder, read_json
from omr_ray.types import UserError

SIDE = {"1": "from the front", "2": "from the side", "3": "from the back", "4": "as a whole"}  # pose_type of list_bbox_inshop.txt
NOUN = {"Tees_Tanks": "top", "Blouses_Shirts": "blouse", "Sweatshirts_Hoodies": "sweatshirt", "Graphic_Tees": "t-shirt"}


class DeepFashionInShop:
    name, license = "deepfashion_inshop", "DeepFashion-noncommercial"

    def __init__(self, path: str, shares: Shares) -> None:
        self.folder, self.shares = Folder(path), shares

    def parts(self, size: int) -> list[Part]:
        told = read_json(self.folder, "Anno/list_description_inshop.json")
        if not isinstance(told, list) or not told:
            raise UserError(f"{self.folder.shown('Anno/list_description_inshop.json')}: holds no product; a list is expected")
        images: dict[str, list[list[str]]] = {}
        for name, _, pose, *_ in table_rows(self.folder, "Anno/list_bbox_inshop.txt", 7):
            images.setdefault(product_of(name), []).append([f"Img/{name}", pose])
        products = [{"product": item, "images": images.get(str(item.get("item")) if isinstance(item, dict) else "", [])} for item in told]
        per_part = max(1, size // 8)
        return [{"products": products[start : start + per_part], "start": start} for start in range(0, len(products), per_part)]

    def records(self, part: Part, look: Look) -> Iterator[Record]:
        fitting: list[Fitting] = []
        for number, product in enumerate(part["products"], start=part["start"]):
            try:
                item, color, sentences = fields(product["product"], item=str, color=str, description=list)
                images = [(name, SIDE[pose]) for name, pose in product["images"] if pose in SIDE]
                if not images:
                    raise Rejected("image_missing", f"list_bbox_inshop.txt has no image of {item} from a known side")
                noun = noun_of(images[0][0].split("/")[-3])
                prompt = f"a {color.lower()} {noun}"
                yield _walk_round(item, noun, prompt, images)
                said = ", ".join(str(sentence).strip().rstrip(".") for sentence in sentences[:1] if str(sentence).strip())
                fitting.append(Fitting(id=item, group=item, prompt=f"{prompt}, {said}" if said else prompt, image=images[0][0]))
            except Rejected as why:
                yield Broken(id=f"list_description_inshop.json#{number}", why=why)
        yield from mismatched(fitting, lambda group: place_of(group, self.shares), [part["start"]])


class DeepFashionMultiModal:
    name, license = "deepfashion_multimodal", "DeepFashion-noncommercial"

    def __init__(self, path: str, shares: Shares) -> None:
        self.folder, self.shares = Folder(path), shares

    def parts(self, size: int) -> list[Part]:
        captions = read_json(self.folder, "captions.json")
        if not isinstance(captions, dict) or not captions:
            raise UserError(f"{self.folder.shown('captions.json')}: holds no caption; an object of image names and captions is expected")
        items = sorted(captions.items())
        return [{"captions": items[start : start + size], "start": start} for start in range(0, len(items), size)]

    def records(self, part: Part, look: Look) -> Iterator[Record]:
        fitting: list[Fitting] = []
        for name, caption in part["captions"]:
            sentences = [sentence.strip() for sentence in re.split(r"(?<=\.)\s+", caption)] if isinstance(caption, str) else []
            if not any(sentences):
                yield Broken(id=name, why=Rejected("text_missing", f"a caption was expected, got {caption!r:.60}"))
                continue
            group, image = product_of(name.replace("-", "/")), f"images/{name}"
            prompts = [" ".join(sentences[: count + 1]) for count in range(len(sentences))]
            turns = tuple(Turn(utterance=said, prompt=prompt, target=image) for said, prompt in zip(sentences, prompts, strict=True))
            yield Talk(id=name, group=group, intent=prompts[-1], turns=turns)
            fitting.append(Fitting(id=name, group=group, prompt=prompts[-1], image=image))
        yield from mismatched(fitting, lambda group: place_of(group, self.shares), [part["start"]])


def product_of(name: str) -> str:
    """The product id in an image's path. Example: product_of("img/WOMEN/Dresses/id_00000002/02_1_front.jpg") == "id_00000002"."""
    found = re.search(r"id_\d+", name)
    return found.group() if found else name


def noun_of(kind: str) -> str:
    """What the shop's class is called in a prompt. Example: noun_of("Jackets_Vests") == "jacket"."""
    return NOUN.get(kind, kind.split("_")[0].lower().removesuffix("es" if kind.startswith("Dress") else "s"))


def table_rows(folder: Folder, name: str, columns: int) -> Iterator[Sequence[str]]:
    """Rows of the DeepFashion text tables: a count, a header, then the rows. Raises UserError for another form."""
    try:
        with folder.open(name) as opened:
            lines = opened.read().decode().splitlines()
        count = int(lines[0])
    except (UnicodeDecodeError, ValueError, IndexError) as error:
        raise UserError(f"{folder.shown(name)}: is not a DeepFashion table ({error}); its first line must be a count") from None
    rows = [line.split() for line in lines[2:] if line.strip()]
    wrong = [number for number, row in enumerate(rows, start=3) if len(row) != columns]
    if wrong or len(rows) != count:
        said = f"line {wrong[0]} has not {columns} columns" if wrong else f"{len(rows)} rows where the first line says {count}"
        raise UserError(f"{folder.shown(name)}: {said}; fetch the file again")
    yield from rows


def _walk_round(item: str, noun: str, prompt: str, images: Sequence[tuple[Any, str]]) -> Talk:
    """The kind, its color, and then every side that was photographed."""
    first = images[0][0]
    turns = [
        Turn(utterance=f"i am looking for a {noun}", prompt=f"a {noun}", target=first),
        Turn(utterance=f"i would like it as {prompt}", prompt=prompt, target=first),
    ]
    turns += [Turn(utterance=f"show it {side}", prompt=f"{prompt}, seen {side}", target=name) for name, side in images[1:]]
    return Talk(id=item, group=item, intent=turns[-1].prompt, turns=tuple(turns))
