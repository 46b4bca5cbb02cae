import json

import numpy as np
import pytest

from omr_ray.rewards.total import RunningStatistics, TotalReward
from omr_ray.types import Dialogue, Rollout, Round, Trajectory

WEIGHTS = {"diversity": 1.0, "consistency": 10.0, "mutual_information": 100.0}


def rollout(features):
    """features [R][G] of 2-vectors."""
    rounds = tuple(Round(index=r, utterance="u", prompt="p") for r in range(1, len(features) + 1))
    trajectories = tuple(tuple(trajectory(r, g, value) for g, value in enumerate(siblings)) for r, siblings in enumerate(features, start=1))
    return Rollout(dialogue=Dialogue(id="d", intent="i", rounds=rounds), trajectories=trajectories)


def trajectory(round_, sibling, features):
    steps = np.zeros((1, 1, 2, 2), np.float32)
    times = np.zeros(1, np.int64)
    return Trajectory(
        dialogue_id="d",
        round=round_,
        sibling=sibling,
        seed=0,
        policy_version=0,
        prompt="p",
        prompt_ids=np.zeros((1, 2), np.int64),
        latents=steps,
        next_latents=steps,
        timesteps=times,
        previous_timesteps=times,
        log_probs=np.zeros(1, np.float32),
        features=np.array(features, np.float32),
        image=np.zeros((2, 2, 3), np.uint8),
    )


EXAMPLE = rollout([[(1, 0), (0, 1)], [(1, 0), (1, 0)]])  # diversity 1, 1 | 0, 0; consistency - | 1, 0
PREFERENCES = [[0.1, 0.2], [0.3, 0.4]]


def totals(scored):
    return [[reward.total for reward in siblings] for siblings in scored.rewards]


def test_the_raw_sum_by_hand():
    judge = TotalReward(lambda t: {name: t * w for name, w in WEIGHTS.items()}, standardize=False)
    (scored,) = judge.score([EXAMPLE], [{"mutual_information": PREFERENCES}])
    np.testing.assert_allclose(totals(scored), [[1 + 10, 1 + 20], [2 * (0 + 10 + 30), 2 * (0 + 0 + 40)]], atol=1e-6)
    first, second = scored.rewards[0][0], scored.rewards[1][0]
    assert "consistency" not in first.terms
    assert second.terms == pytest.approx({"diversity": 0, "consistency": 1, "mutual_information": 0.3}, abs=1e-12)
    assert second.weights == {name: 2 * w for name, w in WEIGHTS.items()}
    assert judge.missing == 0


def test_terms_are_standardised_by_statistics_that_include_this_step():
    judge = TotalReward(lambda t: WEIGHTS, standardize=True)
    (scored,) = judge.score([EXAMPLE], [{"mutual_information": PREFERENCES}])
    # diversity: mean 1/2, deviation 1/2; consistency 1, 0: the same; preference: mean 0.25, variance 0.0125
    preference = (np.array(PREFERENCES) - 0.25) / 0.0125**0.5
    wanted = 100 * preference + np.array([[1, 1], [-1 + 10, -1 - 10]])
    np.testing.assert_allclose(totals(scored), wanted, atol=1e-6)


def test_diversity_over_the_whole_dialogue():
    judge = TotalReward(lambda t: {"diversity": 1.0, "consistency": 0.0, "mutual_information": 0.0}, False, "dialogue")
    (scored,) = judge.score([EXAMPLE], [{"mutual_information": PREFERENCES}])
    np.testing.assert_allclose(totals(scored), [[1 / 3, 1], [1 / 3, 1 / 3]], atol=1e-6)


@pytest.mark.parametrize("fault", [None, float("nan"), float("inf")])
def test_a_failed_score_is_missing_and_counted(fault):
    judge = TotalReward(lambda t: WEIGHTS, standardize=True)
    (scored,) = judge.score([EXAMPLE], [{"mutual_information": [[0.1, fault], [0.3, 0.4]]}])
    assert scored.rewards[0][1].total is None
    assert scored.rewards[0][1].terms["mutual_information"] is None
    assert scored.rewards[0][1].terms["diversity"] == pytest.approx(1)
    assert judge.missing == 1
    assert judge.statistics["mutual_information"].count == 3


def test_features_that_are_not_finite_are_missing():
    judge = TotalReward(lambda t: WEIGHTS, standardize=False)
    (scored,) = judge.score([rollout([[(1, 0), (np.nan, 1)], [(1, 0), (1, 0)]])], [{"mutual_information": PREFERENCES}])
    assert scored.rewards[0][1].terms["diversity"] is None
    assert scored.rewards[1][1].terms["consistency"] is None  # its round 1 has no direction
    assert judge.missing == 2


def test_welford_is_mean_and_deviation():
    values = np.random.default_rng(0).normal(3, 2, size=100)
    statistics = RunningStatistics()
    for value in values:
        statistics.add(value)
    assert statistics.standardized(5.0) == pytest.approx((5 - values.mean()) / values.std())


def test_equal_values_standardise_to_0():
    statistics = RunningStatistics()
    statistics.add(0.7)
    statistics.add(0.7)
    assert statistics.standardized(0.7) == 0


def test_the_state_survives_json_bit_for_bit():
    judge, resumed = (TotalReward(lambda t: WEIGHTS) for _ in range(2))
    judge.score([EXAMPLE], [{"mutual_information": PREFERENCES}])
    resumed.load(json.loads(json.dumps(judge.state())))
    later = [{"mutual_information": [[0.9, 0.2], [0.4, 0.8]]}]
    assert totals(judge.score([EXAMPLE], later)[0]) == totals(resumed.score([EXAMPLE], later)[0])


SHARP = [[2.0, 4.0], [6.0, 8.0]]
ADDED = {"mutual_information": PREFERENCES, "sharp": SHARP}


def test_an_added_term_is_one_more_line_of_the_sum():
    judge = TotalReward(lambda t: WEIGHTS | {"sharp": -1000.0}, standardize=False)
    (scored,) = judge.score([EXAMPLE], [ADDED])
    np.testing.assert_allclose(totals(scored), [[1 + 10 - 2000, 1 + 20 - 4000], [0 + 10 + 30 - 6000, 0 + 0 + 40 - 8000]], atol=1e-6)
    assert scored.rewards[1][0].terms["sharp"] == 6.0 and scored.rewards[1][0].weights["sharp"] == -1000.0


def test_an_added_term_has_statistics_of_its_own_that_a_resumed_run_keeps():
    judge, resumed = (TotalReward(lambda t: dict.fromkeys(WEIGHTS, 0.0) | {"sharp": 10.0}) for _ in range(2))
    (scored,) = judge.score([EXAMPLE], [ADDED])
    np.testing.assert_allclose(totals(scored), 10 * (np.array(SHARP) - 5) / 5**0.5, atol=1e-9)  # mean 5, variance 5
    resumed.load(json.loads(json.dumps(judge.state())))
    assert totals(judge.score([EXAMPLE], [ADDED])[0]) == totals(resumed.score([EXAMPLE], [ADDED])[0])
    assert resumed.statistics["sharp"].count == 8


def test_an_added_term_without_a_score_makes_the_total_missing():
    judge = TotalReward(lambda t: WEIGHTS | {"sharp": 1.0})
    (scored,) = judge.score([EXAMPLE], [ADDED | {"sharp": [[2.0, None], [6.0, float("nan")]]}])
    assert [[reward.total is None for reward in siblings] for siblings in scored.rewards] == [[False, True], [False, True]]
    assert (judge.missing, judge.statistics["sharp"].count) == (2, 2)
