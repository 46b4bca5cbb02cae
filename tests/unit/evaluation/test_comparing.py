import numpy as np
import pytest

from omr_ray.evaluation import comparing


def test_box_plot_statistics_by_hand():
    # 1..8 and 100: quartiles 3 and 7, so a whisker reaches at most 7 + 1.5 * 4 = 13, and 100 lies beyond.
    found = comparing.box(np.array([[1, 2, 3, 4, np.nan], [5, 6, 7, 8, 100]]))
    assert (found["q1"], found["med"], found["q3"], found["whislo"], found["whishi"]) == (3, 5, 7, 1, 8)
    assert found["mean"] == pytest.approx(136 / 9)
    assert found["fliers"].tolist() == [100]


def test_ranks_leave_room_behind_equals_and_skip_what_is_missing():
    assert comparing.ranks([0.4, 0.1, 0.4, None, 0.9, float("nan")], "down") == [2, 1, 2, None, 4, None]
    assert comparing.ranks([3.5, 2.7, 3.5], "up") == [1, 3, 1]


def test_win_rates_pair_images_and_count_ties_as_halves():
    ours = np.array([[[1.0, 3.0]], [[2.0, np.nan]]])  # two dialogues, one round, two siblings
    theirs = np.array([[[0.0, 3.0]], [[5.0, 1.0]]])
    assert comparing.won(ours, theirs)[0].tolist() == [[1.0, 0.5]]
    rates = comparing.win_rates({"ours": ours, "theirs": theirs})
    assert rates[0, 1] == pytest.approx((0.75 + 0.0) / 2)  # dialogues weigh the same, whatever is known of them
    assert rates[1, 0] == pytest.approx((0.25 + 1.0) / 2)
    assert np.isnan(rates[0, 0])
    assert comparing.win_rates({"ours": ours, "theirs": theirs}, "down")[0, 1] == pytest.approx((0.25 + 1.0) / 2)


def test_intervals_are_over_dialogues_and_differences_are_paired():
    cube = np.array([[[1.0, 3.0]], [[2.0, np.nan]], [[np.nan, np.nan]]])
    found = comparing.interval(cube)
    assert (found.value, found.low, found.high) == (2, 2, 2)
    assert comparing.difference(cube, cube + 0.5).low == pytest.approx(0.5)
    assert comparing.interval(np.full((2, 1, 1), np.nan)) is None
    assert comparing.difference(cube, np.full_like(cube, np.nan)) is None
