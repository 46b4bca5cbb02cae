r"""How fast a running service answers, alone and with others, and whether it keeps its memory; prints one JSON object.

    .venv/bin/omr-ray serve configs/serve_atelier.yaml painting.steps=20 dialogue.reflection.threshold=0.25 \
        limits.concurrent_rounds=8 limits.requests_per_minute=10000
    .venv/bin/python -m tests.bench.service --url http://127.0.0.1:8000 --config configs/serve_atelier.yaml painting.steps=20 \
        dialogue.reflection.threshold=0.25

Users are those of the embedded world, each with wishes of their own. `alone`: one user, one round after the other: seconds to
the first preview, to the image, to the end of the round; `engine` is the same rounds in this process, without a service, and
`overhead` the ratio of the two medians of whole rounds, less one. `together`: --users at once: what was lost, and how far the
users' mean times are apart. `refused`: more rounds at once than an owner may have: how many answers were 429 with Retry-After.
`soak`: --soak-s seconds of users who give up three in ten of their rounds (they cancel, close the page and delete the session, or
hang up on a request for an image): memory of every process below --pid, in MiB an hour with its noise, and what was left running.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import httpx2

from omr_ray.atelier.dialogues import make_dialogues
from omr_ray.config.serve import ServeConfig
from omr_ray.evaluation.interactive.in_process import EngineSystem, LoadedModels
from omr_ray.evaluation.interactive.talking import FULL, Said
from omr_ray.types import Dialogue
from tests.bench.soak import soak

ROUND_S = 300.0
EVENT_BYTES = 64 * 2**20


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
    try:
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
    except TimeoutError:
        pass
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
            found["soak"] = await soak(client, dialogues, options.soak_s, options.pid, timed_round)
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
    if options.soak_s and options.pid is None:
        parser.error("--soak-s watches the memory of a service on this machine; give its --pid too")
    dialogues = make_dialogues("heldout", 2 * options.users, rounds=3)
    found = asyncio.run(measure(options, dialogues))
    found["engine"] = engine(ServeConfig.load(options.config, options.overrides), dialogues[: options.users])
    found["overhead"] = found["alone"]["round"] / found["engine"] - 1
    print(json.dumps(found))


if __name__ == "__main__":
    main()
