"""Models that play a part: named by hand, or the trials of a sweep; and those that are not there."""

import json

import numpy as np
import pytest

from omr_ray.config.comparison import Adapted, Base, ComparisonConfig
from omr_ray.config.run import Evaluation, RunConfig
from omr_ray.evaluation.papers import people, roles
from omr_ray.evaluation.papers.result import Context
from omr_ray.evaluation.stored import MadeImage, Results, Value, png
from omr_ray.evaluation.trained import of_sweep
from omr_ray.trials import Outcome, Trial, Trials

PIXEL = png(np.zeros((2, 2, 3), np.uint8))


def write(results, model, task, metric, measure, scores):
    """One dialogue, one sibling, a score a round."""
    told = {"dialogue": "d1", "sibling": 0}
    images = [
        MadeImage(**told, round=r, seed=0, utterance="", prompt="a dress", intent="a dress", image=PIXEL, seconds=1.0)
        for r in range(1, len(scores) + 1)
    ]
    results.write_images(model, task, 0, images)
    results.write_values(model, task, metric, 0, [Value(**told, round=r, measure=measure, value=v) for r, v in enumerate(scores, start=1)])


def context(tmp_path, absent=None, trials=None, **given):
    models = (Base(), *(Adapted(name=name, path="unused", published=None) for name in ("A", "B", "C")))
    config = ComparisonConfig(name="t", run="unused", models=models, **given)
    run = RunConfig(name="t", evaluation=Evaluation(dialogues=1, siblings=1, max_rounds=4))
    more = {} if trials is None else {"trials": trials}
    return Context(config=config, run=run, results=Results(str(tmp_path)), skipped={}, absent=absent or {}, **more)


def test_several_models_of_one_part_are_its_mean_and_each_user_has_a_row(tmp_path):
    found = context(tmp_path, personal={"general": "A", "per user": ["B", "C"]})
    for name, score, satisfied in (("A", 0.2, [0, 0, 0, 0]), ("B", 0.4, [0, 1]), ("C", 1.0, [0, 0, 0, 1])):
        write(found.results, name, "dialogues", "preference", "prompt", [score, score])
        write(found.results, name, "sessions", "oracle", "satisfied", satisfied)
    table, papers = roles.personal(found).tables
    rows = {name: [cell.value for cell in cells] for name, cells in table.rows}
    assert table.columns[:3] == ("satisfied ↑", "rounds to intent ↓", "Preference score")
    assert rows["general"] == [0, 5, pytest.approx(0.2), 83, 0.77]
    assert rows["per user"] == [1, 3, pytest.approx(0.7), 90, 0.85]  # rounds 2 and 4
    assert rows["per user: B"] == [1, 2, pytest.approx(0.4), None, None]
    assert set(rows) == {"general", "per user", "per user: B", "per user: C"}
    assert dict(papers.rows)["general"][1].value == 5


def test_a_model_that_is_not_there_is_missing_by_name_and_the_others_stay(tmp_path):
    why = "gone/adapter: no such file"
    found = context(tmp_path, {"B": why}, personal={"general": "A", "per user": "B"}, ablations={"no diversity": "B"}, users=["B"])
    write(found.results, "A", "dialogues", "preference", "prompt", [0.5])
    result = roles.personal(found)
    assert [name for name, _ in result.tables[0].rows] == ["general"]
    (gap,) = result.missing
    assert (gap.what, gap.why) == ("General and per-user D3PO, per user: B", why) and "omr-ray serve" in gap.remedy
    (gap,) = roles.ablation(found).missing
    assert gap.what == "Reward ablations, no diversity: B" and "ablation_sweep=DIR" in gap.remedy
    (gap,) = people.user_outputs(found).missing
    assert (gap.what, gap.why) == ("Outputs of B", why)
    assert found.models == ["Base", "A", "C"]


def test_sizes_of_the_language_model_and_of_the_training_data(tmp_path):
    found = context(tmp_path, language_sizes={"7B": "A", "3B": "B"}, training_sizes={10000: "B", 5000: ["A"]})
    for name, score in (("A", 0.25), ("B", 0.75)):
        write(found.results, name, "dialogues", "preference", "prompt", [score])
    table, _ = roles.language_sizes(found).tables
    assert [(name, cells[2].value, cells[3].value) for name, cells in table.rows] == [("7B", 0.25, 90), ("3B", 0.75, 78)]
    result = roles.training_size(found)
    assert [(name, cells[0].value) for name, cells in result.tables[0].rows] == [("5,000", 0.25), ("10,000", 0.75)]
    assert len(result.drawings) == 1


@pytest.fixture
def swept(tmp_path):
    """Two variants with two seeds: one trial failed, one has not ended."""
    trials = Trials(tmp_path / "sweep")
    names = {1: ("full", 0), 2: ("full", 1), 3: ("constant (RC25)", 0), 4: ("constant (RC25)", 1)}
    for number, (name, seed) in names.items():
        trials.add(Trial(number=number, name=name, parameters={"seed": seed}))
    for number in (1, 2, 3):
        (trials.run(trials.trial(number)) / "adapter").mkdir(parents=True)
    for number, outcome in ((1, "finished"), (2, "finished"), (3, "failed")):
        trials.end(number, Outcome(status=outcome, step=4, error="out of memory" if outcome == "failed" else None))
    return tmp_path / "sweep"


def test_the_trials_of_a_sweep_are_models_and_those_without_an_adapter_are_missing(swept, tmp_path):
    trained = of_sweep(str(swept))
    assert [(model.name, model.path) for model in trained.models] == [
        ("1 full seed 0", str(swept / "trials/0001/run-1/adapter")),
        ("2 full seed 1", str(swept / "trials/0002/run-1/adapter")),
    ]
    assert [(gap.what, gap.why) for gap in trained.missing] == [
        ("Reward ablations, constant (RC25), seed 0", "out of memory"),
        ("Reward ablations, constant (RC25), seed 1", "has not ended"),
    ]
    assert all(f"--out {swept} --resume" in gap.remedy for gap in trained.missing)
    found = context(tmp_path / "out", trials=trained, ablations={"by hand": "A"})
    for name, score in (("1 full seed 0", 0.25), ("2 full seed 1", 0.75), ("A", 1.0)):
        write(found.results, name, "dialogues", "preference", "prompt", [score])
    result = roles.ablation(found)
    assert [(name, cells[0].value) for name, cells in result.tables[0].rows] == [("full", 0.5), ("by hand", 1.0)]
    assert [gap.what for gap in result.missing] == [gap.what for gap in trained.missing]
    assert "1 full seed 0" not in found.models


def test_a_directory_without_a_sweep_is_missing_with_its_remedy(tmp_path):
    (tmp_path / "trials").mkdir()
    (tmp_path / "trials/0001").mkdir()
    (tmp_path / "trials/0001/trial.json").write_text(json.dumps({"number": 1, "parameters": {"rewards.schedule.alpha": 0.1}}))
    for directory in (tmp_path, tmp_path / "nothing"):
        trained = of_sweep(str(directory))
        assert trained.models == () and "holds no sweep of variants" in trained.missing[0].why
