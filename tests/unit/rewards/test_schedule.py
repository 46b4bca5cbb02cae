import pytest

from omr_ray.rewards.schedule import constant, exponential, linear

TERMS = ("diversity", "consistency", "mutual_information")


@pytest.mark.parametrize(
    ("t", "weights"),
    [(1, (0.860708, 0.095163, 0.463872)), (3, (0.637628, 0.259182, 0.399258)), (8, (0.301194, 0.550671, 0.274406))],
)
def test_the_published_exponents(t, weights):
    found = exponential(t, alpha=0.15, beta=0.1, gamma=0.075)
    assert found == pytest.approx(dict(zip(TERMS, weights, strict=True)), abs=5e-7)


def test_constant_weights_do_not_depend_on_the_round():
    weights = dict.fromkeys(TERMS, 0.25)
    assert constant(1, **weights) == constant(8, **weights) == weights


@pytest.mark.parametrize(("t", "diversity", "consistency"), [(1, 1.0, 0.0), (3, 0.5, 1.0), (5, 0.0, 2.0), (9, 0.0, 2.0)])
def test_linear_weights_run_straight_and_then_stay(t, diversity, consistency):
    found = linear(t, first=(1.0, 0.0, 0.5), last=(0.0, 2.0, 0.5), rounds=5)
    assert found == {"diversity": diversity, "consistency": consistency, "mutual_information": 0.5}


def test_a_linear_schedule_of_one_round_is_its_end():
    assert linear(1, first=(1, 1, 1), last=(2, 3, 4), rounds=1) == dict(zip(TERMS, (2, 3, 4), strict=True))
