"""`omr-ray reward train`: the Qwen-VL reward model under Ray Train, on 1..n workers, with DeepSpeed (OMR section 3.2, 4.1).

The driver opens the run directory and starts the workers; rank 0 writes metrics and checkpoints into it, so it must be
reachable from every node. When a worker dies, Ray Train starts the group again, and it goes on from the last checkpoint.
Which pairs an update takes follows from its number: a resumed run sees the same ones.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import ray.train
import torch
import yaml
from ray.train.torch import TorchConfig, TorchTrainer

from omr_ray.config.reading import dump
from omr_ray.config.reward import RewardRun
from omr_ray.data.sources import places
from omr_ray.data.store import StoredTable
from omr_ray.runs import Checkpoints, RunDirectory
from omr_ray.tracking import Tracker
from omr_ray.training.reward_objective import PairPart, PreferenceObjective
from omr_ray.types import LearnerState, UserError
from omr_ray.vlm.inputs import decoded
from omr_ray.vlm.trainable import TrainableRewardModel
from omr_ray.workers.learner_engine import AdapterEngine, use_group
from omr_ray.workers.loading import device_for, reward_model_path

MODEL = "model"  # what came out, in the run directory: `rewards.preference.path` of a training run over dialogues


def train(config: RewardRun, directory: Path, *, resume: bool) -> dict[str, Any]:
    """Train on the pairs of a built table; returns what came out. Ray must be initialised."""
    table = StoredTable(config.data.path, "preferences", "train", config.data.purpose)
    with closing(RunDirectory(directory, config, resume=resume)) as run:
        os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
        trainer = TorchTrainer(
            _worker,  # type: ignore[arg-type]
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
        result = trainer.fit()
        updates = total_updates(config, len(table))
        done = run.checkpoints.latest()
        if done is None or done.step < updates:
            raise UserError(f"{directory}: stopped at update {done.step if done else 0} of {updates}; continue with --resume")
        figures = {"last": result.return_value}  # type: ignore[attr-defined]
        return {"model": str(directory / MODEL), "updates": updates, "pairs": usable(config, len(table)), **figures}


def usable(config: RewardRun, pairs: int) -> int:
    """Pairs of the train split that are trained on."""
    return min(pairs, config.data.limit or pairs)


def total_updates(config: RewardRun, pairs: int) -> int:
    return config.trainer.epochs * math.ceil(usable(config, pairs) / config.trainer.batch)


def learning_rate(config: RewardRun, update: int, total: int) -> float:
    """Of update `update` (from 1) of `total`: up in a straight line over the warm-up, then down as half a cosine to 0."""
    warmup = round(config.trainer.warmup_share * total)
    if update <= warmup:
        return config.trainer.learning_rate * update / warmup
    return config.trainer.learning_rate * 0.5 * (1 + math.cos(math.pi * (update - warmup - 1) / max(1, total - warmup)))


# -- on a worker -------------------------------------------------------------------------------------------------------


def _worker(settings: dict[str, str]) -> dict[str, float]:
    config, directory = RewardRun.model_validate(yaml.safe_load(settings["config"])), Path(settings["directory"])
    context = ray.train.get_context()
    rank, ranks = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(config.worker.threads)
    device = device_for(config.worker, "reward")
    use_group(device, config.timeout_s)
    checkpoints = Checkpoints(directory / "checkpoints", keep=config.checkpoint.keep)
    found = checkpoints.latest()
    model = TrainableRewardModel.load(
        reward_model_path(config.model.path),
        lora=None if config.lora is None else (config.lora.rank, config.lora.alpha),
        seed=config.seed,
        device=device,
        gradient_checkpointing=config.trainer.gradient_checkpointing,
        **config.model.model_dump(exclude={"path"}),
    )
    parameters = model.trainable()
    if found is not None:
        _load(parameters, found.learner)
    engine = AdapterEngine(PreferenceObjective(model.train(), config.beta, config.reference), parameters, config.trainer)
    if found is not None:
        engine.load_moments(found.learner.optimizer)
    table = StoredTable(config.data.path, "preferences", "train", config.data.purpose)
    total, start = total_updates(config, len(table)), found.step if found else 0
    tracker = Tracker(directory, **config.tracking.model_dump()) if rank == 0 else None
    if tracker:
        tracker.truncate_after(start)
    metrics: dict[str, float] = {}
    for update in range(start + 1, total + 1):
        rate = learning_rate(config, update, total)
        parts = list(_parts(config, table, update, rank, ranks))
        sums = torch.zeros(4, dtype=torch.float64)
        for number, part in enumerate(parts, start=1):
            values = engine.accumulate(part, last=number == len(parts))
            sums[:3] += torch.stack([values[name].double().sum() for name in ("loss", "margin", "accuracy")]).cpu()
            sums[3] += len(part.prompts)
        norm = engine.apply(rate)
        torch.distributed.all_reduce(sums)
        metrics = {name: float(value / sums[3]) for name, value in zip(("loss", "margin", "accuracy"), sums, strict=False)}
        metrics |= {"lr": rate, "grad_norm": norm or 0.0, "skipped_updates": float(norm is None), "pairs": float(sums[3])}
        if tracker:
            tracker.log(update, metrics)
        if update % config.checkpoint.every == 0 or update == total:
            state = LearnerState(policy_version=update, weights=engine.weights(), optimizer=engine.moments())
            if rank == 0:
                checkpoints.save(update, state, {})
            ray.train.report({"update": update, **metrics})  # also a barrier: nobody goes on before it is written
    if rank == 0:
        _load(parameters, LearnerState(policy_version=total, weights=checkpoints.latest().learner.weights))  # type: ignore[union-attr]
        model.save(directory / MODEL, base=config.model.path)
    if tracker:
        tracker.close()
    return metrics


def _parts(config: RewardRun, table: StoredTable, update: int, rank: int, ranks: int) -> Iterator[PairPart]:
    """This rank's share of the pairs of an update, `micro_batch` at a time. All ranks get as many parts, of the same size."""
    rows = places(update, config.trainer.batch, usable(config, len(table)), config.seed)
    mine = rows[rank::ranks]
    for start in range(0, len(mine), config.trainer.micro_batch):
        pairs = table.take(mine[start : start + config.trainer.micro_batch])
        yield PairPart(
            prompts=[pair["prompt"] for pair in pairs],
            chosen=[decoded(pair["chosen"]["bytes"]) for pair in pairs],
            rejected=[decoded(pair["rejected"]["bytes"]) for pair in pairs],
            scale=1 / len(rows),
        )


def _load(parameters: dict[str, torch.nn.Parameter], state: LearnerState) -> None:
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(torch.tensor(state.weights[name], device=parameter.device))
