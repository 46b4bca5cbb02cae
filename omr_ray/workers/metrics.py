"""Ray's metrics of a run: what the tracker writes down each step, for Prometheus, as `ray_<name>` on every node that exports.

`METRICS` has every name. The dashboard and the alert rules in `cluster/` use these and no others, and a test holds them to it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from ray.util.metrics import Counter, Gauge


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One Prometheus metric. `source` matches the tracker's names; its groups are the labels."""

    source: str
    text: str
    kind: Literal["gauge", "counter"] = "gauge"


class Sample(NamedTuple):
    name: str
    labels: dict[str, str]
    value: float


# Every metric also has the label `run`. The first source that matches wins.
METRICS: dict[str, Metric] = {
    "omr_phase_seconds": Metric(source=r"seconds/(?P<phase>\w+)", text="seconds of the last step by phase; `step` is all of it"),
    "omr_images_per_second": Metric(source=r"rollout/images_per_s", text="images a second while sampling"),
    "omr_worker_idle_share": Metric(source=r"(?P<pool>\w+)/idle_share/(?P<worker>\d+)", text="share of the last step without work"),
    "omr_workers_up": Metric(source=r"(?P<pool>\w+)/up", text="workers that are up"),
    "omr_workers_pending": Metric(source=r"(?P<pool>\w+)/pending", text="workers that no machine has room for yet"),
    "omr_workers_draining": Metric(source=r"(?P<pool>\w+)/draining", text="workers that finish a call on a machine that leaves"),
    "omr_queue_peak": Metric(source=r"(?P<pool>\w+)/queue_peak", text="calls that waited at most for a worker"),
    "omr_queue_wait_seconds": Metric(source=r"(?P<pool>\w+)/queue_wait_s", text="mean seconds that a call waited for a worker"),
    "omr_retries_total": Metric(source=r"(?P<pool>\w+)/retries", text="calls that were done again", kind="counter"),
    "omr_replacements_total": Metric(source=r"(?P<pool>\w+)/replacements", text="workers that were replaced", kind="counter"),
    "omr_learner_restarts_total": Metric(source=r"learner/restarts", text="learner groups that were rebuilt", kind="counter"),
    "omr_samples_total": Metric(source=r"rollout/samples", text="images that were sampled", kind="counter"),
    "omr_trained_steps_total": Metric(source=r"learner/trained_steps", text="denoising steps that were trained on", kind="counter"),
    "omr_missing_scores_total": Metric(source=r"reward/(?:(?P<term>\w+)/)?missing", text="scores that could not be had", kind="counter"),
    "omr_bytes_per_trajectory": Metric(source=r"rollout/bytes_per_trajectory", text="bytes that one sample costs to send"),
    "omr_policy_version": Metric(source=r"rollout/oldest_version", text="oldest policy among the samples of the last step"),
    "omr_reward": Metric(source=r"reward/(?P<term>\w+)(?:/round_(?P<round>\d+))?", text="mean of a reward term; no round: over all rounds"),
    "omr_reward_weight": Metric(source=r"weight/(?P<term>\w+)/round_(?P<round>\d+)", text="weight of a term in the total reward"),
    "omr_learner": Metric(source=r"learner/(?P<metric>\w+)", text="what the learner measured in the last step"),
    "omr_step": Metric(source=r"step", text="last finished step"),
}


def labels_of(name: str) -> tuple[str, ...]:
    return ("run", *re.compile(METRICS[name].source).groupindex)


def sample(key: str, value: float, run: str) -> Sample | None:
    """What the tracker calls `key`, as a sample; None for a name that is no metric.

    Example: sample("rollout/up", 2.0, "a") == ("omr_workers_up", {"run": "a", "pool": "rollout"}, 2.0)
    """
    for name, metric in METRICS.items():
        match = re.fullmatch(metric.source, key)
        if match:
            return Sample(name, {"run": run, **{label: text or "" for label, text in match.groupdict().items()}}, value)
    return None


class RayMetrics:
    """A sink of the tracker. `run` is the label that tells runs apart; Ray must be connected."""

    def __init__(self, run: str) -> None:
        self._run = run
        kinds: dict[str, Any] = {"gauge": Gauge, "counter": Counter}
        self._metrics = {name: kinds[m.kind](name, description=m.text, tag_keys=labels_of(name)) for name, m in METRICS.items()}

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for key, value in {**values, "step": float(step)}.items():
            found = sample(key, value, self._run)
            if found is None:
                continue
            metric = self._metrics[found.name]
            if isinstance(metric, Gauge):
                metric.set(found.value, tags=found.labels)
            elif found.value > 0:  # Ray's counters take no zero
                metric.inc(found.value, tags=found.labels)
