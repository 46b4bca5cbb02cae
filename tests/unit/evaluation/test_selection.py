import numpy as np
import pytest

from omr_ray.evaluation.selection import contests, top


def test_the_highest_scores_are_kept_and_a_missing_one_comes_last():
    scores = np.array([[1.0, 3.0, np.nan, 3.0], [np.nan, np.nan, np.nan, -5.0]])
    assert top(scores, 2).tolist() == [[1, 3], [3, 0]]


def test_contests_by_hand():
    worth = np.array([[1.0, 0.5, 0.0, 0.5], [0.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    ours = worth.copy()  # picks what the judge likes: worth 0.75, 1.0, 1.0 of four, and 0.75, 0.5 and 1.0 of two
    worst = -worth  # 0.25, 0.0, 1.0 of four
    of_two, _, of_four, chance = contests(worth, ours, {"worst": worst}, sizes=(2, 4), keep=2)
    assert (of_four.rival, of_four.size, of_four.win, of_four.tie, of_four.lose) == ("worst", 4, 2, 1, 0)
    assert of_four.ours == pytest.approx(2.75 / 3) and of_four.theirs == pytest.approx(1.25 / 3)
    assert of_four.gain.value == pytest.approx(0.5) and of_four.gain.low <= 0.5 <= of_four.gain.high
    assert (of_two.win, of_two.tie, of_two.lose) == (0, 3, 0)  # two of two are the same two
    assert chance.rival == "random" and chance.lose == 0


def test_a_prompt_that_cannot_be_judged_is_left_out():
    worth = np.array([[np.nan] * 3, [1.0, 0.0, 0.0]])
    (contest, _) = contests(worth, worth, {"other": np.zeros((2, 3))}, sizes=(3,), keep=1)
    assert contest.win + contest.tie + contest.lose == 1 and contest.ours == 1.0


def test_too_few_images_are_refused():
    with pytest.raises(ValueError, match="needs 64 images a prompt, got 9"):
        contests(np.zeros((1, 9)), np.zeros((1, 9)), {})
