"""`omr-ray reward train`: the Qwen-VL reward model under Ray Train, on 1..n workers, with DeepSpeed (OMR section 3.2, 4.1)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml

from omr_ray.config.reward_model import RewardRun
from omr_ray.data.sources import places
from omr_ray.data.store import StoredTable
from omr_ray.loading import device_for, reward_model_path
from omr_ray.training.loop import learn, load, run_workers
from omr_ray.training.reward_objective import PairPart, PreferenceObjective
from omr_ray.types import UserError
from omr_ray.vlm.inputs import decoded
from omr_ray.vlm.trainable import TrainableRewardModel
from omr_ray.workers.learner_engine import use_group

MODEL = "model"  # what came out, in the run directory: `rewards.preference.path` of a training run over dialogues


def train(config: RewardRun, directory: Path, *, resume: bool) -> dict[str, Any]:
    """Train on the pairs of a built table; returns what came out. Ray must be initialised."""
    table = _table(config)
    last = run_workers(_worker, config, directory, resume=resume)
    pairs = usable(config, len(table))
    return {"model": str(directory / MODEL), "updates": total_updates(config, len(table)), "pairs": pairs, "last": last}


def usable(config: RewardRun, pairs: int) -> int:
    """Pairs of the train split that are trained on."""
    return min(pairs, config.data.limit or pairs)


def total_updates(config: RewardRun, pairs: int) -> int:
    return config.trainer.epochs * math.ceil(usable(config, pairs) / config.trainer.batch)


def _worker(settings: dict[str, str]) -> dict[str, float]:
    config, directory = RewardRun.model_validate(yaml.safe_load(settings["config"])), Path(settings["directory"])
    torch.set_num_threads(config.worker.threads)
    device = device_for(config.worker, "reward")
    use_group(device, config.timeout_s)
    model = TrainableRewardModel.load(
        reward_model_path(config.model.path),
        lora=None if config.lora is None else (config.lora.rank, config.lora.alpha),
        seed=config.seed,
        device=device,
        gradient_checkpointing=config.trainer.gradient_checkpointing,
        **config.model.model_dump(exclude={"path"}),
    )
    parameters, table = model.trainable(), _table(config)

    def parts(update: int, rank: int, ranks: int) -> Iterator[PairPart]:
        rows = places(update, config.trainer.batch, usable(config, len(table)), config.seed)
        mine = rows[rank::ranks]
        for start in range(0, len(mine), config.trainer.micro_batch):
            pairs = table.take(mine[start : start + config.trainer.micro_batch])
            yield PairPart(
                prompts=[pair["prompt"] for pair in pairs],
                chosen=[_image(pair, "chosen") for pair in pairs],
                rejected=[_image(pair, "rejected") for pair in pairs],
                scale=1 / len(rows),
            )

    objective = PreferenceObjective(model.train(), config.beta, config.reference)
    state, metrics = learn(config, directory, objective, parameters, total=total_updates(config, len(table)), parts=parts)
    if torch.distributed.get_rank() == 0:
        load(parameters, state.weights)
        model.save(directory / MODEL, base=config.model.path)
    return metrics


def _table(config: RewardRun) -> StoredTable:
    return StoredTable(config.data.path, "preferences", "train", config.data.purpose)


def _image(pair: dict[str, Any], side: str) -> torch.Tensor:
    if pair[side] is None:
        raise UserError(f"pair {pair['id']!r} has no {side} image; build the data with filters.missing_images=reject")
    return decoded(pair[side]["bytes"])
