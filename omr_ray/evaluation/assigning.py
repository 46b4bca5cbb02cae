"""Blind pairs of last rounds, who is behind them, and who sees which in what order (OMR section 4.3)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from omr_ray.config.comparison import ComparisonConfig
from omr_ray.evaluation import votes
from omr_ray.evaluation.papers.people import ASSIGNMENTS, KEY
from omr_ray.evaluation.papers.result import DIALOGUES
from omr_ray.evaluation.stored import MadeImage, Results
from omr_ray.types import Dialogue


def assign_votes(results: Results, config: ComparisonConfig, models: Sequence[str], dialogues: Sequence[Dialogue]) -> None:
    """votes/: the images, pairs.jsonl that annotators see, the key that they do not see, and assignments.json."""
    models = [name for name in models if results.parts(name, DIALOGUES)]
    folder = results.folder
    if len(models) < 2:
        return
    made: dict[str, dict[tuple, MadeImage]] = {name: {} for name in models}
    for name in models:
        for one in results.all_images(name, DIALOGUES):
            if one.sibling == 0:
                made[name][one.dialogue, one.round, 0, one.prompt] = one
    last = {held.id: held.rounds[-1].index for held in dialogues[: config.voted_dialogues]}
    items = [place for place in made[models[0]] if last.get(place[0]) == place[1] and all(place in made[name] for name in models)]
    pairs = votes.blind_pairs(items, models, config.seed)
    files: dict[tuple, str] = {}
    for place in items:
        for name in models:
            content = made[name][place].image
            files[name, place] = f"votes/images/{hashlib.sha256(content).hexdigest()}.png"
            if not folder.exists(files[name, place]):
                folder.write(files[name, place], content)
    shown = [
        {"id": pair.id, "prompt": pair.prompt}
        | {side: files[getattr(pair, side), (pair.dialogue, pair.round, pair.sibling, pair.prompt)] for side in ("left", "right")}
        for pair in pairs
    ]
    annotators = [f"annotator-{number}" for number in range(1, config.annotators + 1)]
    folder.write("votes/pairs.jsonl", "".join(f"{json.dumps(pair)}\n" for pair in shown).encode())
    folder.write(KEY, json.dumps(votes.key_of(pairs), indent=1).encode())
    folder.write(ASSIGNMENTS, json.dumps(votes.cross_over(pairs, annotators, config.seed), indent=1).encode())
