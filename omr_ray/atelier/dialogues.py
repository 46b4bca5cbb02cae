"""Dialogues of the embedded world: a hidden scene, approached by wishes and changes of mind.

The first utterance names two to four aspects, content always among them. Each later one adds or overwrites one
or two. A round's prompt is everything asked for so far in its latest form (OMR eq. 1); a round's target shows
exactly that, and leaves what was not named as it was: consecutive targets are edits of one picture.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

from omr_ray.atelier.render import render
from omr_ray.atelier.world import ASPECTS, VALUES, Scene, prompt_of, random_scene, utterance
from omr_ray.types import Dialogue, Round, UserError

Split = Literal["train", "heldout"]
SPLITS: tuple[Split, ...] = ("train", "heldout")
Turn = tuple[dict[str, str], dict[str, str], Scene]  # what is asked for now, everything asked for so far, the scene that shows it
_NEW_ASPECT = 0.65  # chance that a later wish names a new aspect rather than overwriting a named one


def split_of(scene: Scene) -> Split:
    """The split an intent belongs to, by a hash of the scene: four fifths train, the rest held out."""
    digest = hashlib.sha256(prompt_of(scene.aspects()).encode()).digest()
    return "heldout" if digest[0] % 5 == 0 else "train"


def make_dialogues(split: Split, count: int, *, rounds: int = 4, seed: int = 0) -> list[Dialogue]:
    """The first `count` dialogues of a split: the same ones for the same split, rounds and seed, whatever the count.

    Raises UserError for another split than "train" or "heldout", or fewer than one round.
    """
    return [dialogue_at(split, index, rounds=rounds, seed=seed) for index in range(count)]


def dialogue_at(split: Split, index: int, *, rounds: int = 4, seed: int = 0) -> Dialogue:
    """Dialogue number `index` of a split, made without making the ones before it.

    Example: dialogue_at("train", 7).rounds[1].prompt == "a small red coat on a beach". Raises UserError as `make_dialogues`.
    """
    if split not in SPLITS:
        raise UserError(f"a split of the embedded world is one of {', '.join(SPLITS)}, got {split!r}; choose one of them")
    if rounds < 1:
        raise UserError(f"a dialogue needs at least one round, got rounds={rounds}; ask for 1 or more")
    key = [seed, SPLITS.index(split), index]
    rng = np.random.default_rng(key)
    turns = draw_turns(split, rounds, rng)
    return Dialogue(
        id=f"{split}-{seed}-{index:06d}",
        intent=prompt_of(turns[-1][2].aspects()),
        rounds=tuple(
            Round(
                index=number,
                utterance=utterance(wish, rng, first=number == 1),
                prompt=prompt_of(named),
                # The generator starts anew for each round: the same place, hue and light.
                target=render(scene, np.random.default_rng([*key, 1])),
            )
            for number, (wish, named, scene) in enumerate(turns, start=1)
        ),
    )


def draw_turns(split: Split, rounds: int, rng: np.random.Generator) -> list[Turn]:
    """The turns of a dialogue. Intents of the other split are drawn again, so that no intent is ever in both."""
    while split_of((turns := list(_turns(rounds, rng)))[-1][2]) != split:
        pass
    return turns


def _turns(rounds: int, rng: np.random.Generator) -> Iterator[Turn]:
    scene = random_scene(rng)
    others = [str(aspect) for aspect in rng.permutation([aspect for aspect in ASPECTS if aspect != "content"])]
    count = int(rng.integers(1, 4))
    wish = {aspect: getattr(scene, aspect) for aspect in ("content", *others[:count])}
    named, unnamed = dict(wish), others[count:]
    yield wish, dict(named), scene
    for _ in range(rounds - 1):
        wish = {}
        for _ in range(int(rng.integers(1, 3))):
            known = [aspect for aspect in named if aspect not in wish]
            if unnamed and rng.random() < _NEW_ASPECT:
                aspect = unnamed.pop()
            else:
                aspect = str(rng.choice(known))
            # Always another value than the picture shows, so that every wish is a visible edit.
            wish[aspect] = str(rng.choice([value for value in VALUES[aspect] if value != getattr(scene, aspect)]))
        named |= wish
        scene = scene.with_aspects(wish)
        yield wish, {aspect: named[aspect] for aspect in ASPECTS if aspect in named}, scene


def contact_sheet(path: str | Path, *, count: int = 6, rounds: int = 4, seed: int = 0, split: Split = "train") -> str:
    """Draw dialogues into a PNG, one row each, every target above what the user said; returns the path."""
    cell, text_height = 192, 40
    sheet = Image.new("RGB", (rounds * cell, count * (cell + text_height)), "white")
    draw = ImageDraw.Draw(sheet)
    for row, dialogue in enumerate(make_dialogues(split, count, rounds=rounds, seed=seed)):
        for column, turn in enumerate(dialogue.rounds):
            x, y = column * cell, row * (cell + text_height)
            sheet.paste(Image.fromarray(np.asarray(turn.target)).resize((cell, cell), Image.Resampling.NEAREST), (x, y))
            draw.multiline_text((x + 3, y + cell + 2), _wrap(turn.utterance, 34), fill="black", font_size=10, spacing=1)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
    return str(path)


def _wrap(text: str, width: int) -> str:
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)
