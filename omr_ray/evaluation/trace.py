"""A run's timeline in the Chrome trace format (Trace Event Format, JSON object form), for Perfetto or chrome://tracing.

One track for the controller's phases (three where sampling, scoring and learning overlap) and one for every worker; times
are those of the controller's clock. Within a call of a worker lie the parts that the worker measured itself, placed at its
end: what is before them is the way there and the wait.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omr_ray.tracking import METRICS, SPANS, TIMINGS, read_metrics
from omr_ray.types import UserError

COUNTERS = {METRICS: ("reward/total", "reward/missing"), TIMINGS: ("rollout/images_per_s", "rollout/queue_peak", "reward/queue_peak")}
MICROSECONDS = 1e6
LOOP = ("controller", "sampling", "scoring")  # the controller's own tracks; the last two where rollouts overlap with learning


def write_trace(run: Path, out: Path) -> dict[str, Any]:
    """Read `run`/spans.jsonl and write the trace to `out`. Returns its path and what is in it.

    Raises UserError where the directory holds no spans.
    """
    spans = read_metrics(run / SPANS)
    if not spans:
        raise UserError(f"{run / SPANS}: holds no spans; wait for the first step of the run")
    tracks = _tracks(spans)
    start = min(span["begin"] for span in spans)
    events = [_metadata("process_name", 0, run.resolve().name)]
    events += [_metadata("thread_name", number, track) for track, number in tracks.items()]
    events += [_metadata("thread_sort_index", number, number) for number in tracks.values()]
    # An outer span first: viewers nest complete events of one track by their order where they begin together.
    for span in sorted(spans, key=lambda span: (span["begin"], -span["seconds"])):
        events.append(
            {
                "ph": "X",
                "name": span["name"],
                "cat": span["track"].split()[0],
                "pid": 0,
                "tid": tracks[span["track"]],
                "ts": (span["begin"] - start) * MICROSECONDS,
                "dur": span["seconds"] * MICROSECONDS,
                "args": {"step": span["step"]},
            }
        )
    events += _counters(run, spans, start)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"traceEvents": events, "displayTimeUnit": "ms", "otherData": {"start_unix_s": start}}))
    return {"trace": str(out), "tracks": list(tracks), "spans": len(spans), "steps": len({span["step"] for span in spans})}


def _tracks(spans: Sequence[dict[str, Any]]) -> dict[str, int]:
    """The controller's tracks first, then the workers by pool and number."""
    names = {span["track"] for span in spans}

    def order(name: str) -> tuple[bool, str, int]:
        pool, _, number = name.partition(" ")
        return (name not in LOOP, pool, int(number or 0))

    return {name: index for index, name in enumerate(sorted(names, key=order))}


def _counters(run: Path, spans: Sequence[dict[str, Any]], start: float) -> list[dict[str, Any]]:
    """Curves below the tracks: a value of a step, at the end of the step."""
    ends: dict[int, float] = {}
    for span in spans:
        ends[span["step"]] = max(ends.get(span["step"], 0.0), span["begin"] + span["seconds"])
    return [
        {"ph": "C", "name": name, "pid": 0, "ts": (ends[line["step"]] - start) * MICROSECONDS, "args": {"value": line[name]}}
        for file, names in COUNTERS.items()
        for line in read_metrics(run / file)
        for name in names
        if line["step"] in ends and line.get(name) is not None
    ]


def _metadata(name: str, thread: int, value: str | int) -> dict[str, Any]:
    return {"ph": "M", "name": name, "pid": 0, "tid": thread, "args": {"sort_index" if name.endswith("index") else "name": value}}
