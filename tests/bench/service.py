r"""How fast a running service answers, alone and with others, and whether it keeps its memory; prints one JSON object.

    .venv/bin/omr-ray serve configs/serve_atelier.yaml painting.steps=20 dialogue.reflection.threshold=0.25 \
        limits.concurrent_rounds=8 limits.requests_per_minute=10000
    .venv/bin/python -m tests.bench.service --url http://127.0.0.1:8000 --config configs/serve_atelier.yaml painting.steps=20 \
        dialogue.reflection.threshold=0.25

Users are those of the embedded world, each with wishes of their own. `alone`: one user, one round after the other: seconds to
the first preview, to the image, to the end of the round; `engine` is the same rounds in this process, without a service, and
`overhead` the ratio of the two medians of whole rounds, less one. `together`: --users at once: what was lost, and how far the
users' mean times are apart. `refused`: more rounds at once than an owner may have: how many answers were 429 with Retry-After.
`soak`: --soak-s seconds of users of whom three in ten stop their round: resident memory of every process of --pid, in MiB an hour.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import httpx2
import numpy as np
import psutil

from omr_ray.atelier.dialogues import make_dialogues
from omr_ray.config.serve import ServeConfig
from omr_ray.evaluation.interactive.in_process import EngineSystem, LoadedModels
from omr_ray.evaluation.interactive.talking import FULL, Said
from omr_ray.types import Dialogue

ROUND_S = 300.0
EVENT_BYTES = 64 * 2**20
ABORTED = 0.3
SAMPLE_S = 5.0


async def timed_round(
    client: httpx2.AsyncClient, session: str, utterance: str, seed: int, stop_after: float | None = None
) -> dict[str, Any]:
    """One round, followed by its events. stop_after: seconds after which it is cancelled."""
    began = time.perf_counter()
    last = (await client.get(f"/v1/sessions/{session}")).json()["last_event"]
    asked = await client.post(f"/v1/sessions/{session}/rounds", json={"utterance": utterance, "seed": seed})
    if asked.status_code != 202:
        return {"refused": asked.status_code, "retry_after": asked.headers.get("retry-after")}
    id, found = asked.json()["id"], {}
    if stop_after is not None:
        await asyncio.sleep(stop_after)
        await client.post(f"/v1/sessions/{session}/rounds/{id}/cancel")
    async with (
        asyncio.timeout(ROUND_S),
        client.sse(f"/v1/sessions/{session}/events", headers={"Last-Event-ID": str(last)}, max_event_size=EVENT_BYTES) as source,
    ):
        async for event in source:
            data = json.loads(event.data)
            if data.get("round", data.get("id")) != id:
                continue
            if event.event == "preview":
                found.setdefault("preview", time.perf_counter() - began)
            elif event.event == "round" and data["image"]:
                found.setdefault("image", time.perf_counter() - began)
            elif event.event == "done":
                return found | {"round": time.perf_counter() - began, "status": data["status"]}
    return found | {"status": "no end"}


async def talk(client: httpx2.AsyncClient, dialogue: Dialogue, number: int) -> list[dict[str, Any]]:
    """A session with all rounds of one dialogue."""
    session = (await client.post("/v1/sessions", json={})).json()["id"]
    return [await timed_round(client, session, round_.utterance, 100 * number + round_.index) for round_ in dialogue.rounds]


def summed(rounds: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Medians, and the slowest."""
    known = {name: [found[name] for found in rounds if name in found] for name in ("preview", "image", "round")}
    return {name: statistics.median(values) for name, values in known.items() if values} | {"slowest_round": max(known["round"])}


async def alone(client: httpx2.AsyncClient, dialogues: Sequence[Dialogue]) -> dict[str, Any]:
    rounds = [found for number, dialogue in enumerate(dialogues) for found in await talk(client, dialogue, number)]
    return {"rounds": len(rounds), "done": sum(found.get("status") == "done" for found in rounds)} | summed(rounds)


async def together(client: httpx2.AsyncClient, dialogues: Sequence[Dialogue]) -> dict[str, Any]:
    began = time.perf_counter()
    users = await asyncio.gather(*(talk(client, dialogue, 1000 + number) for number, dialogue in enumerate(dialogues)))
    rounds = [found for user in users for found in user]
    means = [statistics.mean(found["round"] for found in user) for user in users]
    return {
        "users": len(users),
        "rounds": len(rounds),
        "done": sum(found.get("status") == "done" for found in rounds),
        "slowest_user_to_fastest": max(means) / min(means),
        "rounds_per_s": len(rounds) / (time.perf_counter() - began),
    } | summed(rounds)


async def refused(client: httpx2.AsyncClient, dialogues: Sequence[Dialogue]) -> dict[str, Any]:
    async def one(number: int) -> dict[str, Any]:
        session = (await client.post("/v1/sessions", json={})).json()["id"]
        return await timed_round(client, session, dialogues[number % len(dialogues)].rounds[0].utterance, number)

    rounds = await asyncio.gather(*(one(number) for number in range(3 * len(dialogues))))
    no = [found for found in rounds if "refused" in found]
    return {
        "asked": len(rounds),
        "done": sum(found.get("status") == "done" for found in rounds),
        "refused": len(no),
        "with_429_and_retry_after": sum(found["refused"] == 429 and found["retry_after"] is not None for found in no),
    }


async def soak(client: httpx2.AsyncClient, dialogues: Sequence[Dialogue], seconds: float, pid: int) -> dict[str, Any]:
    """Users at once until the time is over; memory in straight lines over the second half."""
    end, counts = time.monotonic() + seconds, {"done": 0, "cancelled": 0, "other": 0}
    sizes: dict[str, list[tuple[float, float]]] = {}

    async def user(number: int) -> None:
        rng = random.Random(number)
        while time.monotonic() < end:
            session = (await client.post("/v1/sessions", json={})).json()["id"]
            for round_ in dialogues[rng.randrange(len(dialogues))].rounds:
                stop = rng.uniform(0, 1.5) if rng.random() < ABORTED else None
                status = (await timed_round(client, session, round_.utterance, rng.randrange(2**31), stop)).get("status")
                counts[status if status in counts else "other"] += 1
            await client.delete(f"/v1/sessions/{session}")

    async def watch() -> None:
        while time.monotonic() < end:
            for name, size in memory(pid):
                sizes.setdefault(name, []).append((time.monotonic(), size))
            await asyncio.sleep(SAMPLE_S)

    await asyncio.gather(watch(), *(user(number) for number in range(4)))
    processes = {}
    for name, values in sizes.items():
        times, mib = np.array(values[len(values) // 2 :]).T
        if len(times) > 2:
            processes[name] = {"mib": mib[-1], "mib_per_hour": 3600 * float(np.polyfit(times - times[0], mib, 1)[0])}
    return {"seconds": seconds, "rounds": counts, "processes": processes}


def memory(pid: int) -> Iterator[tuple[str, float]]:
    """Resident MiB of every replica below a process."""
    for process in psutil.Process(pid).children(recursive=True):
        try:
            name = process.cmdline()[0]
            if name.startswith("ray::"):
                yield f"{name} {process.pid}", process.memory_info().rss / 2**20
        except (psutil.Error, IndexError):
            continue


def engine(config: ServeConfig, dialogues: Sequence[Dialogue]) -> float:
    """Median seconds of a round without a service; the first dialogue is not counted."""
    models = LoadedModels(config)
    seconds = []
    for number, dialogue in enumerate([dialogues[0], *dialogues]):
        system = EngineSystem(models, config, FULL)
        for round_ in dialogue.rounds:
            began = time.perf_counter()
            system.turns([Said(talk=number, turn=round_.index, seed=100 * number + round_.index, utterance=round_.utterance)])
            seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[len(dialogues[0].rounds) :])


async def measure(options: argparse.Namespace, dialogues: Sequence[Dialogue]) -> dict[str, Any]:
    async with httpx2.AsyncClient(base_url=options.url, timeout=ROUND_S) as client:
        await talk(client, dialogues[0], 99)  # not counted
        found: dict[str, Any] = {}
        for name, result in (
            ("alone", alone(client, dialogues[: options.users])),
            ("together", together(client, dialogues[: options.users])),
            ("refused", refused(client, dialogues[: options.users])),
        ):
            found[name] = await result
            print(json.dumps({name: found[name]}), file=sys.stderr, flush=True)
        if options.soak_s:
            found["soak"] = await soak(client, dialogues, options.soak_s, options.pid)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="of the service's config")
    parser.add_argument("--config", required=True)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--users", type=int, default=8)
    parser.add_argument("--soak-s", type=float, default=0.0)
    parser.add_argument("--pid", type=int, help="of the service, for the soak")
    options = parser.parse_args()
    dialogues = make_dialogues("heldout", 2 * options.users, rounds=3)
    found = asyncio.run(measure(options, dialogues))
    found["engine"] = engine(ServeConfig.load(options.config, options.overrides), dialogues[: options.users])
    found["overhead"] = found["alone"]["round"] / found["engine"] - 1
    print(json.dumps(found))


if __name__ == "__main__":
    main()
