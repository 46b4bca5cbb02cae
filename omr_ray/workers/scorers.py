"""From the config of a term to what scores it. A scorer takes images u8 [N H W 3] and N prompts, and returns N scores."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from omr_ray.config.rewards import HttpScorer, ImageRewardScorer, Term
from omr_ray.config.run import RunConfig
from omr_ray.loading import device_for
from omr_ray.types import UserError

logger = logging.getLogger(__name__)

Score = Callable[[np.ndarray, Sequence[str]], list[float | None]]


def scorer_from(term: Term, config: RunConfig) -> Score:
    """What scores `term` in a reward worker. Raises UserError where it cannot be loaded."""
    scorer = term.scorer
    if isinstance(scorer, HttpScorer):
        from omr_ray.workers.http_scorer import HttpClient

        return HttpClient(scorer)
    if isinstance(scorer, ImageRewardScorer):
        from omr_ray.vlm.image_reward import ImageReward

        model = ImageReward.load(scorer.path, dtype=scorer.dtype, device=device_for(config.workers.reward, "reward"))
        return lambda images, prompts: model.score(images, prompts).tolist()
    return _guarded(imported(scorer.path), scorer.path)


def imported(path: str) -> Callable[..., Any]:
    """The function at "package.module:function". Raises UserError where there is none."""
    module, name = path.split(":")
    try:
        function = getattr(importlib.import_module(module), name, None)
    # It is the user's module: whatever it raises while it is imported is for the user to see.
    except Exception as error:
        raise UserError(
            f"rewards.terms: {path!r} cannot be imported ({_one_line(error)}); the module must lie in the working directory or be installed"
        ) from None
    if not callable(function):
        raise UserError(f"rewards.terms: {path!r}: module {module} has no function {name}; write package.module:function")
    return function


def _guarded(function: Callable[..., Any], path: str) -> Score:
    """`function` with its answer checked. Raises UserError for an answer that is not N numbers."""

    def score(images: np.ndarray, prompts: Sequence[str]) -> list[float | None]:
        try:
            answer = function(images, prompts)
        except UserError:
            raise
        # A reward that fails must not become the reward 0, and one image that it cannot judge must not end a run.
        except Exception:
            logger.exception("%s failed; the scores of %d images are missing", path, len(images))
            return [None] * len(images)
        return _numbers(answer, len(images), path)

    return score


def _numbers(answer: Any, count: int, path: str) -> list[float | None]:
    wanted = f"rewards.terms: {path} must return one number or None for each of its {count} images"
    try:
        values = list(answer)
        if any(isinstance(value, str | bytes) for value in values):
            raise TypeError("text among them")
        scores = [None if value is None else float(value) for value in values]
    except Exception as error:  # float() of a stranger's object may raise anything
        raise UserError(f"{wanted}, got {type(answer).__name__} ({_one_line(error)})") from None
    if len(scores) != count:
        raise UserError(f"{wanted}, got {len(scores)}")
    return scores


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
