import numpy as np
import pytest

from omr_ray.evaluation import objectives, protocols
from omr_ray.evaluation.results import Evaluation, HeldOut, RoundsToIntent
from omr_ray.types import UserError

NAN = np.nan


def evaluation(shift=0.0, rounds=((2, 4), (6, 8)), dialogues=("a", "b")):
    """Two dialogues; the second has one round only."""
    figures = np.array([[0.2, 0.4], [0.6, NAN]]) + shift
    held = HeldOut(dialogues=dialogues, preference=figures, diversity=figures, consistency=figures, accuracy=np.full((2, 2), NAN))
    intent = RoundsToIntent(dialogues=dialogues, rounds=np.array(rounds), max_rounds=8)
    return Evaluation(phase="after", weights="w", seed=7, held_out=held, intent=intent, sheet=())


def test_figures_are_one_number_a_dialogue():
    found = objectives.figures(evaluation())
    assert set(found) == {"preference", "consistency", "diversity", "rounds_to_intent"}  # no oracle, no accuracy
    np.testing.assert_allclose(found["preference"], [0.3, 0.6])  # over all rounds
    np.testing.assert_allclose(found["diversity"], [0.4, 0.6])  # of the last
    np.testing.assert_allclose(found["rounds_to_intent"], [3, 7])
    interval = objectives.intervals(evaluation())["rounds_to_intent"]
    assert (interval.value, interval.low, interval.high) == (5, 3, 7)


def test_gains_are_paired():
    gain = objectives.gains(evaluation(), evaluation(shift=0.1))["preference"]
    np.testing.assert_allclose([gain.value, gain.low, gain.high], 0.1)  # every dialogue gains the same, so the interval is a point


def test_a_front_by_hand():
    points = np.array([[0.9, 5.0], [0.8, 4.0], [0.7, 6.0], [0.8, 4.5], [0.9, NAN], [0.5, 3.0]])
    front = objectives.pareto(points, ["preference", "rounds_to_intent"])  # more is better, fewer is better
    assert front.tolist() == [True, True, False, False, False, True]
    assert objectives.pareto(points[:4, :1], ["preference"]).tolist() == [True, False, False, False]


def test_equal_points_are_both_on_the_front():
    assert objectives.pareto(np.array([[1.0, 1.0], [1.0, 1.0]]), ["preference", "diversity"]).tolist() == [True, True]


def test_the_best_is_nearest_to_the_best_of_each():
    # On ranges of 1, distances to (0.9, 3): (0, 1), (0.25, 0.5), (1, 0).
    points = np.array([[0.9, 5.0], [0.8, 4.0], [0.7, 6.0], [0.5, 3.0]])
    assert objectives.best(points, ["preference", "rounds_to_intent"]) == 1
    assert objectives.best(points[:, 1:], ["rounds_to_intent"]) == 3
    assert objectives.best(np.array([[NAN]]), ["preference"]) is None


def test_seeds_are_averaged_by_dialogue():
    whole = protocols.averaged([evaluation(), evaluation(shift=0.2, rounds=((4, 4), (8, 8)))])
    np.testing.assert_allclose(whole.held_out.preference, [[0.3, 0.5], [0.7, NAN]])
    np.testing.assert_allclose(whole.intent.rounds.mean(axis=1), [3.5, 7.5])
    with pytest.raises(UserError, match="same held-out dialogues"):
        protocols.averaged([evaluation(), evaluation(dialogues=("a", "c"))])
