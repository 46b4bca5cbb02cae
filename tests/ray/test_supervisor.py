"""Routing, retries and replacement, with actors that do nothing but what a test needs."""

import os
import sys
import time

import pytest
import ray
from ray import cloudpickle

from omr_ray.types import UserError
from omr_ray.workers.call import Call, WorkersFailed
from omr_ray.workers.supervisor import Supervisor

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test module


class Toy:
    """Fails as often as `faults` (a directory with one file a fault still to happen) says."""

    def __init__(self, faults=None, broken_start=None):
        self.faults, self.broken_start = faults, broken_start

    def ready(self):
        if self.broken_start:
            raise OSError(self.broken_start)
        return None, {}

    def echo(self, value, seconds=0.0):
        time.sleep(seconds)
        return (value, os.getpid()), {"sleep": seconds}

    def fail(self, kind):
        for name in os.listdir(self.faults):
            os.remove(os.path.join(self.faults, name))
            raise kind("the machine is on fire")
        return "done", {}


def supervisor(count=2, toy=(), **limits):
    limits = {"max_attempts": 3, "timeout_s": 30.0, "start_timeout_s": 30.0, "asked": "0.5 CPU"} | limits
    return Supervisor("toy", lambda _: ray.remote(Toy).options(num_cpus=0.5, max_restarts=-1).remote(*toy), count=count, **limits)


def faults(tmp_path, count):
    for index in range(count):
        (tmp_path / str(index)).touch()
    return str(tmp_path)


def test_results_keep_the_order_of_the_calls_and_both_workers_take_some():
    toys = supervisor()
    calls = [Call(method="echo", args=(index, 3.0 if index == 0 else 0.02), what=f"echo {index}") for index in range(8)]
    toys.run([calls[1], calls[1]])  # both are up
    toys.metrics()
    results = toys.run(calls)
    metrics = toys.metrics()
    toys.close()
    assert [value for value, _ in results] == list(range(8))
    pids = [pid for _, pid in results]
    assert len(set(pids)) == 2
    assert pids.count(pids[0]) < 4  # whoever sleeps in call 0 gets fewer of the others
    assert metrics["toy/retries"] == metrics["toy/replacements"] == 0
    assert metrics["toy/up"] == 2
    assert all(0 <= metrics[f"toy/idle_share/{index}"] < 1 for index in (0, 1))


def test_a_fault_of_the_machine_is_survived_by_a_new_worker(tmp_path):
    toys = supervisor(count=1, toy=(faults(tmp_path, 2),))
    assert toys.run([Call(method="fail", args=(RuntimeError,), what="work")]) == ["done"]
    metrics = toys.metrics()
    toys.close()
    assert (metrics["toy/retries"], metrics["toy/replacements"]) == (2, 2)


def test_after_max_attempts_one_error_says_what_was_waited_for_how_long_and_why(tmp_path):
    toys = supervisor(count=1, toy=(faults(tmp_path, 2),), max_attempts=2)
    with pytest.raises(WorkersFailed, match=r"toy: work: 2 of 2 attempts.* \d+\.\d s after.*RuntimeError: the machine is on fire"):
        toys.run([Call(method="fail", args=(RuntimeError,), what="work")])
    assert toys.run([Call(method="echo", args=(1,), what="echo")])[0][0] == 1  # the pool is still of use
    toys.close()


def test_a_users_fault_comes_through_as_it_is_and_at_once(tmp_path):
    toys = supervisor(count=1, toy=(faults(tmp_path, 3),))
    with pytest.raises(UserError, match="^the machine is on fire$"):
        toys.run([Call(method="fail", args=(UserError,), what="work")])
    with pytest.raises(KeyError):  # a programming error: doing it again would not help
        toys.run([Call(method="fail", args=(KeyError,), what="work")])
    metrics = toys.metrics()
    toys.close()
    assert metrics["toy/retries"] == 0


def test_no_worker_can_start():
    toys = supervisor(count=2, toy=(None, "no such disk"), max_attempts=2)
    with pytest.raises(WorkersFailed, match=r"toy: echo: waited .* none of 2 workers .* in 2 attempts .*OSError: no such disk"):
        toys.run([Call(method="echo", args=(1,), what="echo")])
    assert toys.metrics()["toy/up"] == 0
    toys.close()


def test_a_cluster_without_room_is_an_error_after_the_limit():
    start = lambda _: ray.remote(Toy).options(num_cpus=1000).remote()  # noqa: E731
    toys = Supervisor("toy", start, count=1, max_attempts=2, timeout_s=30.0, start_timeout_s=0.2, asked="1000 CPU")
    with pytest.raises(WorkersFailed, match=r"a place for any of 1 workers .* asks for 1000 CPU, the cluster has [\d.]+ of 6 CPU"):
        toys.run([Call(method="echo", args=(1,), what="echo")])
    toys.close()


def test_nothing_to_do_needs_no_worker():
    toys = supervisor(count=1, toy=(None, "broken"))
    assert toys.run([]) == []
    toys.close()
