import json

import pytest

from omr_ray.tracking import Last, Max, Mean, Span, Sum, Tracker, read_metrics, reduced
from omr_ray.types import UserError


def test_metrics_reduce_themselves():
    values = [1.0, float("nan"), 4.0, float("inf"), 1.0]
    metrics = {"mean": Mean(), "sum": Sum(), "max": Max(), "last": Last()}
    for metric in metrics.values():
        for value in values:
            metric.add(value)
    assert reduced(metrics) == {"last": 1.0, "max": 4.0, "mean": 2.0, "sum": 6.0}


def test_what_was_never_measured_is_null_and_not_zero():
    assert reduced({"a": Mean(), "b": Max(), "c": float("nan"), "d": None, "e": Mean.of([None, float("nan")])}) == dict.fromkeys("abcde")


def test_one_seed_gives_one_file_whatever_the_machine_took(tmp_path):
    for name, seconds in (("a", 1.5), ("b", 99.0)):
        tracker = Tracker(tmp_path / name, tensorboard=False)
        tracker.log(1, {"z": 0.1, "a": Mean.of([1, 2])})
        tracker.time(1, {"seconds/step": seconds})
        tracker.close()
    assert (
        (tmp_path / "a/metrics.jsonl").read_bytes() == (tmp_path / "b/metrics.jsonl").read_bytes() == b'{"a": 1.5, "step": 1, "z": 0.1}\n'
    )
    assert read_metrics(tmp_path / "b/timings.jsonl") == [{"step": 1, "seconds/step": 99.0}]


def test_resuming_forgets_later_steps_and_a_line_that_was_cut_short(tmp_path):
    tracker = Tracker(tmp_path, tensorboard=False)
    for step in (1, 2, 3):
        tracker.log(step, {"loss": float(step)})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"loss": 4.0, "st')
    tracker.truncate_after(2)
    tracker.log(3, {"loss": 30.0})
    assert [(line["step"], line["loss"]) for line in read_metrics(tmp_path / "metrics.jsonl")] == [(1, 1.0), (2, 2.0), (3, 30.0)]


def test_sinks_get_what_is_finite_and_spans_are_lines_of_their_step(tmp_path):
    class Kept(list):
        def write(self, step, values):
            self.append((step, dict(values)))

    kept = Kept()
    tracker = Tracker(tmp_path, tensorboard=False, sinks=[kept])
    tracker.log(1, {"loss": 2.0, "kl": float("nan")})
    tracker.time(1, {"seconds/step": 0.5})
    assert kept == [(1, {"loss": 2.0}), (1, {"seconds/step": 0.5})]
    for step in (1, 2):
        tracker.spans(step, [Span(track="rollout 0", name="sample", begin=10.0 * step, seconds=1.5)])
    tracker.truncate_after(1)
    assert read_metrics(tmp_path / "spans.jsonl") == [{"step": 1, "track": "rollout 0", "name": "sample", "begin": 10.0, "seconds": 1.5}]


def test_non_finite_values_are_strict_json(tmp_path):
    Tracker(tmp_path, tensorboard=False).log(1, {"kl": float("inf")})
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"kl": None, "step": 1}


def test_tensorboard_files_are_written(tmp_path):
    tracker = Tracker(tmp_path)
    tracker.log(1, {"loss": 1.0})
    tracker.truncate_after(0)
    tracker.log(1, {"loss": 2.0})
    tracker.close()
    assert len(list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))) == 2


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\nnot json\n{"step": 3}\n')
    with pytest.raises(UserError, match="line 2 is not JSON"):
        read_metrics(path)
    with pytest.raises(UserError, match="no such metrics file"):
        read_metrics(tmp_path / "nothing.jsonl")


@pytest.mark.parametrize("package", ["wandb", "mlflow"])
def test_an_absent_sink_names_its_package(tmp_path, monkeypatch, package):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(UserError, match=f"pip install {package}"):
        Tracker(tmp_path, tensorboard=False, **{package: "somewhere"})
