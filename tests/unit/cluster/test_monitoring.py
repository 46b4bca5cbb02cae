"""Dashboard and alert rules: every expression is PromQL, and every metric is one that the code emits with the labels it is asked by."""

import json
from pathlib import Path

import promql_parser
import yaml

from omr_ray.workers.metrics import METRICS, labels_of

MONITORING = Path(__file__).parents[3] / "cluster/monitoring"


def selectors(expression) -> list[promql_parser.VectorSelector]:
    """All vector selectors of a parsed expression."""
    if isinstance(expression, promql_parser.VectorSelector):
        return [expression]
    if isinstance(expression, promql_parser.MatrixSelector):
        return [expression.vector_selector]
    parts = [getattr(expression, name, None) for name in ("lhs", "rhs", "expr", "param")]
    return [found for part in [*parts, *getattr(expression, "args", [])] if part is not None for found in selectors(part)]


def check(expression: str) -> set[str]:
    """The metrics that an expression names, after a look at each of its labels."""
    found = selectors(promql_parser.parse(expression))
    assert found, expression
    for selector in found:
        assert selector.name.startswith("ray_") and selector.name.removeprefix("ray_") in METRICS, selector.name
        asked = {matcher.name for matcher in selector.matchers.matchers}
        assert asked <= set(labels_of(selector.name.removeprefix("ray_"))), expression
    return {selector.name.removeprefix("ray_") for selector in found}


def test_the_dashboard_shows_every_metric_that_there_is_and_no_other():
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    shown = set()
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            shown |= check(target["expr"].replace("$run", ".*"))
    assert shown == set(METRICS)
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    variables = {variable["name"]: variable["query"] for variable in dashboard["templating"]["list"]}
    assert variables["run"]["query"] == "label_values(ray_omr_step, run)"


def test_alert_rules_name_what_is_emitted():
    rules = [rule for group in yaml.safe_load((MONITORING / "alerts.yaml").read_text())["spec"]["groups"] for rule in group["rules"]]
    named = set().union(*(check(rule["expr"]) for rule in rules))
    assert named >= {"omr_step", "omr_workers_up", "omr_replacements_total", "omr_learner_restarts_total", "omr_missing_scores_total"}
    for rule in rules:
        assert rule["annotations"]["summary"].startswith("{{ $labels.run }}") and rule["labels"]["severity"] in (
            "info",
            "warning",
            "critical",
        )
