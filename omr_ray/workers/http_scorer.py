"""A reward over HTTP: PNG in JSON, tried again where that may help, and bounded in time and size."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
import math
import time
from collections.abc import Sequence
from email.utils import parsedate_to_datetime
from typing import Any

import httpx2
import numpy as np
import tenacity
from PIL import Image

from omr_ray.config.rewards import LONGEST_PAUSE_S, HttpScorer
from omr_ray.types import UserError

logger = logging.getLogger(__name__)

MAX_ANSWER_BYTES = 2**20
BACKOFF = tenacity.wait_exponential_jitter(multiplier=0.5, max=LONGEST_PAUSE_S, jitter=0.5)  # 0.5, 1, 2, ... s, and up to half a second


class _TryAgain(Exception):
    """A fault that may be over soon."""

    def __init__(self, reason: str, pause: float = 0.0) -> None:
        super().__init__(reason)
        self.pause = pause  # seconds, as the server asked for


class _NoScores(Exception):
    """An answer that holds no scores: asking again would not help."""


class HttpClient:
    """Scores of images u8 [N H W 3] under N prompts from the server at `scorer.url`; see HttpScorer for the protocol.

    Raises UserError for a status that says that the request itself is wrong.
    """

    def __init__(self, scorer: HttpScorer) -> None:
        try:
            httpx2.URL(scorer.url)
        except httpx2.InvalidURL as error:
            raise UserError(f"rewards.terms: url {scorer.url!r} cannot be read ({error}); write http://host:port/path") from None
        self._scorer = scorer

    def __call__(self, images: np.ndarray, prompts: Sequence[str]) -> list[float | None]:
        body = {"images": [base64.b64encode(png(image)).decode() for image in images], "prompts": [str(prompt) for prompt in prompts]}
        try:
            return asyncio.run(self._until_answered(json.dumps(body).encode(), len(images)))
        except (_TryAgain, _NoScores) as error:
            logger.warning("%s: %s; the scores of %d images are missing", self._scorer.url, error, len(images))
            return [None] * len(images)

    async def _until_answered(self, body: bytes, count: int) -> list[float | None]:
        tries = tenacity.AsyncRetrying(
            stop=tenacity.stop_after_attempt(self._scorer.attempts),
            wait=_pause,
            retry=tenacity.retry_if_exception_type(_TryAgain),
            reraise=True,
        )
        async with httpx2.AsyncClient() as client:
            return await tries(self._ask, client, body, count)

    async def _ask(self, client: httpx2.AsyncClient, body: bytes, count: int) -> list[float | None]:
        try:
            # The library's own limits count from one byte to the next; this one is for the whole request.
            async with asyncio.timeout(self._scorer.timeout_s):
                status, content = await self._exchange(client, body)
        except TimeoutError:
            raise _TryAgain(f"no answer within {self._scorer.timeout_s:g} s") from None
        except httpx2.TransportError as error:
            raise _TryAgain(f"{type(error).__name__}: {error}") from None
        if not 200 <= status < 300:
            said = " ".join(content.decode(errors="replace").split())[:200]
            raise UserError(f"rewards.terms: {self._scorer.url} answered with status {status} ({said}); mend the url or the server")
        return scores_in(content, count)

    async def _exchange(self, client: httpx2.AsyncClient, body: bytes) -> tuple[int, bytes]:
        # Not compressed: a small answer could unpack to any size.
        headers = {"content-type": "application/json", "accept-encoding": "identity"}
        async with client.stream("POST", self._scorer.url, content=body, headers=headers, timeout=None) as response:
            if response.status_code == 429 or response.status_code >= 500:
                pause = _seconds(response.headers.get("retry-after"))
                if pause > LONGEST_PAUSE_S:
                    raise _NoScores(f"status {response.status_code}, and not to be asked again for {pause:g} s")
                raise _TryAgain(f"status {response.status_code}", pause)
            content = bytearray()
            async for chunk in response.aiter_raw():
                content += chunk
                if len(content) > MAX_ANSWER_BYTES:
                    break
            return response.status_code, bytes(content)


def png(image: np.ndarray) -> bytes:
    """An image u8 [H W 3] as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def scores_in(content: bytes, count: int) -> list[float | None]:
    """The `count` scores of an answer; what is no finite number is None. Raises _NoScores for another form."""
    if len(content) > MAX_ANSWER_BYTES:
        raise _NoScores(f"the answer has more than {MAX_ANSWER_BYTES} bytes")
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _NoScores(f"the answer is not JSON ({type(error).__name__})") from None
    scores = answer.get("scores") if isinstance(answer, dict) else None
    if not isinstance(scores, list) or len(scores) != count:
        found = f"{len(scores)} of them" if isinstance(scores, list) else "none"
        raise _NoScores(f'the answer must be {{"scores": [...]}} with {count} scores, got {found}')
    return [_known(score) for score in scores]


def _known(score: Any) -> float | None:
    if isinstance(score, bool) or not isinstance(score, int | float):
        return None
    try:
        number = float(score)
    except OverflowError:  # an integer of hundreds of digits
        return None
    return number if math.isfinite(number) else None


def _seconds(retry_after: str | None) -> float:
    """Retry-After (RFC 9110, section 10.2.3), a number or a date, in seconds from now; 0 where it is neither."""
    if retry_after is None:
        return 0.0
    if retry_after.isdecimal():
        return float(retry_after)
    try:
        return parsedate_to_datetime(retry_after).timestamp() - time.time()
    except ValueError:
        return 0.0


def _pause(state: tenacity.RetryCallState) -> float:
    """The longer of the back-off and what the server asked for."""
    fault = state.outcome.exception() if state.outcome else None
    return max(BACKOFF(state), fault.pause if isinstance(fault, _TryAgain) else 0.0)
