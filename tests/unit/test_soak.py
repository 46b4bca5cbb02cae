"""Whether memory grows, or only seems to: the figures of a soak of the service (tests/bench/soak.py)."""

import numpy as np
import pytest

from tests.bench.soak import trend

TIMES = 5.0 * np.arange(60)  # five minutes


def test_a_straight_line_is_its_slope_without_noise():
    found = trend(TIMES, 100 + TIMES / 60)  # a MiB a minute
    assert found["mib"] == pytest.approx(100 + 295 / 60) and found["mib_per_hour"] == pytest.approx(60)
    assert found["noise"] == pytest.approx(0, abs=1e-6) and found["grows"]
    assert trend(TIMES, 100 - TIMES / 60)["grows"] is False  # who gives memory back does not leak


def test_memory_that_stays_does_not_grow():
    found = trend(TIMES, np.full(60, 321.5))
    assert (found["mib"], found["mib_per_hour"], found["noise"], found["grows"]) == (321.5, 0, 0, False)


def test_the_noise_of_four_samples_by_hand():
    # Residuals 1, -1, -1, 1 on x = -15, -5, 5, 15 leave slope 0; neighbours are rather unlike, so all four count.
    found = trend(np.array([0.0, 10, 20, 30]), np.array([11.0, 9, 9, 11]))
    assert found["mib_per_hour"] == pytest.approx(0)
    assert found["noise"] == pytest.approx(3600 * 2 * (4 / (4 - 2) / 500) ** 0.5) and not found["grows"]


def test_samples_that_follow_each_other_count_for_less():
    rng = np.random.default_rng(0)
    steps, white = np.zeros(60), rng.normal(size=60)
    for i in range(1, 60):
        steps[i] = 0.8 * steps[i - 1] + white[i]
    wandering, jumping = trend(TIMES, 100 + steps / steps.std()), trend(TIMES, 100 + rng.permutation(steps) / steps.std())
    assert wandering["noise"] > 2 * jumping["noise"]
    assert not wandering["grows"] and not jumping["grows"]
    assert trend(TIMES, 100 + white + TIMES / 10)["grows"]  # six MiB a minute are found in spite of it
    assert trend(TIMES[:2], steps[:2])["grows"] is None
