import numpy as np

from omr_ray.algorithm.advantage import group_advantages, return_to_go

NAN = np.nan


def test_the_group_baseline_by_hand():
    # mean 2, standard deviation sqrt(2 / 3)
    found = group_advantages(np.array([1.0, 2.0, 3.0]), baseline="group", eps=0.0)
    np.testing.assert_allclose(found, [-(1.5**0.5), 0, 1.5**0.5])


def test_leave_one_out_by_hand():
    found = group_advantages(np.array([[1.0, 2.0, 3.0], [0.0, 0.0, 4.0]]), baseline="leave_one_out")
    np.testing.assert_allclose(found, [[-1.5, 0, 1.5], [-2, -2, 4]])


def test_a_missing_reward_is_left_out_and_stays_missing():
    rewards = np.array([1.0, NAN, 2.0, 3.0, np.inf])
    for baseline in ("group", "leave_one_out"):
        found = group_advantages(rewards, baseline=baseline)
        np.testing.assert_array_equal(found[[0, 2, 3]], group_advantages(np.array([1.0, 2.0, 3.0]), baseline=baseline))
        assert np.isnan(found[[1, 4]]).all()


def test_a_group_with_nothing_to_compare_gives_0():
    rewards = np.array([[0.1, 0.1, 0.1], [NAN, 7.0, NAN], [NAN, NAN, NAN]])
    for baseline in ("group", "leave_one_out"):
        found = group_advantages(rewards, baseline=baseline)
        np.testing.assert_array_equal(found, [[0, 0, 0], [NAN, 0, NAN], [NAN, NAN, NAN]])


def test_return_to_go_by_hand():
    found = return_to_go(np.array([[1.0, 0.0], [2.0, NAN], [4.0, 8.0]]), 0.5)
    np.testing.assert_array_equal(found, [[3, NAN], [4, NAN], [4, 8]])


def test_no_discounted_future_is_the_immediate_reward():
    rewards = np.array([[1.0], [NAN], [4.0]])
    np.testing.assert_array_equal(return_to_go(rewards, 0.0), rewards)
