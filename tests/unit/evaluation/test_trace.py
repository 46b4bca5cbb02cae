"""The Chrome trace of a run of two steps, worked out by hand."""

import json

import pytest

from omr_ray.cli import main
from omr_ray.tracking import Span, Tracker
from omr_ray.types import UserError


@pytest.fixture
def run(tmp_path):
    tracker = Tracker(tmp_path / "run", tensorboard=False)
    for step, begin in ((1, 100.0), (2, 110.0)):
        tracker.log(step, {"reward/total": 0.25 * step})
        tracker.time(step, {"rollout/images_per_s": 8.0, "reward/queue_peak": None})
        tracker.spans(
            step,
            [
                Span(track="controller", name="rollout", begin=begin, seconds=4.0),
                Span(track="rollout 10", name="weights", begin=begin + 1, seconds=0.5),
                Span(track="rollout 10", name="sample", begin=begin + 1, seconds=2.5),
                Span(track="rollout 2", name="sample", begin=begin + 0.5, seconds=3.0),
            ],
        )
    return tmp_path / "run"


def test_spans_become_complete_events_of_their_tracks(run, capsys):
    assert main(["trace", str(run), "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["tracks"] == ["controller", "rollout 2", "rollout 10"] and (result["spans"], result["steps"]) == (8, 2)
    trace = json.loads((run / "trace.json").read_text())
    events = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    first = [(event["name"], event["tid"], event["ts"], event["dur"]) for event in events if event["args"]["step"] == 1]
    # microseconds since the first span; of two that begin together the longer, which holds the other, is first
    assert first == [("rollout", 0, 0.0, 4e6), ("sample", 1, 0.5e6, 3e6), ("sample", 2, 1e6, 2.5e6), ("weights", 2, 1e6, 0.5e6)]
    assert events[4]["ts"] == 10e6 and events[4]["args"] == {"step": 2}
    names = {event["tid"]: event["args"]["name"] for event in trace["traceEvents"] if event["name"] == "thread_name"}
    assert names == {0: "controller", 1: "rollout 2", 2: "rollout 10"}
    curves = [(event["name"], event["ts"], event["args"]["value"]) for event in trace["traceEvents"] if event["ph"] == "C"]
    assert curves == [
        ("reward/total", 4e6, 0.25),
        ("reward/total", 14e6, 0.5),
        ("rollout/images_per_s", 4e6, 8.0),
        ("rollout/images_per_s", 14e6, 8.0),
    ]


def test_a_directory_without_spans_is_the_users_error(tmp_path, run):
    assert main(["trace", str(tmp_path)]) == 2
    (run / "spans.jsonl").write_text("")
    from omr_ray.evaluation.trace import write_trace

    with pytest.raises(UserError, match="holds no spans"):
        write_trace(run, run / "trace.json")
