"""Actors that hang: stopped, so that they are alive and answer nothing. Each is found by its limit, killed and replaced."""

import os
import signal
import sys
import threading
import time

import pytest
import ray
from ray import cloudpickle

from omr_ray.config.run import RunConfig
from omr_ray.overlapped import Pipeline
from omr_ray.types import Dialogue, Round
from omr_ray.workers.call import Call, WorkersFailed
from omr_ray.workers.supervisor import Supervisor

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test module
pytestmark = pytest.mark.timeout(900)

STUCK_S = 20.0  # the limit of a call that would take milliseconds
LIMIT = 120.0


class Stopping:
    """Stops its own process as often as there are files in `stops`."""

    def __init__(self, stops, where):
        self.stops, self.where = stops, where

    def _stop(self, where, after=0.0):
        for name in os.listdir(self.stops) if where == self.where else []:
            os.rename(os.path.join(self.stops, name), os.path.join(self.stops, f"../{os.getpid()}.stopped"))
            threading.Timer(after, os.kill, (os.getpid(), signal.SIGSTOP)).start()
            time.sleep(0.0 if after else LIMIT)
            break

    def ready(self):
        self._stop("loading")
        return None, {}

    def sample(self, value):
        self._stop("call")
        self._stop("idle", after=0.5)
        return (value, os.getpid()), {"sample": 0.001}


def stopping(tmp_path, where, **changes):
    stops = tmp_path / "stops"
    stops.mkdir()
    (stops / "0").touch()
    settings = {"count": 1, "max_attempts": 3, "timeout_s": STUCK_S, "start_timeout_s": LIMIT, "asked": "6 CPU"} | changes
    # All CPUs of the cluster: what takes its place cannot start before it is gone.
    return Supervisor("toy", lambda _: ray.remote(Stopping).options(num_cpus=6, max_restarts=-1).remote(str(stops), where), **settings)


def stopped(tmp_path) -> int:
    (file,) = tmp_path.glob("*.stopped")
    return int(file.stem)


def gone(pid: int) -> bool:
    deadline = time.monotonic() + LIMIT
    while os.path.exists(f"/proc/{pid}") and time.monotonic() < deadline:
        with open(f"/proc/{pid}/stat") as stat:
            if stat.read().rpartition(")")[2].split()[0] == "Z":
                return True
        time.sleep(0.1)
    return not os.path.exists(f"/proc/{pid}")


def test_one_that_hangs_in_a_call_makes_room_for_another_that_does_it_again(tmp_path):
    toys = stopping(tmp_path, "call")
    ((value, pid),) = toys.run([Call(method="sample", args=(5,), what="work")])
    metrics, track = toys.metrics(), [span.name for span in toys.spans()]
    toys.close()
    assert value == 5 and pid != stopped(tmp_path) and gone(stopped(tmp_path))
    assert (metrics["toy/retries"], metrics["toy/replacements"]) == (1, 1)
    assert "sample (lost)" in track


def test_one_that_hangs_between_two_calls_is_found_by_the_next(tmp_path):
    toys = stopping(tmp_path, "idle")
    ((_, first),) = toys.run([Call(method="sample", args=(1,), what="work")])
    assert stopped(tmp_path) == first
    time.sleep(2.0)
    ((value, second),) = toys.run([Call(method="sample", args=(2,), what="work")])
    toys.close()
    assert value == 2 and second != first and gone(first)


def test_one_that_hangs_while_it_loads_is_found_by_the_limit_of_a_start(tmp_path):
    toys = stopping(tmp_path, "loading", start_timeout_s=60.0)
    ((value, pid),) = toys.run([Call(method="sample", args=(1,), what="work")])
    metrics = toys.metrics()
    toys.close()
    assert value == 1 and pid != stopped(tmp_path) and gone(stopped(tmp_path))
    assert (metrics["toy/retries"], metrics["toy/replacements"]) == (0, 1)


def test_a_pool_that_is_closed_ends_the_wait_of_another_thread(tmp_path):
    toys = stopping(tmp_path, "call", timeout_s=600.0)
    errors = []

    def run():
        try:
            toys.run([Call(method="sample", args=(1,), what="work")])
        except WorkersFailed as error:
            errors.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    deadline = time.monotonic() + LIMIT
    while not list(tmp_path.glob("*.stopped")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    toys.close()
    thread.join(LIMIT)
    assert not thread.is_alive() and errors == ["toy: closed before work was done"]


class Sampler:
    """A sampler over one stopping actor."""

    def __init__(self, toys):
        self.toys, self.version = toys, 0

    def load(self, update): ...

    def sample(self, dialogues, step):
        return self.toys.run([Call(method="sample", args=(dialogue.id,), what=dialogue.id) for dialogue in dialogues])

    def metrics(self):
        return self.toys.metrics()

    def spans(self):
        return self.toys.spans()


class Judge:
    def score(self, rollouts):
        return [value for value, _ in rollouts]

    def state(self):
        return {}

    def metrics(self):
        return {}

    def spans(self):
        return []


class Source:
    def next(self, step, count):
        return [Dialogue(id=f"{step}-{i}", intent="i", rounds=(Round(index=1, utterance="u", prompt="p"),)) for i in range(count)]


def test_steps_in_flight_lose_nothing_when_an_actor_hangs(tmp_path):
    toys = stopping(tmp_path, "call")
    config = RunConfig(name="t", dialogues_per_step=3, overlap={"max_staleness": 1}, workers={"timeout_s": STUCK_S})
    with Pipeline(config, config.overlap, Source(), Sampler(toys), Judge()) as pipeline:
        for step in (1, 2):
            pipeline.begin(step, None)
        made = [pipeline.take(step) for step in (1, 2)]
    toys.close()
    assert [step.scored for step in made] == [["1-0", "1-1", "1-2"], ["2-0", "2-1", "2-2"]]
    assert [step.figures["toy/retries"] for step in made] == [1, 0]
