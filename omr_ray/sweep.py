"""A sweep of the reward schedule (OMR eq. 9, fig. 3): many trainings under Ray Tune, each a whole run in its own placement group.

    search ──point──► trial: driver ─► learner ranks, rollout workers, reward workers ──figures──► scheduler, search
                        └── run directory (checkpoints, metrics, report)                             └── stop, exchange, next point

Ray Tune decides who runs, who is stopped and who is tried again. What is known lies in the sweep's directory
(`omr_ray.trials`), and a sweep that goes on is set up from there: ended trials are told to the search again,
unfinished ones come first. What a scheduler had seen is not kept: after a resume its rungs are empty.
"""

from __future__ import annotations

import os
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import ray
from ray import tune

from omr_ray.config.run import RunConfig
from omr_ray.config.sweep import OptunaSearch, PopulationBased, SweepConfig
from omr_ray.evaluation import sweep_report
from omr_ray.progress import Counting
from omr_ray.ray_session import connected
from omr_ray.trials import Outcome, Trials, opened
from omr_ray.types import UserError
from omr_ray.workers import search
from omr_ray.workers.placement import bundles, groups_that_fit, total_cpus
from omr_ray.workers.trial import name_of, number_of, run_trial


def sweep(config: SweepConfig, directory: Path, *, resume: bool) -> dict[str, Any]:
    """Run all trials, then write results.parquet and report.html. A trial that fails is a row of the table, not an error."""
    base = config.base()
    planned = search.plan(config, base)
    directory = directory.resolve()  # trials run in other processes and on other machines
    trials, lock = opened(directory, config, base, resume=resume)
    with closing(lock):
        for trial in planned:
            if not trials.holds(trial.number):
                trials.add(trial)
        trials.reopen_failed()
        ended = sum(trials.outcome(trial.number) is not None for trial in trials.known())
        left = (config.search.trials if isinstance(config.search, OptunaSearch) else len(planned)) - ended
        if left > 0:
            with connected(total_cpus(base) * (config.concurrency or 1)):
                _run(trials, left, config, base)
        return sweep_report.write(trials, config, base)


def _run(trials: Trials, left: int, config: SweepConfig, base: RunConfig) -> None:
    """The `left` trials that have not ended, under Ray Tune."""
    population = isinstance(config.scheduler, PopulationBased)  # takes turns by itself: it must know all of its members
    limit = min(config.concurrency or left, _room(base), left)
    scratch = trials.path / "tune"
    if isinstance(config.search, OptunaSearch):
        chosen: dict[str, Any] = {"search_alg": search.OptunaTrials(config, trials), "num_samples": left}
        space: dict[str, Any] = {}
    else:
        todo = [search.point(trial)["point"] for trial in trials.known() if trials.outcome(trial.number) is None]
        chosen, space = {}, {"point": tune.grid_search(todo)}
    os.environ |= {"RAY_CHDIR_TO_TRIAL_DIR": "0", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1"}  # paths of a config are the driver's
    function = tune.with_parameters(run_trial, out=trials.path, sweep=config, base=base)
    shutil.rmtree(scratch, ignore_errors=True)
    with Counting(left, "trials") as bar:
        tune.Tuner(
            tune.with_resources(function, tune.PlacementGroupFactory([{}, *bundles(base)])),
            param_space=space,
            tune_config=tune.TuneConfig(
                scheduler=search.scheduler(config, base),
                max_concurrent_trials=None if population else limit,
                trial_name_creator=lambda trial: name_of(trial.config["point"]["number"]),
                **chosen,
            ),
            run_config=tune.RunConfig(
                name=config.name,
                storage_path=str(scratch),
                failure_config=tune.FailureConfig(max_failures=config.retries),
                callbacks=[Ends(trials, bar)],
                verbose=0,
            ),
        ).fit()
    shutil.rmtree(scratch, ignore_errors=True)


class Ends(tune.Callback):
    """Writes down how trials end that do not say so themselves: those that a scheduler stops, and those that fail too often."""

    def __init__(self, trials: Trials, bar: Counting) -> None:
        self._trials, self._bar = trials, bar

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        number = number_of(str(trial))
        if self._trials.outcome(number) is None:
            self._trials.end(number, Outcome(status="stopped", step=trial.last_result["step"]))
        self._say(number)

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        number = number_of(str(trial))
        error = self._trials.error(number) or "its process died"
        self._trials.end(number, Outcome(status="failed", step=(trial.last_result or {}).get("step", 0), error=error))
        self._say(number)

    def _say(self, number: int) -> None:
        outcome = self._trials.outcome(number)
        assert outcome is not None
        self._bar.advance(f"trial {number} {outcome.status} at step {outcome.step}{f': {outcome.error}' if outcome.error else ''}")

    def __getstate__(self) -> dict[str, Any]:
        """Ray Tune pickles its callbacks with its own state, which is never read again; a progress bar cannot be pickled."""
        return {}


def _room(base: RunConfig) -> int:
    """How many trials the cluster has room for at a time. Raises UserError if it is none."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = groups_that_fit(bundles(base), nodes)
    if not room:
        there = ", ".join(" and ".join(f"{node.get(name, 0):g} {name}" for name in ("CPU", "GPU")) for node in nodes)
        raise UserError(
            f"no room for a trial: it needs {bundles(base)}, the cluster's nodes have {there}; lower workers.*.num_cpus, or add machines"
        )
    return room
