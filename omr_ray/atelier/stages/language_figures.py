"""How often the embedded language model answers rightly, on intents and pictures that it has not learnt from."""

from collections.abc import Sequence

import numpy as np
from pydantic import ValidationError

from omr_ray.atelier.dialogues import split_of
from omr_ray.atelier.render import render
from omr_ray.atelier.stages.conversations import Conversations, Draw, Example
from omr_ray.atelier.world import ASPECTS, Scene, random_scene
from omr_ray.vlm.engine import LanguageModel

COUNT = 128  # conversations of each template


def fresh_render(rng: np.random.Generator) -> tuple[np.ndarray, Scene]:
    """A new render of a held-out scene, u8 [64 64 3]."""
    while split_of(scene := random_scene(rng)) != "heldout":
        pass
    return render(scene, rng), scene


def language_figures(model: LanguageModel, soft: Draw, *, count: int = COUNT, seed: int = 80_000) -> dict[str, float]:
    """Shares of right answers, whole answers and not words of them, by template and by aspect; `soft` draws pictures as the
    autoencoder and the policy give them back (`soft_*`), the others are renders. `orders` are dialogues that hold an order to the model.
    """
    rng = np.random.default_rng(seed)
    renders, softened = Conversations("heldout", fresh_render), Conversations("heldout", soft)
    sets = {f"describe_{aspect}": [renders.describe(aspect, rng) for _ in range(count)] for aspect in ASPECTS}
    sets |= {f"soft_{aspect}": [softened.describe(aspect, rng) for _ in range(count)] for aspect in ASPECTS}
    sets["split"] = [renders.split_prompt(rng) for _ in range(count)]
    sets["clarify"] = [renders.clarify(rng) for _ in range(count)]
    for name in ("to_prompt", "route", "in_words"):
        sets[name] = [getattr(renders, name)(1 + i % 4, rng) for i in range(count)]
    sets["orders"] = [renders.ordered(1 + i % 4, rng) for i in range(count)]
    figures = {name: right_share(model, examples) for name, examples in sets.items()}
    return figures | {f"{kind}_mean": float(np.mean([figures[f"{kind}_{aspect}"] for aspect in ASPECTS])) for kind in ("describe", "soft")}


def right_share(model: LanguageModel, examples: Sequence[Example]) -> float:
    """Share of the answers that are, read by their form, equal to the right ones."""
    longest = max(example.request.max_tokens for example in examples)
    said = model.complete([example.request.messages for example in examples], max_tokens=longest)
    return float(np.mean([_is_right(example, text) for example, text in zip(examples, said, strict=True)]))


def _is_right(example: Example, text: str) -> bool:
    form = example.request.form
    try:
        return bool(form.model_validate_json(text) == form.model_validate_json(example.answer))
    except ValidationError:
        return False
