"""What one trial of a sweep runs: a whole training, in the trial's own placement group, and what it tells Ray Tune.

    tune.report   every `intermediate.every` steps: held-out figures of the policy at that step, and the step
                  at the end: those of the run's own evaluation, on all held-out dialogues

A trial's state is its run directory, so whoever starts it again (a retry, a resumed sweep, a pause of
population-based training) finds it there. Ray Tune's checkpoint carries weights from one trial to another, nothing else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray import tune

from omr_ray.config.run import RunConfig
from omr_ray.config.sweep import READ_EXACTLY, PopulationBased, SweepConfig
from omr_ray.evaluation import objectives, protocols
from omr_ray.evaluation.results import Evaluation
from omr_ray.trials import Outcome, Trial, Trials
from omr_ray.workers.launch import Looking, train


def run_trial(config: dict[str, Any], *, out: Path, sweep: SweepConfig, base: RunConfig) -> None:
    """The function that Ray Tune runs. config: what `omr_ray.workers.search.point` makes of a trial.

    An error is written to the trial's directory and raised: Ray Tune counts it, and starts the trial again while it may.
    """
    trials = Trials(out)
    number = number_of(tune.get_context().get_trial_name())
    try:
        _train(_current(trials, number, config["point"]["parameters"], sweep, base), trials, sweep, base)
    except Exception as error:
        trials.say_error(number, f"{type(error).__name__}: {' '.join(str(error).split())}"[:2000])
        raise


def name_of(number: int) -> str:
    """Ray Tune's name of a trial. Not its point: population-based training copies that from another trial, number included."""
    return f"trial-{number:04d}"


def number_of(name: str) -> int:
    return int(name.removeprefix("trial-"))


def _current(trials: Trials, number: int, parameters: dict[str, Any], sweep: SweepConfig, base: RunConfig) -> Trial:
    """The trial as it is now: with other parameters than it had, it has just taken over another one's weights."""
    trial = trials.trial(number)
    if dict(trial.parameters) == parameters:
        return trial
    checkpoint = tune.get_checkpoint()
    if checkpoint is None:
        raise RuntimeError(f"trial {number} was given other parameters and no checkpoint to go on from")
    changed = Trial(number=number, parameters=parameters)
    with checkpoint.as_directory() as directory:
        return trials.forked(trial, parameters, changed.config(base, sweep.name), Path(directory))


def _train(trial: Trial, trials: Trials, sweep: SweepConfig, base: RunConfig) -> None:
    config, run = trial.config(base, sweep.name), trials.run(trial)
    trials.lend_base(config, run)

    def report(step: int, found: Evaluation) -> None:
        trials.keep_base(config, run)
        _report(step, found, run if isinstance(sweep.scheduler, PopulationBased) else None)

    looking = Looking(
        every=sweep.intermediate.every,
        dialogues=sweep.intermediate.dialogues,
        intent=any(name in READ_EXACTLY for name in sweep.objectives),
        report=report,
    )
    train(config, run, resume=(run / "config.yaml").exists(), looking=looking)
    trials.keep_base(config, run)
    trials.end(trial.number, Outcome(status="finished", step=config.steps))
    _report(config.steps, protocols.load(run / "evaluation", "after"), None)


def _report(step: int, found: Evaluation, weights_of: Path | None) -> None:
    """To Ray Tune, which may not return: a trial that is stopped or paused ends here."""
    checkpoint = None
    if weights_of is not None:
        checkpoint = tune.Checkpoint.from_directory(weights_of / f"checkpoints/step-{step:06d}")
    figures = {name: interval.value for name, interval in objectives.intervals(found).items()}
    tune.report({"step": step, **figures}, checkpoint=checkpoint)
