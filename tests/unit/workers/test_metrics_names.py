"""Names that the tracker uses, and the Prometheus samples that they become."""

import pytest

from omr_ray.workers.metrics import METRICS, labels_of, sample


@pytest.mark.parametrize(
    ("key", "name", "labels"),
    [
        ("seconds/rollout", "omr_phase_seconds", {"phase": "rollout"}),
        ("rollout/idle_share/3", "omr_worker_idle_share", {"pool": "rollout", "worker": "3"}),
        ("learner/idle_share/0", "omr_worker_idle_share", {"pool": "learner", "worker": "0"}),
        ("reward/queue_wait_s", "omr_queue_wait_seconds", {"pool": "reward"}),
        ("reward/up", "omr_workers_up", {"pool": "reward"}),
        ("reward/retries", "omr_retries_total", {"pool": "reward"}),
        ("reward/missing", "omr_missing_scores_total", {"term": ""}),
        ("reward/bright/missing", "omr_missing_scores_total", {"term": "bright"}),
        ("reward/total", "omr_reward", {"term": "total", "round": ""}),
        ("reward/total/round_2", "omr_reward", {"term": "total", "round": "2"}),
        ("weight/diversity/round_1", "omr_reward_weight", {"term": "diversity", "round": "1"}),
        ("learner/restarts", "omr_learner_restarts_total", {}),
        ("learner/kl", "omr_learner", {"metric": "kl"}),
        ("step", "omr_step", {}),
    ],
)
def test_every_kind_of_name_has_its_metric_and_labels(key, name, labels):
    assert sample(key, 1.5, "r") == (name, {"run": "r"} | labels, 1.5)
    assert set(labels_of(name)) == {"run", *labels}


def test_what_is_no_metric_is_left_out_and_counters_end_as_prometheus_wants_them():
    assert sample("evaluation/something/else", 1.0, "r") is None
    assert all((metric.kind == "counter") == name.endswith("_total") for name, metric in METRICS.items())
