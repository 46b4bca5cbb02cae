import numpy as np
import pytest

from omr_ray.evaluation.metrics import paired_bootstrap, paired_ratio, rounds_to_intent, satisfaction


def test_rounds_to_intent_is_the_first_match_or_one_more_than_all():
    matches = [[True, True, True], [False, True, False], [False, False, True], [False, False, False]]
    assert rounds_to_intent(matches).tolist() == [1, 2, 3, 4]


def test_satisfaction_counts_who_is_done_by_each_round():
    assert satisfaction(np.array([1, 2, 2, 4]), max_rounds=3).tolist() == [0.25, 0.75, 0.75]


def test_a_constant_difference_has_an_interval_of_no_width():
    before = np.array([0.1, 0.5, 0.9])
    assert paired_bootstrap(before, before + 0.2, samples=200, seed=0) == pytest.approx((0.2, 0.2, 0.2))
    assert paired_ratio(before, before * 3, samples=200, seed=0) == pytest.approx((3, 3, 3))


def test_the_interval_is_the_normal_one_for_many_dialogues():
    rng = np.random.default_rng(1)
    before, difference = rng.normal(5.0, 3.0, 400), rng.normal(1.0, 2.0, 400)
    value, low, high = paired_bootstrap(before, before + difference, samples=4000, seed=0)
    half = 1.96 * difference.std() / np.sqrt(400)
    assert value == pytest.approx(difference.mean())
    assert (high - low) / 2 == pytest.approx(half, rel=0.08)
    assert low < value < high


def test_the_same_seed_gives_the_same_interval():
    before, after = np.random.default_rng(2).normal(size=(2, 30))
    assert paired_bootstrap(before, after, 500, seed=3) == paired_bootstrap(before, after, 500, seed=3)
    assert paired_bootstrap(before, after, 500, seed=3) != paired_bootstrap(before, after, 500, seed=4)


def test_a_dialogue_with_one_side_missing_is_left_out_of_both():
    assert paired_bootstrap(np.array([0.0, 100.0, 0.0]), np.array([1.0, np.nan, 1.0]), 50, 0) == (1.0, 1.0, 1.0)
    assert np.isnan(paired_bootstrap(np.array([np.nan]), np.array([1.0]), 50, 0)).all()
