"""The embedded world: seven aspects of a pictured garment, and the English that names them.

The seven aspects are TDRI's (content, style, background, size, color, perspective, others).
A complete `Scene` fixes all of them; a partial description is a plain `dict[str, str]` of only the
aspects that were named. Text and description are exact inverses of each other:

    parse(prompt_of(d)) == d        parse(phrase(d, rng)) == d        parse(utterance(d, rng)) == d
"""

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass

import numpy as np

# Every value with its wordings; the first one is canonical. No wording occurs in two places, so
# that reading a sentence back needs no grammar.
WORDINGS: dict[str, dict[str, tuple[str, ...]]] = {
    "content": {
        "t-shirt": ("t-shirt", "tee"),
        "coat": ("coat", "overcoat"),
        "dress": ("dress", "gown"),
        "skirt": ("skirt",),
        "trousers": ("trousers", "pants"),
        "shorts": ("shorts",),
        "hat": ("hat", "sun hat"),
    },
    "style": {
        "plain": ("plain", "unpatterned"),
        "striped": ("striped", "stripy"),
        "dotted": ("dotted", "polka-dot"),
        "checked": ("checked", "checkered"),
    },
    "background": {
        "studio": ("in a studio", "against a studio wall"),
        "beach": ("on a beach", "by the sea"),
        "forest": ("in a forest", "among trees"),
        "city": ("in a city", "on a city street"),
        "snow": ("in the snow", "on a snowy hill"),
        "night": ("at night", "under the stars"),
    },
    "size": {
        "small": ("small", "little"),
        "medium": ("medium", "mid-sized"),
        "large": ("large", "big"),
    },
    "color": {
        "red": ("red", "scarlet"),
        "orange": ("orange", "tangerine"),
        "yellow": ("yellow", "lemon"),
        "green": ("green", "emerald"),
        "blue": ("blue", "azure"),
        "purple": ("purple", "violet"),
        "pink": ("pink", "rosy"),
        "black": ("black", "ebony"),
    },
    "perspective": {
        "front": ("seen from the front", "in front view"),
        "left": ("seen from the left", "in left view"),
        "right": ("seen from the right", "in right view"),
    },
    "others": {
        "none": ("without extras", "with nothing added"),
        "belt": ("with a belt", "with a waist belt"),
        "buttons": ("with buttons", "with a row of buttons"),
        "pocket": ("with a pocket", "with a patch pocket"),
    },
}
ASPECTS: tuple[str, ...] = tuple(WORDINGS)
VALUES: dict[str, tuple[str, ...]] = {aspect: tuple(words) for aspect, words in WORDINGS.items()}

_BEFORE_NOUN = ("size", "color", "style")
_AFTER_NOUN = ("others", "background", "perspective")
_UNNAMED_GARMENT = "garment"

_VALUE_OF_WORDING = {
    aspect: {wording: value for value, wordings in words.items() for wording in wordings} for aspect, words in WORDINGS.items()
}
# Longest first: "on a city street" must win over nothing shorter, "sun hat" over "hat".
_PATTERNS = {
    aspect: re.compile(r"(?<![\w-])(?:" + "|".join(map(re.escape, sorted(values, key=len, reverse=True))) + r")(?![\w-])")
    for aspect, values in _VALUE_OF_WORDING.items()
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One complete picture: a value for each of the seven aspects.

    Example: `Scene(content="coat", style="plain", background="snow", size="large", color="red",
    perspective="left", others="belt")`. Raises ValueError for a value the world does not have.
    """

    content: str
    style: str
    background: str
    size: str
    color: str
    perspective: str
    others: str

    def __post_init__(self) -> None:
        check_aspects(self.aspects())

    def aspects(self) -> dict[str, str]:
        """All seven aspects as a description, in the order of `ASPECTS`."""
        return asdict(self)

    def with_aspects(self, changes: Mapping[str, str]) -> "Scene":
        """The same scene with the named aspects overwritten."""
        return Scene(**{**self.aspects(), **changes})


def check_aspects(aspects: Mapping[str, str]) -> None:
    """Raise ValueError, naming what is known, for an aspect or a value the world does not have."""
    for aspect, value in aspects.items():
        if aspect not in VALUES:
            raise ValueError(f"unknown aspect {aspect!r}; the world has {', '.join(ASPECTS)}")
        if value not in VALUES[aspect]:
            raise ValueError(f"unknown {aspect} {value!r}; the world has {', '.join(VALUES[aspect])}")


def all_scenes() -> Iterator[Scene]:
    """Every scene of the world (48,384), in a fixed order."""
    for values in itertools.product(*VALUES.values()):
        yield Scene(**dict(zip(ASPECTS, values, strict=True)))


def random_scene(rng: np.random.Generator) -> Scene:
    """A scene with every aspect drawn uniformly."""
    return Scene(**{aspect: str(rng.choice(values)) for aspect, values in VALUES.items()})


def random_part(scene: Scene, rng: np.random.Generator, *, low: int = 2, high: int = 7) -> dict[str, str]:
    """A description naming `low`..`high` aspects of the scene, content nearly always among them."""
    count = int(rng.integers(low, high + 1))
    names = list(rng.permutation(ASPECTS)[:count])
    if "content" not in names and rng.random() < 0.9:
        names[0] = "content"
    return {aspect: getattr(scene, aspect) for aspect in ASPECTS if aspect in names}


def _sentence(words: Mapping[str, str]) -> str:
    before = [words[aspect] for aspect in _BEFORE_NOUN if aspect in words]
    after = [words[aspect] for aspect in _AFTER_NOUN if aspect in words]
    return " ".join(["a", *before, words.get("content", _UNNAMED_GARMENT), *after])


def prompt_of(aspects: Mapping[str, str]) -> str:
    """The canonical prompt of a description, e.g. "a small red striped coat with a belt in the snow".

    Raises ValueError for an aspect or a value the world does not have.
    """
    check_aspects(aspects)
    return _sentence({aspect: WORDINGS[aspect][value][0] for aspect, value in aspects.items()})


def phrase(aspects: Mapping[str, str], rng: np.random.Generator) -> str:
    """A paraphrase of the canonical prompt: other wordings, another order of clauses, an opening.

    Raises ValueError for an aspect or a value the world does not have.
    """
    check_aspects(aspects)
    words = {aspect: str(rng.choice(WORDINGS[aspect][value])) for aspect, value in aspects.items()}
    before = [words[aspect] for aspect in rng.permutation(_BEFORE_NOUN) if aspect in words]
    after = [words[aspect] for aspect in rng.permutation(_AFTER_NOUN) if aspect in words]
    opening = str(rng.choice(("a", "the", "a picture of a", "a photo of a", "one")))
    return " ".join([opening, *before, words.get("content", _UNNAMED_GARMENT), *after])


def utterance(aspects: Mapping[str, str], rng: np.random.Generator, *, first: bool = False) -> str:
    """What a user says to ask for these aspects: a first wish, or a change to what is shown.

    Raises ValueError for an aspect or a value the world does not have.
    """
    if first:
        opening = str(rng.choice(("i want", "please show me", "i am looking for", "can i see")))
        return f"{opening} {phrase(aspects, rng)}"
    check_aspects(aspects)
    words = {aspect: str(rng.choice(WORDINGS[aspect][value])) for aspect, value in aspects.items()}
    if "content" in words:
        words["content"] = f"a {words['content']}"
    opening = str(rng.choice(("make it", "now", "i would rather have it", "change it to be", "could it be")))
    return f"{opening} {' and '.join(words[aspect] for aspect in rng.permutation(list(words)))}"


def named_at(text: str) -> dict[str, int]:
    """For each aspect a lower-case text names, the index just behind its last wording."""
    mentions = {aspect: list(pattern.finditer(text)) for aspect, pattern in _PATTERNS.items()}
    return {aspect: found[-1].end() for aspect, found in mentions.items() if found}


def mentions(text: str) -> set[tuple[str, str]]:
    """Every (aspect, value) that a text mentions, overwritten ones too. Example: mentions("red, no, azure") has red and blue."""
    text = " ".join(text.lower().split())
    return {(aspect, _VALUE_OF_WORDING[aspect][said]) for aspect, pattern in _PATTERNS.items() for said in pattern.findall(text)}


def parse(text: str) -> dict[str, str]:
    """The aspects a text names, as canonical values, in the order of `ASPECTS`.

    Where a text names an aspect twice the last mention stands: a mind was changed.
    Words that name no aspect are passed over; a text that names none gives an empty dict.
    """
    text = " ".join(text.lower().split())
    found = {}
    for aspect, pattern in _PATTERNS.items():
        if mentions := pattern.findall(text):
            found[aspect] = _VALUE_OF_WORDING[aspect][mentions[-1]]
    return found
