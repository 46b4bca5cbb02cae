"""Workers that come, wait for a place and leave, over machines of this process: whose turn it is, and what becomes of the calls."""

import itertools
import time

import pytest
from ray.exceptions import ActorUnavailableError

from omr_ray.workers import supervisor
from omr_ray.workers.call import Call, WorkersFailed
from omr_ray.workers.supervisor import Supervisor


@pytest.fixture(autouse=True)
def look_often(monkeypatch):
    monkeypatch.setattr(supervisor, "LOOK_S", 0.01)


class Machines:
    """A runtime with `rooms`: how many actors each node takes. `during` is asked at every wait; it may change the machines.

    A call is answered at the next wait, once `held` (nodes) does not have its node.
    """

    def __init__(self, **rooms):
        self.rooms, self.held, self.leaving = rooms, set(), {}
        self.places: dict[int, str] = {}
        self.begun: list[tuple[int, str]] = []  # which actor took which call
        self.killed: list[int] = []
        self.dead: set[int] = set()
        self.calls: dict[int, tuple[int, str, tuple]] = {}
        self.numbers = itertools.count()
        self.during = lambda: None

    def start(self, index):
        return next(self.numbers)

    def node(self, handle):
        return self.places.get(handle)

    def call(self, handle, method, args):
        number = next(self.numbers)
        self.calls[number] = (handle, method, args)
        self._place()
        if method != "ready":
            self.begun.append((handle, args[0]))
        return number

    def _place(self):
        for handle, *_ in self.calls.values():
            if handle not in self.places and handle not in self.killed:
                free = [
                    node for node, room in self.rooms.items() if node not in self.leaving and list(self.places.values()).count(node) < room
                ]
                if free:
                    self.places[handle] = free[0]

    def wait(self, references, timeout):
        self.during()
        self._place()
        found = [
            reference
            for reference in references
            if self.calls[reference][0] in self.dead
            or (self.calls[reference][0] in self.places and self.places[self.calls[reference][0]] not in self.held)
        ]
        if not found:
            time.sleep(min(timeout, 0.01))
        return found

    def get(self, reference, timeout):
        handle, _, args = self.calls[reference]
        if handle in self.dead:
            raise ActorUnavailableError("gone", None)
        return (args[0] if args else None), {"work": 0.001}

    def kill(self, handle):
        self.killed.append(handle)
        self.places.pop(handle, None)

    def draining(self):
        return self.leaving

    def room(self):
        return f"{self.rooms}"

    def cut(self, node):
        """The power of a node."""
        self.dead |= {handle for handle, place in self.places.items() if place == node}
        del self.rooms[node]


def workers(machines, count, **changes):
    limits = {"max_attempts": 2, "timeout_s": 60.0, "start_timeout_s": 60.0, "asked": "1 CPU"} | changes
    return Supervisor("toy", machines.start, count=count, runtime=machines, **limits)


def work(*names):
    return [Call(method="work", args=(name,), what=name) for name in names]


def test_those_without_a_place_hold_nobody_up_and_join_when_there_is_one():
    machines = Machines(a=1)
    toys = workers(machines, 3, start_timeout_s=0.05)
    for _ in range(4):  # the limit of a start passes in between, and is none of those that wait
        assert toys.run(work("x", "y")) == ["x", "y"]
        time.sleep(0.05)
    figures = toys.metrics()
    assert (figures["toy/up"], figures["toy/pending"], figures["toy/replacements"]) == (1, 2, 0)
    machines.rooms["b"] = 2
    machines._place()
    toys.run(work("x", "y", "z"))
    toys.run(work("x", "y", "z"))
    figures = toys.metrics()
    assert (figures["toy/up"], figures["toy/pending"], figures["toy/replacements"]) == (3, 0, 0)
    assert len({handle for handle, _ in machines.begun[-3:]}) == 3


def test_without_any_place_one_error_says_what_was_asked_for_and_what_there_is():
    toys = workers(Machines(a=0), 2, start_timeout_s=0.05)
    with pytest.raises(
        WorkersFailed,
        match=r"toy: x: waited 0\.\d s for a place for any of 2 .*start_timeout_s\); each asks for 1 CPU, the cluster has {'a': 0}",
    ):
        toys.run(work("x"))


def test_a_start_is_limited_from_the_place_on():
    machines = Machines(a=1)
    machines.held = {"a"}  # it has a place and never loads
    with pytest.raises(WorkersFailed, match=r"none of 1 workers could load .* in 2 attempts .* no answer within 0.05 s \(workers.start"):
        workers(machines, 1, start_timeout_s=0.05).run(work("x"))


def test_a_worker_whose_node_leaves_ends_its_call_and_gets_no_other():
    machines = Machines(a=1, b=1)
    toys = workers(machines, 1)
    toys.run(work("warm"))
    (old,) = machines.places
    machines.held = {"a"}
    turns = itertools.count()

    def during():
        turn = next(turns)
        if turn == 1:
            machines.leaving = {"a": time.time() + 1000}
        if turn > 1 and any(handle != old for handle, _ in machines.begun):  # the new one works already
            machines.held = set()

    machines.during = during
    assert toys.run(work("x", "y", "z")) == ["x", "y", "z"]
    assert [name for handle, name in machines.begun if handle == old] == ["warm", "x"]
    assert old in machines.killed and set(machines.places.values()) == {"b"}
    figures = toys.metrics()
    assert (figures["toy/up"], figures["toy/draining"], figures["toy/replacements"], figures["toy/retries"]) == (1, 0, 1, 0)


def test_what_is_not_done_when_its_node_leaves_is_done_again_and_is_no_failed_attempt():
    machines = Machines(a=1, b=1)
    toys = workers(machines, 1, max_attempts=1)
    toys.run(work("warm"))
    machines.held, machines.leaving = {"a"}, {}

    def during():
        if machines.begun[-1][1] == "x" and not machines.leaving:
            machines.leaving = {"a": time.time() + 0.05}

    machines.during = during
    assert toys.run(work("x")) == ["x"]
    figures = toys.metrics()
    assert (figures["toy/up"], figures["toy/draining"], figures["toy/replacements"], figures["toy/retries"]) == (1, 0, 1, 1)


def test_a_machine_that_dies_with_many_idle_workers_costs_a_call_one_attempt():
    machines = Machines(a=4, b=4)
    toys = workers(machines, 4)
    toys.run(work(*"warm"))
    toys.run(work(*"warm"))
    assert toys.metrics()["toy/up"] == 4
    machines.cut("a")
    assert toys.run(work("x")) == ["x"]
    assert toys.metrics()["toy/retries"] == 1
    assert set(machines.places.values()) == {"b"}
