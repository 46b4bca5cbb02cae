"""The controller over simulated workers: real shapes, real messages, and figures that are counted right."""

import json
import pickle

import numpy as np
import pytest

from omr_ray import bench, control_plane
from omr_ray.config.run import RunConfig
from omr_ray.plan import plan
from omr_ray.types import Dialogue, Round, Trajectory


@pytest.fixture(scope="module")
def config():
    sampler = {"steps": 5, "window": [1, 5], "siblings": 2, "train_steps_per_round": 2, "strength": [0.8]}
    return RunConfig(
        name="x",
        steps=3,
        dialogues_per_step=2,
        sampler=sampler,
        dialogues={"kind": "atelier", "rounds": 2},
        tracking={"tensorboard": False},
    )


def test_a_simulated_answer_has_the_bytes_of_a_real_one(config):
    workers = {name: {"num_cpus": 0.5} for name in ("rollout", "reward", "learner")}
    planned = plan(config.model_copy(update={"workers": RunConfig(name="y", workers=workers).workers}))
    simulation = control_plane.Simulation(config)
    rounds = tuple(Round(index=r, utterance="u", prompt="p") for r in (1, 2))
    (rollout,), _ = simulation.sample([Dialogue(id="d", intent="i", rounds=rounds)], 0, 3, None)
    assert [[t.nbytes for t in row] for row in rollout.trajectories] == [[size] * 2 for size in planned.step.bytes_per_trajectory]
    assert {t.policy_version for row in rollout.trajectories for t in row} == {3}


def test_a_message_is_a_pickle_with_its_arrays_beside_it(config):
    value = {"a": np.arange(1000), "b": "text"}
    store = control_plane.Store()
    there = store.send(value)
    assert len(there.head) < 300 and [array.nbytes for array in there.arrays] == [8000]
    np.testing.assert_array_equal(there.read()["a"], value["a"])
    value["a"][0] = 7
    assert there.read()["a"][0] == 0  # it was copied
    assert store.send({"b": np.ones(3)}).read()["b"].tolist() == [1, 1, 1]


def test_a_trajectory_survives_a_pickle_without_the_generated_code(config):
    simulation = control_plane.Simulation(config)
    (rollout,), _ = simulation.sample([Dialogue(id="d", intent="i", rounds=(Round(index=1, utterance="u", prompt="p"),))], 0, 0, None)
    made = rollout.trajectories[0][0]
    again = pickle.loads(pickle.dumps(made))
    assert Trajectory.__setstate__.__qualname__.startswith("Trajectory")
    assert all(np.array_equal(getattr(made, name), getattr(again, name)) for name in Trajectory.__slots__)
    with pytest.raises(AttributeError):
        again.seed = 3


def test_answers_come_in_the_order_of_their_drawn_times(config):
    runtime = control_plane.SimulatedRuntime(control_plane.Simulation(config))
    numbers = [runtime.call(("reward", 0), "score", (np.zeros((1, 2, 2, 3), np.uint8), [0], ["p"], "t")) for _ in range(20)]
    order = [runtime.wait(numbers, 1.0)[0] for _ in numbers]
    seconds = [sum(runtime.get(number, 1.0)[1].values()) for number in order]
    assert sorted(order) == numbers != order
    assert seconds == sorted(seconds) and 0.5 < float(np.median(seconds)) < 2


@pytest.mark.parametrize("overlap", [None, {"max_staleness": 1}])
def test_the_controller_alone_is_measured_by_the_number_of_workers(config, overlap):
    settings = config.model_copy(update={"overlap": RunConfig(name="y", overlap=overlap).overlap})
    found = json.loads(json.dumps(control_plane.measure(settings, 2, workers=(2, 16), memory_steps=10)))
    assert found["workers"]["2"]["trajectories_per_step"] == 2 * 2 * 2 and found["workers"]["2"]["reward_workers"] == 1
    assert found["workers"]["16"]["trajectories_per_step"] == 64 and found["workers"]["16"]["reward_workers"] == 2
    costs = [entry["ms_per_trajectory"] for entry in found["workers"].values()]
    assert all(0 < cost < 1000 for cost in costs) and found["most_to_fewest"] == pytest.approx(costs[1] / costs[0])
    assert found["memory"]["steps"] == 10 and found["memory"]["first_mib"] > 10


def test_the_command_starts_no_ray_for_it(config, monkeypatch):
    monkeypatch.setattr(control_plane, "measure", lambda config, repeats: {"repeats": repeats})
    assert bench.bench(config, what="control-plane", repeats=4)["control-plane"] == {"repeats": 4}
