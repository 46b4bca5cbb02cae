"""Win rates, Bradley-Terry strengths and blind assignments, by hand."""

import json
from collections import Counter

import numpy as np
import pytest

from omr_ray.evaluation import votes
from omr_ray.evaluation.votes import BlindPair, Vote
from omr_ray.types import UserError

THREE = ["A", "B", "C"]


def vote(left, right, choice, item="d1", annotator="a"):
    return Vote(item=item, annotator=annotator, left=left, right=right, choice=choice)


def test_a_tie_is_half_a_win_and_both_bad_is_none():
    said = [vote("A", "B", "left"), vote("A", "B", "left"), vote("B", "A", "left"), vote("A", "B", "tie"), vote("A", "B", "both_bad")]
    wins = votes.counts(said, ["A", "B"])
    assert wins.tolist() == [[0, 2.5], [1.5, 0]]
    assert votes.win_rates(wins).tolist() == [0.625, 0.375]


def test_strengths_that_explain_the_counts_exactly_are_found():
    # p = 1, 2, 4 and 15 comparisons of each two: B beats A in 2/3, C beats B in 2/3, C beats A in 4/5 of them.
    wins = np.array([[0, 5, 3], [10, 0, 5], [12, 10, 0]], float)
    found = votes.bradley_terry(wins)
    assert np.exp(found - found[0]) == pytest.approx([1, 2, 4], rel=1e-6)
    assert found.sum() == pytest.approx(0, abs=1e-9)


def test_strengths_satisfy_the_likelihood_equations():
    # Zermelo 1929: at the maximum a model wins as often as its strength says it should.
    wins = np.array([[0, 7, 2, 4], [3, 0, 6, 5], [8, 1, 0, 2], [5, 5, 9, 0]], float)
    p = np.exp(votes.bradley_terry(wins))
    expected = ((wins + wins.T) * p[:, None] / (p[:, None] + p[None, :])).sum(axis=1)
    assert expected == pytest.approx(wins.sum(axis=1), rel=1e-6)


def test_a_model_that_never_loses_has_a_finite_strength_and_one_that_never_played_has_none():
    wins = np.array([[0, 10, 0], [0, 0, 0], [0, 0, 0]], float)
    found = votes.bradley_terry(wins)
    assert np.exp(found[0] - found[1]) == pytest.approx(10.5 / 0.5)
    assert np.isnan(found[2])


def test_intervals_hold_the_value_and_are_empty_where_all_items_agree():
    said = [vote(*pair, "left", item=f"d{n}") for n in range(6) for pair in (("A", "B"), ("B", "C"), ("A", "C"))]
    rates, strengths = votes.bootstrapped(said, THREE)
    assert [(rate.value, rate.low, rate.high) for rate in rates] == [(1, 1, 1), (0.5, 0.5, 0.5), (0, 0, 0)]
    assert all(one.low == pytest.approx(one.high) for one in strengths)
    said[0] = vote("A", "B", "right", item="d0")
    rates, _ = votes.bootstrapped(said, THREE)
    assert rates[0].value == pytest.approx(11 / 12)
    assert rates[0].low < rates[0].value <= rates[0].high <= 1


def test_every_annotator_sees_every_pair_once_in_each_order():
    items = [(f"d{n}", 4, 0, "a dress") for n in range(5)]
    pairs = votes.blind_pairs(items, THREE, seed=3)
    known = {pair.id: pair for pair in pairs}
    assert len(known) == 5 * 6
    shown = votes.cross_over(pairs, ["x", "y"], seed=3)
    for ids in shown.values():
        assert Counter(ids) == dict.fromkeys(known, 1)
        first, second = ([known[id] for id in half] for half in (ids[:15], ids[15:]))
        orders = {(pair.dialogue, pair.left, pair.right) for pair in first}
        assert orders == {(pair.dialogue, pair.right, pair.left) for pair in second}
        assert len({(pair.dialogue, *sorted((pair.left, pair.right))) for pair in first}) == 15
    # Whoever starts with one order, the next annotator starts with the other.
    assert {known[id].id for id in shown["x"][:15]} == {known[id].id for id in shown["y"][15:]}
    assert shown["x"][:15] != sorted(shown["x"][:15])


def test_ids_tell_nothing_of_who_painted():
    (one, other) = votes.blind_pairs([("d1", 4, 0, "a dress")], ["Ours", "Base"], seed=0)
    assert one.id != other.id
    assert not {"ours", "base"} & {one.id.lower(), other.id.lower()}
    assert votes.blind_pairs([("d1", 4, 0, "a dress")], ["Ours", "Base"], seed=1)[0].id != one.id


def test_votes_are_read_with_the_models_behind_them():
    pair = BlindPair(id="p1", dialogue="d1", round=4, sibling=0, prompt="a dress", left="Ours", right="Base")
    key = votes.key_of([pair])
    line = json.dumps({"pair": "p1", "annotator": "x", "choice": "right"})
    assert votes.read_votes([line, ""], key, "votes.jsonl") == [vote("Ours", "Base", "right", item="d1/4/0", annotator="x")]


@pytest.mark.parametrize(
    ("line", "said"),
    [("{", "not a judged pair"), ('{"pair": "p1", "choice": "best"}', "choice 'best'"), ('{"pair": "p2", "choice": "tie"}', "pair 'p2'")],
)
def test_a_line_that_is_no_vote_is_named(line, said):
    key = {"p1": {"dialogue": "d1", "round": 1, "sibling": 0, "left": "A", "right": "B"}}
    with pytest.raises(UserError, match=f"votes.jsonl:1: .*{said}"):
        votes.read_votes([line], key, "votes.jsonl")
