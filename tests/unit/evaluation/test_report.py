import re

import numpy as np
import pytest

from omr_ray.config.reading import dump
from omr_ray.config.run import RunConfig
from omr_ray.evaluation import protocols
from omr_ray.evaluation.plots import running_mean
from omr_ray.evaluation.protocols import Evaluation, HeldOut, RoundsToIntent, SheetRound, SheetRow
from omr_ray.evaluation.report import headlines, write_report
from omr_ray.tracking import Tracker
from omr_ray.types import UserError


def evaluation(phase, accuracy, rounds):
    held = HeldOut(dialogues=("a", "b"), **dict.fromkeys(("accuracy", "preference", "diversity", "consistency"), np.array(accuracy)))
    round_ = SheetRound(utterance="<b>bold</b>", prompt="a hat", image=np.zeros((4, 4, 3), np.uint8), target=None, wrong=("content",))
    return Evaluation(
        phase=phase,
        weights=f"the {phase} weights",
        seed=7,
        held_out=held,
        intent=RoundsToIntent(dialogues=("a", "b"), rounds=np.array(rounds), max_rounds=8),
        sheet=(SheetRow(dialogue="a", intent="a hat", rounds=(round_,)),),
    )


BEFORE, AFTER = evaluation("before", [[0.5, 0.4], [0.7, 0.6]], [[4], [8]]), evaluation("after", [[0.5, 0.5], [0.7, 0.7]], [[2], [4]])


def test_a_run_becomes_one_page_that_fetches_nothing(tmp_path):
    (tmp_path / "config.yaml").write_text(dump(RunConfig(name="my-run")))
    tracker = Tracker(tmp_path, tensorboard=False)
    tracker.log(1, {"reward/diversity/round_1": 0.1, "learner/kl": 0.01})
    tracker.time(1, {"seconds/rollout": 2.0, "seconds/step": 2.5})
    for result in (BEFORE, AFTER):
        protocols.save(result, tmp_path / "evaluation")
    page = write_report(tmp_path).read_text()
    for text in (
        "my-run",
        "the before weights",
        "the after weights",
        "Diversity",
        "Time by phase",
        "✗ content",
        "&lt;b&gt;bold",
        "learning_rate",
    ):
        assert text in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert "url(http" not in page and "@import" not in page


def test_a_run_without_evaluation_has_a_page_too(tmp_path):
    (tmp_path / "config.yaml").write_text(dump(RunConfig(name="young")))
    assert "What changed" not in write_report(tmp_path).read_text()


def test_a_directory_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="config.yaml is missing"):
        write_report(tmp_path)


def test_the_cards_say_which_way_is_better():
    cards = {card.title: card for card in headlines(BEFORE, AFTER, protocols.compare(BEFORE, AFTER))}
    accuracy, intent = cards["Aspects right in the last round"], cards["Rounds to intent"]
    assert (accuracy.before, accuracy.after, accuracy.change, accuracy.verdict) == ("50.0%", "60.0%", "+10.0 points", "better")
    assert (intent.before, intent.after, intent.change, intent.verdict) == ("6.00", "3.00", "−50.0 %", "better")


def test_running_mean_leaves_out_what_is_missing():
    assert running_mean([1.0, 3.0, 5.0], 2).tolist() == [1.0, 2.0, 4.0]
    assert running_mean([1.0, float("nan"), 5.0], 2).tolist() == [1.0, 1.0, 5.0]


def test_a_term_that_a_user_added_has_a_curve_and_a_line_in_the_schedule(tmp_path):
    scorer = {"type": "function", "path": "my.rewards:sharp"}
    config = RunConfig(name="mine", rewards={"terms": [{"name": "very_sharp", "weight": 0.5, "scorer": scorer}]})
    (tmp_path / "config.yaml").write_text(dump(config))
    tracker = Tracker(tmp_path, tensorboard=False)
    tracker.log(1, {"reward/diversity/round_1": 0.1, "reward/very_sharp/round_1": 2.0, "reward/very_sharp/missing": 0.0})
    page = write_report(tmp_path).read_text()
    assert re.search(r"<[^>]*>\s*very sharp\s*<", page)  # the title of its plot
    assert re.search(r"<text[^>]*>very_sharp</text>", page)  # the legend of the schedule


def test_a_run_of_before_there_were_terms_keeps_its_page(tmp_path):
    (tmp_path / "config.yaml").write_text(dump(RunConfig(name="old")).replace("  terms: []\n", ""))
    assert "Reward weights by round" in write_report(tmp_path).read_text()
