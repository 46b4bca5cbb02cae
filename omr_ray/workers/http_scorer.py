"""A reward over HTTP: PNG in JSON, and scores back."""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections.abc import Sequence
from typing import Any

import httpx2
import numpy as np

from omr_ray.config.rewards import HttpScorer
from omr_ray.types import UserError
from omr_ray.vlm.http import Refused, Unanswered, png_base64, post_json, readable_url

logger = logging.getLogger(__name__)

MAX_ANSWER_BYTES = 2**20


class HttpClient:
    """Scores of images u8 [N H W 3] under N prompts from the server at `scorer.url`; see HttpScorer for the protocol.

    Raises UserError for a status that says that the request itself is wrong.
    """

    def __init__(self, scorer: HttpScorer) -> None:
        if not readable_url(scorer.url):
            raise UserError(f"rewards.terms: url {scorer.url!r} cannot be read; write http://host:port/path")
        self._scorer = scorer

    def __call__(self, images: np.ndarray, prompts: Sequence[str]) -> list[float | None]:
        body = {"images": [png_base64(image) for image in images], "prompts": [str(prompt) for prompt in prompts]}
        try:
            return scores_in(asyncio.run(self._post(json.dumps(body).encode())), len(images))
        except Unanswered as error:
            logger.warning("%s: %s; the scores of %d images are missing", self._scorer.url, error, len(images))
            return [None] * len(images)
        except Refused as error:
            raise UserError(f"rewards.terms: {self._scorer.url} {error}; mend the url or the server") from None

    async def _post(self, body: bytes) -> bytes:
        timeout_s, attempts = self._scorer.timeout_s, self._scorer.attempts
        async with httpx2.AsyncClient() as client:
            return await post_json(client, self._scorer.url, body, timeout_s=timeout_s, attempts=attempts, answer_bytes=MAX_ANSWER_BYTES)


def scores_in(content: bytes, count: int) -> list[float | None]:
    """The `count` scores of an answer; what is no finite number is None. Raises Unanswered for another form."""
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Unanswered(f"the answer is not JSON ({type(error).__name__})") from None
    scores = answer.get("scores") if isinstance(answer, dict) else None
    if not isinstance(scores, list) or len(scores) != count:
        found = f"{len(scores)} of them" if isinstance(scores, list) else "none"
        raise Unanswered(f'the answer must be {{"scores": [...]}} with {count} scores, got {found}')
    return [_known(score) for score in scores]


def _known(score: Any) -> float | None:
    if isinstance(score, bool) or not isinstance(score, int | float):
        return None
    try:
        number = float(score)
    except OverflowError:  # an integer of hundreds of digits
        return None
    return number if math.isfinite(number) else None
