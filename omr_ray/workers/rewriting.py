"""Prompt augmentation (TDRI section 4.3.3): a language model rewrites every prompt before the diffusion model paints it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from omr_ray.config.comparison import Augmented
from omr_ray.data.store import Folder, read_json
from omr_ray.evaluation.generating import Generate
from omr_ray.evaluation.stored import slug
from omr_ray.loading import language_model_from
from omr_ray.types import UserError
from omr_ray.vlm.engine import NoAnswer
from omr_ray.vlm.structured import ask_each
from omr_ray.vlm.templates import DATA, Prompt, Template

if TYPE_CHECKING:
    from omr_ray.workers.painters import PolicyPainter

INSTRUCTION = (
    "You improve prompts for a text-to-image model. Rewrite the prompt so that what the user most likely wants becomes clear. "
    'Keep everything it says and add plausible detail. Answer {"prompt":"..."}.'
)


class RewritingPainter:
    """Paints rewritten prompts. What each became is kept in rewritten/MODEL.json, so it is asked for once, cut off or not.

    A prompt that the language model has no valid answer for is painted as it is: null in that file, and counted in `weights`.
    """

    def __init__(self, painter: PolicyPainter, model: Augmented, folder: Folder) -> None:
        self.sha256, self._painter, self._name, self._folder = painter.sha256, painter, model.name, folder
        self._template = Template(instruction=INSTRUCTION + DATA, form=Prompt, max_tokens=model.max_tokens)
        self._said = getattr(model.language, "model", None) or getattr(model.language, "path", "")
        self._language = language_model_from(model.language)
        self._file = f"rewritten/{slug(model.name)}.json"
        self._rewritten: dict[str, str | None] = read_json(folder, self._file) if folder.exists(self._file) else {}

    @property
    def weights(self) -> str:
        changed = sum(new not in (None, old) for old, new in self._rewritten.items())
        failed = sum(new is None for new in self._rewritten.values())
        counted = f"{changed} of {len(self._rewritten)} changed, {failed} without a valid answer left as they were"
        return f"{self._painter.weights}, prompts rewritten by {self._said} ({counted})"

    @property
    def generate(self) -> Generate:
        paint = self._painter.generate

        def rewritten(
            prompts: Sequence[str], *, seeds: Sequence[int], from_latents: Any = None, strength: float = 1.0
        ) -> tuple[np.ndarray, Any]:
            self._rewrite([prompt for prompt in dict.fromkeys(prompts) if prompt not in self._rewritten])
            texts = [self._rewritten[prompt] or prompt for prompt in prompts]
            return paint(texts, seeds=seeds, from_latents=from_latents, strength=strength)

        return rewritten

    def _rewrite(self, prompts: Sequence[str]) -> None:
        """Raises UserError where the language model cannot be reached."""
        if not prompts:
            return
        try:
            answers = ask_each(self._language, [self._template(prompt=prompt) for prompt in prompts])
        except NoAnswer as error:
            raise UserError(f"model {self._name!r}: {error}") from None
        self._rewritten |= {
            prompt: answer.prompt if isinstance(answer, Prompt) else None for prompt, answer in zip(prompts, answers, strict=True)
        }
        self._folder.write(self._file, json.dumps(self._rewritten, indent=0, ensure_ascii=False).encode())
