"""Reading a sweep's directory, the table and the page, on evaluations made by hand."""

import json
import re

import numpy as np
import pyarrow.parquet as pq
import pytest

from omr_ray.config.run import RunConfig
from omr_ray.config.sweep import SweepConfig
from omr_ray.evaluation import protocols, sweep_report
from omr_ray.evaluation.results import Evaluation, HeldOut, RoundsToIntent
from omr_ray.runs import Checkpoints
from omr_ray.trials import Outcome, Trial, Trials, opened
from omr_ray.types import LearnerState, UserError
from omr_ray.workers import search
from omr_ray.workers.placement import bundle_index, bundles, groups_that_fit

BASE = RunConfig(name="base", steps=8)
SPACE = {key: {"type": "uniform", "low": 0, "high": 1} for key in ("rewards.schedule.alpha", "rewards.schedule.beta")}
SCHEDULE = SweepConfig(name="s", run="r.yaml", space=SPACE, search={"type": "random", "trials": 4}, objectives=["preference", "diversity"])
VARIANTS = SweepConfig(
    name="v", run="r.yaml", search={"type": "variants", "variants": {"whole": [], "no <b>": ["rewards.schedule.beta=0"]}, "seeds": [0, 1]}
)


def evaluation(phase, preference, diversity, dialogues=2):
    names = tuple("abcd"[:dialogues])
    figures = {name: np.full((dialogues, 2), value) for name, value in (("preference", preference), ("diversity", diversity))}
    figures |= {"accuracy": np.full((dialogues, 2), 0.5), "consistency": np.array([[np.nan, 0.9]] * dialogues)}
    intent = RoundsToIntent(dialogues=names, rounds=np.full((dialogues, 1), 3), max_rounds=8)
    return Evaluation(phase=phase, weights="w", seed=7, held_out=HeldOut(dialogues=names, **figures), intent=intent, sheet=())


def finish(trials, config, number, preference, diversity):
    trial = trials.trial(number)
    run = trials.run(trial)
    for result in (evaluation("before", 0.1, 0.3), evaluation("after", preference, diversity)):
        protocols.save(result, run / "evaluation")
    (run / "timings.jsonl").write_text('{"step": 1, "seconds/step": 2.0}\n{"step": 2, "seconds/step": 3.5}\n')
    trials.keep_base(trial.config(BASE, config.name), run)
    trials.end(number, Outcome(status="finished", step=8))


@pytest.fixture
def swept(tmp_path):
    """Trials 1 and 2 on the front, 3 stopped at step 4, 4 failed, 5 open."""
    trials = Trials(tmp_path)
    for number in range(1, 6):
        point = {"rewards.schedule.alpha": number / 10, "rewards.schedule.beta": number % 3 / 10}
        trials.add(Trial(number=number, parameters=point))
    finish(trials, SCHEDULE, 1, 0.5, 0.2)
    finish(trials, SCHEDULE, 2, 0.3, 0.4)
    protocols.save(evaluation("step-000004", 0.05, 0.1, dialogues=1), trials.run(trials.trial(3)) / "evaluation")
    trials.end(3, Outcome(status="stopped", step=4))
    trials.end(4, Outcome(status="failed", step=0, error="WorkersFailed: <no> room"))
    return trials


def test_the_table_has_a_row_a_trial(swept):
    result = sweep_report.write(swept, SCHEDULE, BASE)
    assert result["trials"] == {"finished": 2, "stopped": 1, "failed": 1, "open": 1}
    table = pq.read_table(result["results"])
    rows = table.to_pylist()
    assert [row["status"] for row in rows] == ["finished", "finished", "stopped", "failed", "open"]
    assert rows[0]["rewards.schedule.alpha"] == 0.1 and rows[0]["seconds"] == 5.5
    assert rows[0]["run"].endswith("trials/0001/run-1")
    assert (rows[0]["objective/preference"], rows[0]["objective/preference_low"]) == (0.5, 0.5)
    assert rows[0]["objective/gain_preference"] == pytest.approx(0.4) and rows[0]["objective/rounds_to_intent"] == 3
    assert rows[2]["objective/preference"] == 0.05 and rows[2]["objective/gain_preference"] is None and rows[2]["step"] == 4
    assert rows[3]["error"] == "WorkersFailed: <no> room" and rows[3]["objective/preference"] is None
    assert json.loads(table.schema.metadata[b"objectives"]) == ["preference", "diversity"]


def test_the_page_holds_its_parts_and_fetches_nothing(swept):
    result = sweep_report.write(swept, SCHEDULE, BASE)
    page = (swept.path / "report.html").read_text()
    for text in (
        "Response surface",
        "Preference score: alpha and beta",
        "Pareto front",
        "Best trial: " + str(result["best"]["trial"]),
        "paper: 0.15, 0.10, 0.075",
        "RC25: 0.25 each",
        "failed: WorkersFailed: &lt;no&gt; room",
        "learning_rate",
    ):
        assert text in page, text
    assert page.count("<svg") == 2 + 1 + 3  # a surface an objective, the front, a term each of the schedule
    assert not re.search(r'(src|href)="(?!data:|#)', page) and "url(http" not in page


def test_a_sweep_in_which_nothing_has_finished_has_a_page_too(tmp_path):
    trials = Trials(tmp_path)
    trials.add(Trial(number=1, parameters={"rewards.schedule.alpha": 0.1}))
    trials.end(1, Outcome(status="failed", step=0, error="broken"))
    assert sweep_report.write(trials, SCHEDULE, BASE)["best"] is None
    assert "No trial has finished" in (tmp_path / "report.html").read_text()


def test_variants_are_compared_with_the_first_over_seeds(tmp_path):
    trials = Trials(tmp_path)
    for trial in search.plan(VARIANTS, BASE):
        trials.add(trial)
    assert [(trial.name, trial.parameters) for trial in trials.known()] == [
        *(("whole", {"seed": seed}) for seed in (0, 1)),
        *(("no <b>", {"seed": seed}) for seed in (0, 1)),
    ]
    assert trials.trial(3).config(BASE, "v").rewards.schedule.beta == 0 and trials.trial(4).config(BASE, "v").seed == 1
    for number, preference in ((1, 0.4), (2, 0.6), (3, 0.2), (4, 0.3)):
        finish(trials, VARIANTS, number, preference, 0.3)
    rows = sweep_report.read_rows(trials, VARIANTS, BASE)
    whole, without = sweep_report.read_variants(rows, trials, VARIANTS, BASE)
    assert whole.seeds == 2 and whole.differences == {} and whole.gains["preference"].value == pytest.approx(0.4)
    assert without.figures["preference"].value == pytest.approx(0.25)
    assert without.differences["preference"].low == pytest.approx(-0.25)  # every dialogue loses the same
    sweep_report.write(trials, VARIANTS, BASE)
    page = (tmp_path / "report.html").read_text()
    assert "no &lt;b&gt;" in page and "difference to whole" in page and page.count("<svg") == 5 + 3  # an objective each, and the schedule


def test_a_point_is_drawn_once_and_for_all():
    first, again = search.plan(SCHEDULE, BASE), search.plan(SCHEDULE, BASE)
    assert first == again and len({str(trial.parameters) for trial in first}) == 4
    grid = {"rewards.schedule.alpha": {"type": "choice", "values": [0.1, 0.2]}, "seed": {"type": "choice", "values": [1, 2]}}
    config = SweepConfig(name="g", run="r.yaml", space=grid, search={"type": "grid"})
    assert [list(trial.parameters.values()) for trial in search.plan(config, BASE)] == [[0.1, 1], [0.1, 2], [0.2, 1], [0.2, 2]]


def test_ended_trials_are_what_optuna_has_seen_and_open_ones_come_first(swept):
    config = SCHEDULE.model_copy(update={"search": SweepConfig(name="o", run="r", space=SPACE, search={"type": "optuna"}).search})
    swept.reopen_failed()
    found = search.OptunaTrials(config, swept)
    numbers = [found.suggest(str(call))["point"]["number"] for call in range(3)]
    assert numbers == [4, 5, 6] and swept.trial(6).parameters.keys() == SPACE.keys()


def test_a_sweep_resumes_with_its_own_config_only(tmp_path):
    with pytest.raises(UserError, match="nothing to resume"):
        opened(tmp_path / "sweep", SCHEDULE, BASE, resume=True)
    opened(tmp_path / "sweep", SCHEDULE, BASE, resume=False)[1].close()
    with pytest.raises(UserError, match="add --resume"):
        opened(tmp_path / "sweep", SCHEDULE, BASE, resume=False)
    more = SCHEDULE.model_copy(update={"concurrency": 3, "retries": 9})
    _, lock = opened(tmp_path / "sweep", more, BASE, resume=True)
    with pytest.raises(UserError, match="another process"):
        opened(tmp_path / "sweep", more, BASE, resume=True)
    lock.close()
    with pytest.raises(UserError, match="objectives"):
        opened(tmp_path / "sweep", SCHEDULE.model_copy(update={"objectives": ("diversity",)}), BASE, resume=True)


def test_another_trials_weights_begin_a_run_of_their_own(tmp_path):
    trials = Trials(tmp_path)
    trials.add(Trial(number=2, parameters={"rewards.schedule.alpha": 0.1}))
    state = LearnerState(policy_version=4, weights={"w": np.ones(2, np.float32)}, ema={}, optimizer={})
    Checkpoints(tmp_path / "donor", keep=2).save(4, state, {"diversity": {"count": 3}})
    config = Trial(number=2, parameters={"rewards.schedule.alpha": 0.12}).config(BASE, "s")
    new = trials.forked(trials.trial(2), {"rewards.schedule.alpha": 0.12}, config, tmp_path / "donor/step-000004")
    assert new.generation == 2 and new == trials.trial(2)
    assert new.history == [{"step": 4, "parameters": {"rewards.schedule.alpha": 0.1}}]
    found = Checkpoints(trials.run(new) / "checkpoints", keep=2).latest()
    assert found.step == 4 and found.learner.weights["w"].tolist() == [1, 1] and found.judge == {"diversity": {"count": 3}}
    assert RunConfig.load(trials.run(new) / "config.yaml") == config


def test_every_actor_of_a_trial_has_a_bundle_of_its_own():
    config = RunConfig(
        name="b", learner={"ranks": 2}, workers={"rollout": {"count": 2, "num_cpus": 0.5}, "reward": {"count": 1, "num_cpus": 0.25}}
    )
    assert bundles(config) == [{"CPU": 1}] * 2 + [{"CPU": 0.5}] * 2 + [{"CPU": 0.25}]
    places = [("learner", 0), ("learner", 1), ("rollout", 0), ("rollout", 1), ("reward", 0)]
    assert [bundle_index(config, pool, index) for pool, index in places] == [0, 1, 2, 3, 4]
    free = RunConfig(name="b", learner={"ranks": 2}, workers={"rollout": {"count": 2, "num_cpus": 0}})
    assert bundle_index(free, "rollout", 0) == -1 and bundle_index(free, "reward", 0) == 2


def test_groups_fit_bundle_by_bundle():
    assert groups_that_fit([{"CPU": 0.5}, {"CPU": 0.1}], [{"CPU": 1.2}]) == 2
    assert groups_that_fit([{"CPU": 2}], [{"CPU": 1}, {"CPU": 1}]) == 0  # a bundle lies on one node
    assert groups_that_fit([{"CPU": 1}, {"CPU": 1, "GPU": 1}], [{"CPU": 8}, {"CPU": 4, "GPU": 3}]) == 3
