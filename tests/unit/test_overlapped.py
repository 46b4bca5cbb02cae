"""The overlapped loop with plain objects and real threads: who is trained on what, and what a resumed run repeats."""

import threading
import time
from collections import Counter
from concurrent.futures import Future
from copy import deepcopy

import numpy as np
import pytest

from omr_ray import controller, overlapped
from omr_ray.config.run import RunConfig
from omr_ray.overlapped import Stale, _result
from omr_ray.rewards.total import TotalReward
from omr_ray.runs import Checkpoint, Checkpoints
from omr_ray.types import Dialogue, LearnerState, Rollout, Round, Trajectory, Update

LIMIT = 60.0
R, G, STEPS = 2, 2, 7


class Killed(BaseException):
    """Ends a run as SIGKILL does: nothing of ours handles it."""


class World:
    """Source, sampler, judge, learner and the rest in one. What is sampled depends on step and weights, what is learned on the samples.

    `dies` names a call ("score 3") that ends the run; `before` holds what is done on entering one.
    """

    def __init__(self, dies=None, before=None):
        self.dies, self.before = dies, before or {}
        self.loaded = None
        self.weights, self.version = np.zeros(2, np.float32), 0
        self.total = TotalReward(lambda t: {"diversity": 0.5, "consistency": 0.1, "mutual_information": 1.0})
        self.logged, self.trained, self.timed, self.traced, self.calls = {}, {}, {}, {}, []
        self.sampling = 0  # calls that are at work now
        self.asked = None

    def enter(self, name):
        self.calls.append(name)
        self.before.get(name, lambda: None)()
        if name == self.dies:
            raise Killed

    def next(self, step, count):
        rounds = tuple(Round(index=r, utterance="u", prompt=f"p{r}") for r in range(1, R + 1))
        return [Dialogue(id=f"{step}-{i}", intent="p", rounds=rounds) for i in range(count)]

    def load(self, update):
        self.loaded = update

    def sample(self, dialogues, step):
        self.sampling += 1
        self.enter(f"sample {step}")
        version = 0 if self.loaded is None else self.loaded.policy_version
        weights = np.zeros(2, np.float32) if self.loaded is None else self.loaded.weights["w"]
        made = [self.rollout(d, step, version, weights) for d in dialogues]
        self.sampling -= 1
        return made

    def rollout(self, dialogue, step, version, weights):
        def trajectory(r, g):
            rng = np.random.default_rng([step, int(dialogue.id.split("-")[1]), r, g])
            return Trajectory(
                dialogue_id=dialogue.id, round=r, sibling=g, seed=0, policy_version=version, prompt=f"p{r}",
                prompt_ids=np.zeros((1, 3), np.int64), latents=np.full((1, 1, 1, 2), weights, np.float32),
                next_latents=rng.standard_normal((1, 1, 1, 2), dtype=np.float32) + weights, timesteps=np.array([500]),
                previous_timesteps=np.array([400]), log_probs=np.zeros(1, np.float32),
                features=rng.standard_normal(3, dtype=np.float32), image=np.zeros((2, 2, 3), np.uint8),
            )  # fmt: skip

        return Rollout(dialogue=dialogue, trajectories=tuple(tuple(trajectory(r, g) for g in range(G)) for r in range(1, R + 1)))

    def score(self, rollouts):
        self.enter(f"score {rollouts[0].dialogue.id.split('-')[0]}")
        scores = [{"mutual_information": [[float(t.next_latents.sum()) for t in row] for row in r.trajectories]} for r in rollouts]
        return self.total.score(rollouts, scores)

    def step(self, batch, pairs, step):
        self.enter(f"learn {step}")
        self.trained[step] = sorted((float(z.sum()), int(r)) for z, r in zip(batch.next_latents, batch.rounds, strict=True))
        self.weights = self.weights + 0.1 * (batch.advantages[:, None] * batch.next_latents[:, 0, 0]).mean(0)
        self.version += 1
        return Update(policy_version=self.version, weights={"w": self.weights}, metrics={"w": float(self.weights.sum())})

    def state(self):  # of the judge and of the learner: told apart by what was asked for
        if threading.current_thread().name.startswith("scoring") or self.asked == "judge":
            self.asked = None
            return self.total.state()
        self.asked = "judge"  # the synchronous loop asks the learner, then the judge
        return LearnerState(policy_version=self.version, weights={"w": self.weights})

    def log(self, step, metrics):
        self.enter(f"log {step}")
        self.logged[step] = metrics

    def time(self, step, seconds):
        self.timed[step] = seconds

    def metrics(self):
        return {}

    def spans(self, step=None, spans=()):
        if step is not None:
            self.traced[step] = spans
        return []

    def phase(self, name): ...
    def advance(self, metrics): ...


class Memory:
    """Checkpoints that survive a run, without the disk's time."""

    def __init__(self):
        self.kept = []

    def save(self, step, learner, judge, older=()):
        self.kept.append(deepcopy(Checkpoint(step=step, learner=learner, judge=judge, older=tuple(older))))

    def latest(self):
        return self.kept[-1] if self.kept else None


class Saving:
    """`checkpoints`, with a death in the middle of one."""

    def __init__(self, world, checkpoints):
        self.world, self.checkpoints = world, checkpoints

    def save(self, step, learner, judge, older=()):
        self.world.asked = None
        self.world.enter(f"save {step}")
        self.checkpoints.save(step, learner, judge, older)


def config(lag=None, **changes) -> RunConfig:
    overlap = None if lag is None else {"max_staleness": lag}
    changes = {"name": "t", "steps": STEPS, "dialogues_per_step": 2, "checkpoint": {"every": 2}, "overlap": overlap} | changes
    return RunConfig(sampler={"steps": 10, "window": (1, 10), "siblings": G}, **changes)


def run(world: World, lag=None, checkpoints=None, watch=None, **changes) -> World:
    """A run from its last checkpoint on, if there is one; as `omr_ray.workers.launch.train` starts it."""
    settings, checkpoints = config(lag, **changes), checkpoints or Memory()
    saving, found = Saving(world, checkpoints), checkpoints.latest()
    held = []
    if found:
        world.total.load(found.judge)
        world.weights, world.version = found.learner.weights["w"], found.learner.policy_version
        held = [*found.older, Update(policy_version=found.learner.policy_version, weights=found.learner.weights, metrics={})]
        world.load(held[-1])
    parts = {"source": world, "sampler": world, "judge": world, "learner": world, "tracker": world, "progress": world}
    more = {"watch": watch, "start": found.step if found else 0, "checkpoints": saving}
    if lag is None:
        controller.train(settings, **parts, **more)
    else:
        overlapped.train(settings, **parts, **more, held=held)
    return world


def test_without_staleness_it_is_the_synchronous_loop_bit_for_bit():
    left, right = Memory(), Memory()
    plain, without = run(World(), checkpoints=left), run(World(), lag=0, checkpoints=right)
    assert without.logged == plain.logged and without.trained == plain.trained
    assert plain.logged[7]["learner/w"] != 0 and plain.logged[7]["rollout/oldest_version"] == 6
    assert [c.judge for c in left.kept] == [c.judge for c in right.kept] and [c.step for c in right.kept] == [2, 4, 6, 7]
    assert right.latest().older == ()


@pytest.mark.parametrize("lag", [1, 2, 3])
def test_a_step_is_sampled_with_the_weights_of_a_fixed_update(lag):
    logged = run(World(), lag=lag).logged
    assert [logged[step]["rollout/oldest_version"] for step in range(1, 8)] == [max(step - 1 - lag, 0) for step in range(1, 8)]
    hurried = World(before={f"{what} {step}": lambda: time.sleep(0.02) for what in ("learn", "score") for step in (2, 3, 5)})
    assert run(hurried, lag=lag).logged == logged  # whoever is fast


@pytest.mark.parametrize("lag", [1, 3])
def test_the_next_steps_are_sampled_and_scored_while_one_is_learned_but_no_more(lag):
    last_scored = threading.Event()

    def learn():
        assert last_scored.wait(LIMIT)  # in a loop without overlap it would never come
        time.sleep(0.1)  # time for a step too many
        begun.extend(call for call in world.calls if call.startswith("sample"))

    begun = []
    world = World(before={f"score {1 + lag}": last_scored.set, "learn 1": learn})
    run(world, lag=lag)
    before = world.calls[: world.calls.index("log 1")]
    assert {f"{what} {step}" for what in ("sample", "score") for step in range(1, lag + 2)} <= set(before)
    assert begun == [f"sample {step}" for step in range(1, lag + 2)]
    learner = next(span for span in world.traced[1] if span.name == "learner")
    sampled = {span.name: span for span in world.traced[2] if span.track in ("sampling", "scoring")}
    assert set(sampled) == {"weights", "rollout", "reward"}
    assert all(span.begin < learner.begin + learner.seconds for span in sampled.values())  # the overlap is in the trace
    assert {"seconds/samples", "seconds/rollout", "seconds/reward", "seconds/learner", "seconds/controller"} <= world.timed[1].keys()
    assert world.timed[1]["seconds/step"] >= world.timed[1]["seconds/samples"] + world.timed[1]["seconds/learner"]


KILLS = [f"{what} {step}" for step in (1, 2, 4, 7) for what in ("sample", "score", "learn", "log", "save")]


@pytest.mark.parametrize("lag", [0, 1, 3])
def test_a_run_killed_anywhere_and_resumed_trains_every_sample_once_and_logs_the_same(lag):
    whole = run(World(), lag=lag)
    ids = Counter(sample for step in whole.trained.values() for sample in step)
    assert len(ids) == STEPS * 2 * R * G and set(ids.values()) == {1}
    for kill in KILLS:
        if kill == "save 1":
            continue  # no checkpoint there
        first, checkpoints = World(dies=kill), Memory()
        with pytest.raises(Killed):
            run(first, lag, checkpoints)
        kept = checkpoints.latest().step if checkpoints.kept else 0
        second = run(World(), lag, checkpoints)
        assert min(second.trained) == kept + 1
        trained = {step: first.trained[step] for step in range(1, kept + 1)} | second.trained
        logged = {step: first.logged[step] for step in range(1, kept + 1)} | second.logged
        assert trained == whole.trained, kill
        assert logged == whole.logged, kill


def test_a_checkpoint_holds_the_weights_that_the_next_steps_are_sampled_with(tmp_path):
    memory = Memory()
    run(World(), lag=3, checkpoints=memory)
    run(World(), lag=3, checkpoints=Checkpoints(tmp_path, keep=1))
    found, expected = Checkpoints(tmp_path, keep=1).latest(), memory.latest()
    assert found.step == 7 and [update.policy_version for update in found.older] == [4, 5, 6]
    for read, made in zip(found.older, expected.older, strict=True):
        np.testing.assert_array_equal(read.weights["w"], made.weights["w"])
    assert [[update.policy_version for update in c.older] for c in memory.kept] == [[1], [1, 2, 3], [3, 4, 5], [4, 5, 6]]


def test_samples_older_than_the_bound_are_not_trained():
    world = World()
    world.load = lambda update: None  # a sampler that keeps its first weights
    with pytest.raises(Stale, match=r"step 3: samples of version 0; 1 is the oldest"):
        run(world, lag=1)
    assert set(world.trained) == {1, 2}


def test_a_wait_has_a_limit_and_says_what_for():
    with pytest.raises(TimeoutError, match=r"waited 0.01 s for the rollouts of step 5 \(overlap.wait_s\)"):
        _result(Future(), "the rollouts of step 5", 0.01)
    failed = Future()
    failed.set_exception(TimeoutError("a server"))
    with pytest.raises(TimeoutError, match="^a server$"):
        _result(failed, "x", 0.01)


def test_a_step_that_never_comes_ends_the_run():
    release = threading.Event()
    world = World(before={"sample 2": lambda: release.wait(LIMIT)})
    workers = {"max_attempts": 1, "timeout_s": 0.01}
    with pytest.raises(TimeoutError, match=r"of step 2 \(overlap.wait_s\)"):
        run(world, lag=1, workers=workers, overlap={"max_staleness": 1, "wait_s": 0.5})
    release.set()
    assert "sample 3" not in world.calls  # what had not begun did not begin


class Looking:
    """Looks after every third step: samples with weights of its own, as the evaluation of a sweep does."""

    def __init__(self, world):
        self.world, self.looked = world, []

    def due(self, step):
        return step % 3 == 0

    def look(self, step):
        assert self.world.sampling == 0 and threading.current_thread() is threading.main_thread()
        calls = len(self.world.calls)
        self.world.load(Update(policy_version=99, weights={"w": np.ones(2, np.float32)}, metrics={}))
        time.sleep(0.05)
        assert len(self.world.calls) == calls
        self.looked.append(step)


def test_who_looks_at_the_policy_has_the_workers_alone_and_changes_nothing():
    world = World()
    watch = Looking(world)
    assert run(world, lag=2, watch=watch).logged == run(World(), lag=2).logged
    assert watch.looked == [3, 6]
