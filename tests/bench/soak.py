"""Users who give up in every way there is, for a while: does the service keep its memory, and does it still answer afterwards?"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import httpx2
import numpy as np
import psutil

from omr_ray.types import Dialogue

ABORTED = 0.3
USERS = 4
SAMPLE_S = 5.0
IDLE_WITHIN_S = 120.0

Round = Callable[..., Awaitable[dict[str, Any]]]  # service.timed_round


async def soak(client: httpx2.AsyncClient, dialogues: Sequence[Dialogue], seconds: float, pid: int, round_: Round) -> dict[str, Any]:
    """Users at once until the time is over; then nothing may be left running, and as many rounds at once as there were users must end.

    pid: of the service. Memory is judged over the second half: what is loaded when it is first used is loaded by then.
    """
    end, counts, samples = time.monotonic() + seconds, Counter[str](), list[tuple[float, dict[str, float]]]()

    async def user(number: int) -> None:
        rng = random.Random(number)
        while time.monotonic() < end:
            session = await _session(client)
            for said in dialogues[rng.randrange(len(dialogues))].rounds:
                way = rng.choice(tuple(WAYS)) if rng.random() < ABORTED else None
                given_up = WAYS[way](client, session, said.utterance, rng, round_) if way else None
                found = await (given_up or round_(client, session, said.utterance, rng.randrange(2**31)))
                counts[way or found.get("status") or "refused"] += 1
                if way == "deleted":
                    break
            else:
                await client.delete(f"/v1/sessions/{session}")

    async def watch() -> None:
        while time.monotonic() < end:
            samples.append((time.monotonic(), dict(memory(pid))))
            await asyncio.sleep(SAMPLE_S)

    await asyncio.gather(watch(), *(user(number) for number in range(USERS)))
    left = await _left_running(client)
    sessions = [await _session(client) for _ in range(USERS)]
    after = await asyncio.gather(*(round_(client, session, dialogues[0].rounds[0].utterance, 7) for session in sessions))
    names = sorted({name for _, sizes in samples for name in sizes})
    return {
        "seconds": seconds,
        "rounds": dict(counts),
        "left_running": left,
        "afterwards": {"rounds": USERS, "done": sum(found.get("status") == "done" for found in after)},
        "ended_or_new_processes": [name for name in names if not all(name in sizes for _, sizes in samples)],
        "processes": {name: trend(*_series(name, samples)) for name in names},
    }


# -- ways to give up -------------------------------------------------------------------------------------------------------


async def _cancelled(client: httpx2.AsyncClient, session: str, utterance: str, rng: random.Random, round_: Round) -> dict[str, Any]:
    """The round is cancelled, and followed to its end."""
    return await round_(client, session, utterance, rng.randrange(2**31), rng.uniform(0, 1.5))


async def _deleted(client: httpx2.AsyncClient, session: str, utterance: str, rng: random.Random, _: Round) -> dict[str, Any]:
    """The page is closed in mid-round, and its session deleted."""
    await client.post(f"/v1/sessions/{session}/rounds", json={"utterance": utterance})
    await _cut_off(client, rng, "GET", f"/v1/sessions/{session}/events")
    await client.delete(f"/v1/sessions/{session}")
    return {}


async def _hung_up(client: httpx2.AsyncClient, _: str, utterance: str, rng: random.Random, __: Round) -> dict[str, Any]:
    """The connection of a request for an image is closed before there is one."""
    body = {"prompt": utterance, "stream": True, "partial_images": 2}
    await _cut_off(client, rng, "POST", "/v1/images/generations", json=body)
    return {}


WAYS = {"cancelled": _cancelled, "deleted": _deleted, "hung_up": _hung_up}


async def _cut_off(client: httpx2.AsyncClient, rng: random.Random, method: str, path: str, **options: Any) -> None:
    try:
        async with asyncio.timeout(rng.uniform(0.1, 1.5)), client.stream(method, path, **options) as stream:
            async for _ in stream.aiter_bytes():
                pass
    except TimeoutError:
        pass


async def _session(client: httpx2.AsyncClient) -> str:
    return (await client.post("/v1/sessions", json={})).json()["id"]


async def _left_running(client: httpx2.AsyncClient) -> int:
    """Rounds that are open though nobody waits for them, when there are none any more or the time for that is over."""
    deadline = time.monotonic() + IDLE_WITHIN_S
    while True:
        lines = (await client.get("/metrics")).text.splitlines()
        open_ = [line for line in lines if line.startswith(('omr_serve_rounds{status="pending"}', 'omr_serve_rounds{status="running"}'))]
        left = int(sum(float(line.split()[-1]) for line in open_))
        if not left or time.monotonic() > deadline:
            return left
        await asyncio.sleep(1)


# -- memory ----------------------------------------------------------------------------------------------------------------


def memory(pid: int) -> Iterator[tuple[str, float]]:
    """MiB that each of Ray's processes below `pid` holds alone: what several share, the object store above all, is not counted."""
    for process in psutil.Process(pid).children(recursive=True):
        try:
            name = process.cmdline()[0]
            if name.startswith("ray::"):
                held = process.memory_info()
                yield f"{name.partition('.')[0]} {process.pid}", (held.rss - held.shared) / 2**20
        except (psutil.Error, IndexError):
            continue


def _series(name: str, samples: Sequence[tuple[float, dict[str, float]]]) -> tuple[np.ndarray, np.ndarray]:
    """The second half of a process's samples: seconds and MiB, f64 [N] each."""
    known = [(at, sizes[name]) for at, sizes in samples if name in sizes]
    times, mib = np.array(known[len(known) // 2 :]).T
    return times, mib


def trend(times: np.ndarray, mib: np.ndarray) -> dict[str, Any]:
    """A straight line through memory, seconds and MiB f64 [N]: its slope, and the slope's noise (two standard errors), in MiB an hour.

    Neighbouring samples are alike, so there is less to go by than N of them: with a correlation r of neighbouring residuals,
    N (1 - r) / (1 + r) (Santer et al. 2000, eq. 6). Where that leaves fewer than three, nothing can be said: noise is None.
    """
    x = times - times.mean()
    found: dict[str, Any] = {"mib": float(mib[-1]), "mib_per_hour": None, "noise": None, "grows": None}
    if len(x) < 3 or not x.any():
        return found
    slope = float(x @ mib / (x @ x))
    rest = mib - mib.mean() - slope * x
    error, alike = float(rest @ rest), float(rest[:-1] @ rest[1:])
    exact = error < 1e-12 * max(1.0, float(mib @ mib))
    r = 0.0 if exact else min(max(alike / error, 0.0), 0.999)
    count = len(x) * (1 - r) / (1 + r)
    found["mib_per_hour"] = 3600 * slope
    if count <= 2:
        return found
    noise = 0.0 if exact else 2 * (error / (count - 2) / float(x @ x)) ** 0.5
    return found | {"noise": 3600 * noise, "grows": slope > noise + 1e-12}
