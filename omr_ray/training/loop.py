"""A training under Ray Train: how its workers are started, and the loop that each of them runs.

The driver opens the run directory and starts the workers; rank 0 writes metrics and checkpoints into it, so it must be
reachable from every node. When a worker dies, Ray Train starts the group again, and it goes on from the last checkpoint.
Which rows an update takes follows from its number: a resumed run sees the same ones.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Protocol

import ray.train
import torch
from ray.train.torch import TorchConfig, TorchTrainer
from torch import Tensor, nn

from omr_ray.config.reading import dump
from omr_ray.config.trainer import TrainRun
from omr_ray.progress import following
from omr_ray.runs import Checkpoints, RunDirectory, RunKind
from omr_ray.tracking import METRICS, Tracker
from omr_ray.types import LearnerState, UserError
from omr_ray.workers.learner_engine import AdapterEngine


class Parts(Protocol):
    def __call__(self, update: int, rank: int, ranks: int) -> Iterable[Any]:
        """This rank's share of the rows of an update. All ranks get as many parts, of the same size."""


# -- the driver --------------------------------------------------------------------------------------------------------


def run_workers(worker: Callable[[dict[str, str]], Any], config: Any, directory: Path, *, resume: bool) -> dict[str, Any]:
    """Start `trainer.ranks` workers on the run `directory` and wait for them; returns what rank 0 returned.

    `worker` gets {"config": YAML, "directory": path}. Ray must be initialised. Raises UserError where they stopped early.
    """
    kind: RunKind = config
    with closing(RunDirectory(directory, kind, resume=resume)) as run:
        os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
        os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"  # a relative path means on a worker what it means here
        trainer = TorchTrainer(
            worker,  # type: ignore[arg-type]
            train_loop_config={"config": dump(config), "directory": str(directory.absolute())},
            scaling_config=ray.train.ScalingConfig(
                num_workers=config.trainer.ranks,
                use_gpu=config.worker.num_gpus > 0,
                resources_per_worker={"CPU": config.worker.num_cpus, **({"GPU": config.worker.num_gpus} if config.worker.num_gpus else {})},
            ),
            torch_config=TorchConfig(timeout_s=int(config.timeout_s)),
            run_config=ray.train.RunConfig(
                name="train",
                storage_path=str((directory / "ray_train").absolute()),
                failure_config=ray.train.FailureConfig(max_failures=config.max_failures, controller_failure_limit=3),  # type: ignore[call-arg]
            ),
        )
        with following(directory / METRICS), _users_faults():
            result = trainer.fit()
        returned: dict[str, Any] | None = result.return_value  # type: ignore[attr-defined]
        if returned is None:
            done = run.checkpoints.latest()
            raise UserError(f"{directory}: stopped at update {done.step if done else 0}; continue with --resume")
        return returned


@contextmanager
def _users_faults() -> Iterator[None]:
    """A UserError of a worker, as it was raised there."""
    try:
        yield
    except ray.train.TrainingFailedError as error:
        causes = [
            cause for failure in getattr(error, "worker_failures", {}).values() for cause in (failure, getattr(failure, "cause", None))
        ]
        for cause in causes:
            if isinstance(cause, UserError):
                raise cause from None
        raise


# -- a worker ----------------------------------------------------------------------------------------------------------


def learning_rate(config: TrainRun, update: int, total: int) -> float:
    """Of update `update` (from 1) of `total`: up in a straight line over the warm-up, then down as half a cosine to 0."""
    warmup = round(config.trainer.warmup_share * total)
    if update <= warmup:
        return config.trainer.learning_rate * update / warmup
    return config.trainer.learning_rate * 0.5 * (1 + math.cos(math.pi * (update - warmup - 1) / max(1, total - warmup)))


def learn(
    config: TrainRun,
    directory: Path,
    objective: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    *,
    total: int,
    parts: Parts,
    held_out: Callable[[int, int], Iterable[Any]] | None = None,
    ema_decay: float = 0.0,
    channels_last: bool = False,
) -> tuple[LearnerState, dict[str, float]]:
    """`total` updates of `parameters` from the last checkpoint on; returns the last state and its metrics, on every rank.

    `objective(part)` returns (loss, values): the loss already divided by the rows of all ranks, and values by name, one
    number a row, NaN where a row has none. `held_out(rank, ranks)` gives the parts that are measured at every checkpoint.
    """
    context = ray.train.get_context()
    rank, ranks = context.get_world_rank(), context.get_world_size()
    checkpoints = Checkpoints(directory / "checkpoints", keep=config.checkpoint.keep)
    found = checkpoints.latest()
    start = found.step if found else 0
    if found is not None:
        load(parameters, found.learner.weights)
    engine = AdapterEngine(objective, parameters, config.trainer, channels_last)
    if found is not None:
        engine.load_moments(found.learner.optimizer)
    ema = Ema(parameters, ema_decay, None if found is None else found.learner.ema)
    tracker = Tracker(directory, **config.tracking.model_dump()) if rank == 0 else None
    if tracker:
        tracker.truncate_after(start)
    metrics: dict[str, float] = {}
    for update in range(start + 1, total + 1):
        rate, mine = learning_rate(config, update, total), list(parts(update, rank, ranks))
        values = [engine.accumulate(part, last=number == len(mine)) for number, part in enumerate(mine, start=1)]
        norm = engine.apply(rate)
        ema.follow()
        metrics = {**means(values), "lr": rate, "grad_norm": norm or 0.0, "skipped_updates": float(norm is None)}
        metrics["progress"] = update / total
        due = update % config.checkpoint.every == 0 or update == total
        if due and held_out is not None:
            with torch.no_grad():
                judged = means([objective(part)[1] for part in held_out(rank, ranks)])
            metrics |= {f"held_out/{name}": value for name, value in judged.items()}
        if tracker:
            tracker.log(update, metrics)
        if due:
            state = LearnerState(policy_version=update, weights=engine.weights(), ema=ema.weights(), optimizer=engine.moments())
            if rank == 0:
                checkpoints.save(update, state, {})
            ray.train.report({"update": update, **metrics})  # also a barrier: nobody goes on before it is written
    if tracker:
        tracker.close()
    last = checkpoints.latest()
    assert last is not None and last.step == total
    return last.learner, metrics


def means(values: list[dict[str, Tensor]]) -> dict[str, float]:
    """Mean of every value over the rows of all parts and ranks that have one, and the number of rows. All ranks must call."""
    names = sorted(values[0])
    rows = {name: torch.cat([part[name].double().cpu() for part in values]) for name in names}
    sums = torch.tensor([[float(row.nansum()), float((~row.isnan()).sum()), len(row)] for row in rows.values()], dtype=torch.float64)
    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    sums = sums.to(device)
    torch.distributed.all_reduce(sums)
    known = {name: float(total / count) for name, (total, count, _) in zip(names, sums.cpu(), strict=True) if count > 0}
    return {**known, "rows": float(sums[0, 2])}


class Ema:
    """ema <- d ema + (1 - d) weights after every update, on the parameters' device; decay 0 keeps nothing."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float, kept: Mapping[str, Any] | None) -> None:
        self._decay, self._parameters = decay, dict(parameters) if decay > 0 else {}
        self._ema = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
        if kept:
            load(self._ema, kept)

    @torch.no_grad()
    def follow(self) -> None:
        for name, value in self._ema.items():
            value.lerp_(self._parameters[name].detach(), 1 - self._decay)

    def weights(self) -> dict[str, Any]:
        return {name: value.float().cpu().numpy().copy() for name, value in self._ema.items()}


@torch.no_grad()
def load(parameters: Mapping[str, Tensor], weights: Mapping[str, Any]) -> None:
    """Copy arrays into the parameters of the same names."""
    for name, parameter in parameters.items():
        parameter.copy_(torch.tensor(weights[name], device=parameter.device))
