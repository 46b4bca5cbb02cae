"""OMR eq. 6, 7 and 8 on numbers worked by hand."""

import numpy as np
import pytest

from omr_ray.rewards.consistency import consistency, consistency_credits
from omr_ray.rewards.diversity import diversity, diversity_credits, mean_of_others
from omr_ray.rewards.mutual_information import infonce, infonce_credits

ROOT = 0.5**0.5
FEATURES = np.array([[1, 0], [0, 3], [2, 2]], dtype=np.float32)  # cosines: 0, ROOT, ROOT


def test_diversity_by_hand():
    assert diversity(FEATURES) == pytest.approx((2 * 1 + 4 * (1 - ROOT)) / 6)
    one_and_two = (1 + 1 - ROOT) / 2
    np.testing.assert_allclose(diversity_credits(FEATURES), [one_and_two, one_and_two, 1 - ROOT], atol=1e-12)


def test_diversity_is_the_double_sum_of_the_paper():
    features = np.random.default_rng(0).normal(size=(7, 11))
    terms = [
        1 - features[i] @ features[j] / (np.linalg.norm(features[i]) * np.linalg.norm(features[j]))
        for i in range(7)
        for j in range(7)
        if i != j
    ]
    assert diversity(features) == pytest.approx(sum(terms) / (7 * 6))


def test_a_sample_without_direction_is_missing_and_no_neighbour():
    broken = np.vstack([FEATURES, [[0, 0], [np.nan, 1]]])
    found = diversity_credits(broken)
    np.testing.assert_allclose(found[:3], diversity_credits(FEATURES), atol=1e-12)
    assert np.isnan(found[3:]).all()


def test_one_sample_differs_from_nothing():
    assert diversity_credits(FEATURES[:1]) == pytest.approx([0], abs=1e-12)


def test_consistency_by_hand():
    rounds = FEATURES[[0, 2, 1]]
    np.testing.assert_allclose(consistency_credits(rounds), [0, ROOT, ROOT])
    assert consistency(rounds) == pytest.approx(2 * ROOT)


def test_consistency_of_siblings_is_taken_sample_by_sample():
    found = consistency_credits(np.stack([FEATURES, FEATURES[[1, 1, 2]]]))  # [R=2, G=3]
    np.testing.assert_allclose(found, [[0, 0, 0], [0, 1, 1]], atol=1e-7)


def test_infonce_by_hand():
    scores = np.log([[3, 1], [1, 3]])  # softmax of each diagonal: 3/4
    np.testing.assert_allclose(infonce_credits(scores), np.log([1.5, 1.5]))
    assert infonce(scores) == pytest.approx(np.log(1.5))
    assert infonce(np.zeros((4, 4))) == pytest.approx(0)
    assert infonce(1000 * np.eye(4)) == pytest.approx(np.log(4))  # the bound's ceiling, without overflow


def test_the_mean_direction_of_the_others_by_hand():
    others = mean_of_others(np.array([[3.0, 0.0], [0.0, 2.0], [0.0, 0.0], [-1.0, 0.0]]))  # the third has no direction
    np.testing.assert_allclose(others, [[-0.5, 0.5], [0, 0], [0, 1 / 3], [0.5, 0.5]], atol=1e-7)
    assert others.dtype == np.float32
    assert mean_of_others(np.ones((1, 2))).tolist() == [[0, 0]]


def test_the_distance_from_the_others_is_the_credit():
    features = np.random.default_rng(0).standard_normal((5, 7))
    directions = features / np.linalg.norm(features, axis=1, keepdims=True)
    np.testing.assert_allclose(1 - (directions * mean_of_others(features)).sum(1), diversity_credits(features), atol=1e-6)
