"""JSON posted to a server: tried again where that may help, and bounded in time and size."""

from __future__ import annotations

import asyncio
import base64
import io
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

import httpx2
import numpy as np
import tenacity
from PIL import Image

from omr_ray.config.rewards import LONGEST_PAUSE_S

BACKOFF = tenacity.wait_exponential_jitter(multiplier=0.5, max=LONGEST_PAUSE_S, jitter=0.5)  # 0.5, 1, 2, ... s, and up to half a second


class Unanswered(Exception):
    """No answer that is of use: all attempts failed, or asking again would not help."""


class Refused(Exception):
    """A status that says that the request itself is wrong."""

    def __init__(self, status: int, said: str) -> None:
        super().__init__(f"answered with status {status} ({said})")


class _TryAgain(Unanswered):
    """A fault that may be over soon."""

    def __init__(self, reason: str, pause: float = 0.0) -> None:
        super().__init__(reason)
        self.pause = pause  # seconds, as the server asked for


async def post_json(
    client: httpx2.AsyncClient,
    url: str,
    body: bytes,
    *,
    timeout_s: float,
    attempts: int,
    answer_bytes: int,
    headers: Mapping[str, str] | None = None,
) -> bytes:
    """The body of a 2xx answer, of at most `answer_bytes`.

    Connection faults, an answer that is not whole within `timeout_s`, status 429 and 5xx are tried again, later and
    later, not before Retry-After (RFC 9110, section 10.2.3). Raises Unanswered, and Refused for any other status.
    """
    tries = tenacity.AsyncRetrying(
        stop=tenacity.stop_after_attempt(attempts), wait=_pause, retry=tenacity.retry_if_exception_type(_TryAgain), reraise=True
    )
    # Not compressed: a small answer could unpack to any size.
    headers = {"content-type": "application/json", "accept-encoding": "identity", **(headers or {})}

    async def ask() -> bytes:
        try:
            # The library's own limits count from one byte to the next; this one is for the whole request.
            async with asyncio.timeout(timeout_s):
                status, content = await _exchange(client, url, body, headers, answer_bytes)
        except TimeoutError:
            raise _TryAgain(f"no answer within {timeout_s:g} s") from None
        except httpx2.TransportError as error:
            raise _TryAgain(f"{type(error).__name__}: {error}") from None
        if not 200 <= status < 300:
            raise Refused(status, " ".join(content.decode(errors="replace").split())[:200])
        if len(content) > answer_bytes:
            raise Unanswered(f"the answer has more than {answer_bytes} bytes")
        return content

    return await tries(ask)


async def _exchange(client: httpx2.AsyncClient, url: str, body: bytes, headers: Mapping[str, str], limit: int) -> tuple[int, bytes]:
    """Status and content, which is cut off soon after `limit` bytes."""
    async with client.stream("POST", url, content=body, headers=headers, timeout=None) as response:
        if response.status_code == 429 or response.status_code >= 500:
            pause = retry_after_s(response.headers.get("retry-after"))
            if pause > LONGEST_PAUSE_S:
                raise Unanswered(f"status {response.status_code}, and not to be asked again for {pause:g} s")
            raise _TryAgain(f"status {response.status_code}", pause)
        content = bytearray()
        async for chunk in response.aiter_raw():
            content += chunk
            if len(content) > limit:
                break
        return response.status_code, bytes(content)


def readable_url(url: str) -> bool:
    """Whether the HTTP library can read `url`."""
    try:
        httpx2.URL(url)
    except httpx2.InvalidURL:
        return False
    return True


def png_base64(image: np.ndarray) -> str:
    """An image u8 [H W 3] as a PNG file in base64."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def retry_after_s(retry_after: str | None) -> float:
    """Retry-After, a number or a date, in seconds from now; 0 where it is neither."""
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
