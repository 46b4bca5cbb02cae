"""The loop with plain objects in place of actors: what is handed to whom, and what a resumed run repeats."""

import numpy as np
import pytest

from omr_ray.algorithm.collate import advantages, collate, round_pairs
from omr_ray.config.run import RunConfig
from omr_ray.controller import NothingToLearn, train
from omr_ray.types import Dialogue, LearnerState, RewardBreakdown, Rollout, Round, ScoredRollout, Trajectory, Update

R, G, S = 2, 2, 1


def dialogue(name: str) -> Dialogue:
    rounds = tuple(Round(index=r, utterance="u", prompt=f"p{r}", target=np.full((4, 4, 3), r, np.uint8)) for r in range(1, R + 1))
    return Dialogue(id=name, intent="p2", rounds=rounds)


def rollout(dialogue_: Dialogue, version: int = 0) -> Rollout:
    def trajectory(r: int, g: int) -> Trajectory:
        return Trajectory(
            dialogue_id=dialogue_.id, round=r, sibling=g, seed=0, policy_version=version, prompt=f"p{r}",
            prompt_ids=np.zeros((1, 3), np.int64), latents=np.full((S, 1, 2, 2), 10 * r + g, np.float32),
            next_latents=np.zeros((S, 1, 2, 2), np.float32), timesteps=np.array([500]), previous_timesteps=np.array([400]),
            log_probs=np.zeros(S, np.float32), features=np.zeros(2, np.float32), image=np.zeros((4, 4, 3), np.uint8),
        )  # fmt: skip

    return Rollout(dialogue=dialogue_, trajectories=tuple(tuple(trajectory(r, g) for g in range(G)) for r in range(1, R + 1)))


def scored(rollout_: Rollout, totals) -> ScoredRollout:
    def breakdown(total) -> RewardBreakdown:
        return RewardBreakdown(terms={"mutual_information": total}, weights={"mutual_information": 0.5}, total=total)

    return ScoredRollout(rollout=rollout_, rewards=tuple(tuple(breakdown(t) for t in row) for row in totals))


def test_advantages_compare_siblings_and_a_missing_score_stays_missing():
    values = advantages(scored(rollout(dialogue("d")), [[1.0, 3.0], [None, 2.0]]), baseline="group", discount=None)
    np.testing.assert_allclose(values[0], [-1, 1], atol=1e-4)
    assert np.isnan(values[1, 0]) and values[1, 1] == 0


def test_collate_leaves_out_samples_without_a_score():
    batch = collate([scored(rollout(dialogue("d"), version=7), [[1.0, 3.0], [None, 2.0]])], baseline="group", discount=None)
    assert len(batch) == 3 and batch.oldest_version == 7
    np.testing.assert_array_equal(batch.latents[:, 0, 0, 0], [10, 11, 21])
    np.testing.assert_array_equal(batch.rounds, [1, 1, 2])
    assert collate([scored(rollout(dialogue("d")), [[None, None], [None, None]])], baseline="group", discount=None) is None


def test_round_pairs_are_consecutive_rounds_and_repeat_for_one_seed():
    source = [scored(rollout(dialogue(name)), [[1.0, 1.0]] * R) for name in ("a", "b", "c")]
    pairs = round_pairs(source, count=2, seed=(0, 5))
    assert pairs.prompts_x == ("p1", "p1") and pairs.prompts_y == ("p2", "p2")
    assert (pairs.images_x == 1).all() and (pairs.images_y == 2).all()


class Fakes:
    """Source, sampler, judge, learner, tracker, checkpoints and progress in one; writes down the order of calls."""

    def __init__(self, totals=((1.0, 3.0), (0.0, 2.0))):
        self.totals, self.calls, self.logged, self.version, self.traced = totals, [], {}, 0, []

    def next(self, step, count):
        self.calls.append("next")
        return [dialogue(f"{step}-{i}") for i in range(count)]

    def sample(self, dialogues, step):
        self.calls.append("sample")
        return [rollout(d, self.version) for d in dialogues]

    def score(self, rollouts):
        self.calls.append("score")
        return [scored(r, self.totals) for r in rollouts]

    def step(self, batch, pairs, step):
        self.calls.append("step")
        self.pairs = pairs
        return Update(policy_version=step, weights={}, metrics={"rows": float(len(batch))})

    def load(self, update):
        self.calls.append("load")
        self.version = update.policy_version

    def log(self, step, metrics):
        self.calls.append("log")
        self.logged[step] = metrics

    def time(self, step, seconds):
        self.seconds = seconds

    def save(self, step, learner, judge, older=()):
        self.calls.append(f"save {step}")

    def state(self):
        return LearnerState(policy_version=self.version, weights={})

    def metrics(self):
        return {"rollout/images_per_s": 5.0}

    def spans(self, step=None, spans=()):
        """As a worker's there are none; as the tracker's they are kept."""
        self.traced += spans
        return []

    def phase(self, name): ...
    def advance(self, metrics): ...


def run(fakes: Fakes, start: int = 0, **changes) -> Fakes:
    config = RunConfig(name="t", dialogues_per_step=2, sampler={"steps": 10, "window": (1, 10), "siblings": G}, **changes)
    train(config, source=fakes, sampler=fakes, judge=fakes, learner=fakes, tracker=fakes, checkpoints=fakes, progress=fakes, start=start)
    return fakes


def test_the_loop_in_order_with_the_log_before_the_checkpoint():
    fakes = run(Fakes(), steps=2, checkpoint={"every": 2})
    step = ["next", "sample", "score", "step", "load", "log"]
    assert fakes.calls == step + step + ["save 2"]
    assert fakes.logged[2]["learner/rows"] == 2 * R * G * S
    assert fakes.logged[2]["rollout/oldest_version"] == 1
    assert fakes.logged[1]["reward/total/round_1"] == 2.0 and fakes.logged[1]["reward/total"] == 1.5
    assert fakes.seconds["seconds/controller"] < fakes.seconds["seconds/step"]
    assert fakes.seconds["rollout/images_per_s"] == 5.0 and "rollout/images_per_s" not in fakes.logged[1]
    phases = [span.name for span in fakes.traced]
    assert phases == ["rollout", "reward", "collate", "learner", "weights"] * 2 + ["checkpoint"]
    assert {span.track for span in fakes.traced} == {"controller"}
    begins = [span.begin for span in fakes.traced]
    assert begins == sorted(begins) and all(span.seconds >= 0 for span in fakes.traced)


def test_a_resumed_run_logs_the_remaining_steps_as_the_whole_run_did():
    whole, resumed = run(Fakes(), steps=4), Fakes()
    resumed.version = 2
    run(resumed, steps=4, start=2)
    assert resumed.logged == {step: whole.logged[step] for step in (3, 4)}


def test_pairs_go_to_the_learner_only_with_a_noise_loss():
    assert run(Fakes(), steps=1).pairs is None
    assert len(run(Fakes(), steps=1, noise_loss={"weight": 1.0, "pairs_per_step": 3}).pairs) == 3


def test_missing_scores_are_counted_and_a_step_without_any_stops_with_a_remedy():
    logged = run(Fakes(totals=((1.0, None), (0.0, 2.0))), steps=1).logged[1]
    assert (logged["reward/missing"], logged["reward/mutual_information/missing"]) == (2, 2)
    with pytest.raises(NothingToLearn, match=r"never scored: mutual_information.*--resume"):
        run(Fakes(totals=((None, None), (None, None))), steps=1)
