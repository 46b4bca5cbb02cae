"""Protocols as functions of stored images and values: small directories with known answers."""

import csv
import io
import json

import numpy as np
import pytest

from omr_ray.config.comparison import Adapted, Base, Clip, ComparisonConfig
from omr_ray.config.run import Evaluation, RunConfig
from omr_ray.evaluation.papers import PROTOCOLS, chosen, omr, outcome, pages, people, roles, tdri
from omr_ray.evaluation.papers.result import Context
from omr_ray.evaluation.stored import MadeImage, Results, Value, png
from omr_ray.types import UserError

PIXEL = png(np.zeros((2, 2, 3), np.uint8))
PROMPTS = {1: "a dress", 2: "a small red striped dress with a belt"}  # one aspect, five aspects


def write(results, model, task, values, *, siblings=1):
    """values: {(metric, measure): {(dialogue, round): number or [number a sibling]}}."""
    places = sorted({place for found in values.values() for place in found})
    told = {"seed": 0, "utterance": "", "intent": "a red dress", "image": PIXEL, "seconds": 2.0}
    images = [MadeImage(dialogue=d, round=r, sibling=s, prompt=PROMPTS[min(r, 2)], **told) for d, r in places for s in range(siblings)]
    results.write_images(model, task, 0, images)
    by_metric = {}
    for (metric, measure), found in values.items():
        for (d, r), numbers in found.items():
            for s, number in enumerate(np.atleast_1d(numbers)):
                row = Value(dialogue=d, round=r, sibling=s, measure=measure, value=float(number))
                by_metric.setdefault(metric, []).append(row)
    for metric, rows in by_metric.items():
        results.write_values(model, task, metric, 0, rows)


@pytest.fixture
def context(tmp_path):
    """Two dialogues; "Ours" beats "Base" three times of four in preference, its sessions end in rounds 2 and 1, Base's in 3 and never."""
    results = Results(str(tmp_path))
    base = {("d1", 1): 0.0, ("d1", 2): 0.0, ("d2", 1): 0.0, ("d2", 2): 1.0}
    ours = {("d1", 1): 1.0, ("d1", 2): 1.0, ("d2", 1): 1.0, ("d2", 2): 0.0}
    for model, scores in (("Base", base), ("Ours", ours)):
        write(results, model, "dialogues", {("preference", "prompt"): scores})
    ends = {
        "Base": {("d1", 1): 0, ("d1", 2): 0, ("d1", 3): 1, ("d2", 1): 0, ("d2", 2): 0, ("d2", 3): 0},
        "Ours": {("d1", 1): 0, ("d1", 2): 1, ("d2", 1): 1},
    }
    shown = {"Base": dict.fromkeys(ends["Base"], 0.5), "Ours": {("d1", 1): 0.2, ("d1", 2): 1.0, ("d2", 1): 1.0}}
    for model, satisfied in ends.items():
        write(results, model, "sessions", {("oracle", "satisfied"): satisfied, ("oracle", "intent"): shown[model]})
    exact = {("d1", 1): 1.0, ("d1", 2): 0.8, ("d2", 1): 0.0, ("d2", 2): 1.0}
    write(results, "Base", "prompts", {("oracle", "prompt"): exact})
    config = ComparisonConfig(name="t", run="unused", models=(Base(), Adapted(name="Ours", path="unused")))
    run = RunConfig(name="t", evaluation=Evaluation(dialogues=2, siblings=1, max_rounds=3))
    return Context(config=config, run=run, results=results, skipped={"clip": "no weights are given"})


def cells(result, table=0):
    return dict(result.tables[table].rows)


def test_rounds_used_count_from_one_and_never_is_one_more_than_the_limit():
    satisfied = np.array([[[0.0, 1.0], [1.0, np.nan], [np.nan, np.nan]], [[0.0, 0.0], [0.0, 0.0], [0.0, 1.0]]])  # [D R G]
    assert omr.rounds_used(satisfied, 3).tolist() == [[[2, 1]], [[4, 3]]]
    assert omr.rounds_used(satisfied, 2).tolist() == [[[2, 1]], [[3, 3]]]


def test_win_rates_by_round_by_hand(context):
    result = omr.win_matrix(context)
    whole, first, second, _ = cells(result)["Ours against Base"]
    assert (whole.value, first.value, second.value) == (0.75, 1.0, 0.5)
    assert cells(result)["Base against Ours"][0].value == 0.25
    assert "0.65 against CogView 2" in result.note


def test_table_1_ranks_rounds_and_stands_beside_the_papers(context):
    result = omr.table1(context)
    base, ours = (cells(result)[name] for name in ("Base", "Ours"))
    assert (base[-1].value, base[-1].rank, ours[-1].value, ours[-1].rank) == (3.5, 2, 1.5, 1)
    assert cells(result, 1)["Ours"][-1].value == -2.0
    papers = cells(result, 2)
    assert papers["SD V-1.4"][5].value == 8.4
    assert papers["Ours"][-1].text == "Ours"
    assert {gap.what: gap.why for gap in result.missing}["CLIP, prompt to image"] == "no weights are given"


def test_satisfaction_by_turns_and_a_session_that_ended_keeps_its_image(context):
    rows = cells(tdri.turns(context))
    share, fit, seconds, paper, *_ = rows["Ours, 2 turns"]
    assert (share.value, fit.value, seconds.value, paper.value) == (1.0, 1.0, 3.0, 70.0)  # 2 images of 2 s, and 1
    assert rows["Base, 2 turns"][0].value == 0.0
    assert "Ours, 4 turns" not in rows  # the sessions have three rounds


def test_distribution_of_rounds_sums_to_one(context):
    rows = cells(tdri.rounds_distribution(context))
    assert [cell.value for cell in rows["Ours"]] == [0.5, 0.5, 0, 0]
    assert [cell.value for cell in rows["Base"]] == [0, 0, 0.5, 0.5]
    assert tdri.rounds_distribution(context).tables[0].columns == ("1", "2", "3", "never")


def test_simple_prompts_are_told_from_complex_ones_by_the_aspects_they_name(context):
    rows = cells(tdri.simple_or_complex(context))
    assert [cell.value for cell in rows["Base, simple"]] == [2, 0.5, 0.5, 92.0, 0.85]
    assert [cell.value for cell in rows["Base, complex"]] == [2, 0.5, 0.9, 65.0, 0.60]


def test_what_is_not_given_is_missing_with_what_would_make_it(context):
    for function, said in ((roles.ablation, "sweep_ablations"), (roles.personal, "omr-ray serve"), (people.human_votes, "votes=FILE")):
        (gap,) = function(context).missing
        assert said in gap.remedy


def test_every_protocol_writes_a_page_json_and_csv_and_all_stand_in_one_report(context, tmp_path):
    results = [outcome(name, context) for name in PROTOCOLS]
    written = pages.write(results, context, made_by=[("Base", "atelier, no adapter"), ("Ours", "adapter x")])
    assert set(written["protocols"]) == set(PROTOCOLS)
    report = (tmp_path / "report.html").read_text()
    for name, published in PROTOCOLS.items():
        assert f'id="{name}"' in report
        found = json.loads((tmp_path / f"{name}.json").read_text())
        assert found["title"] == published.title
        lines = list(csv.DictReader(io.StringIO((tmp_path / f"{name}.csv").read_text())))
        assert len(lines) == len(found["figures"])
        assert found["figures"] or found["missing"] or name == "pictures"
    assert "measured on other models" in report
    assert "http://" not in report.replace("http://www.w3.org", "")  # self-contained


def test_the_embedded_clip_is_named_as_such_and_every_metric_names_its_weights(context):
    found = pages.write([outcome("omr-table1", context)], context, made_by=[])
    page = context.results.folder.open("report.html").read().decode()
    assert found["protocols"] and "skipped: no weights are given" in page and "not LPIPS" in page
    known = Context(config=context.config, run=context.run, results=context.results, skipped={})
    clip, preference = known.wanted((("clip", "prompt"), ("preference", "prompt")))
    assert (clip.title, preference.title) == ("Embedded CLIP, prompt to image", "Preference score")
    other = context.config.model_copy(update={"metrics": (Clip(path="models/clip"),)})
    (clip,) = Context(config=other, run=context.run, results=context.results, skipped={}).wanted((("clip", "target"),))
    assert clip.title == "CLIP, image to target"


def test_an_unknown_protocol_is_refused_with_those_there_are():
    assert chosen("omr-fig7") == ["omr-fig7"]
    with pytest.raises(UserError, match="'fig7' is unknown; choose all, .*omr-fig7"):
        chosen("fig7")


def test_votes_become_ranks_beside_the_papers_wins(context, tmp_path):
    pair = {"dialogue": "d1", "round": 2, "sibling": 0, "prompt": "a dress", "left": "Ours", "right": "Base"}
    context.results.folder.write(people.KEY, json.dumps({"p1": pair}).encode())
    file = tmp_path / "judged.jsonl"
    said = ["left", "left", "left", "right", "both_bad"]
    file.write_text("".join(json.dumps({"pair": "p1", "annotator": f"a{n}", "choice": choice}) + "\n" for n, choice in enumerate(said)))
    voted = Context(config=context.config.model_copy(update={"votes": str(file)}), run=context.run, results=context.results, skipped={})
    result = people.human_votes(voted)
    wins, rate, strength, paper = cells(result)["Ours"]
    assert (wins.value, rate.value, strength.rank, paper.value) == (3, 0.75, 1, 508)
    assert strength.value == pytest.approx(np.log(3) / 2)  # strengths 3 : 1, their logs around 0
    assert "both bad 1" in result.note
