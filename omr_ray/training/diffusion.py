"""`omr-ray finetune`: supervised training of the diffusion policy on dialogues, under Ray Train (OMR eq. 4, 5, 13; TDRI section 4.2).

First every rank encodes its share of the dialogues into the cache (latent_cache.py), then all train from it: neither the
autoencoder nor, but for the empty prompt, the text encoders run again.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from omr_ray.config.finetune import FinetuneRun
from omr_ray.config.run import DiffusersModel
from omr_ray.data.buckets import Fitted, Size, bucket_sizes, fit, nearest_bucket
from omr_ray.data.latent_cache import PART, Encoded, Frame, LatentTable, Shapes, claim, missing_parts, write_part
from omr_ray.data.store import Folder, StoredTable
from omr_ray.diffusion.adapters import Adapter, export_adapter, model_card
from omr_ray.diffusion.loading import save_pipeline
from omr_ray.diffusion.policy import Policy
from omr_ray.loading import device_for, model_path, policy_from
from omr_ray.training.diffusion_objective import DialoguePart, SupervisedObjective
from omr_ray.training.loop import learn, load, run_workers
from omr_ray.types import LearnerState, UserError
from omr_ray.workers.learner_engine import use_group

ADAPTER, MODEL = "adapter", "model"  # what came out, in the run directory: `lora.start`, or `model.path` of another run
ENCODED_ROUNDS = 32  # that go through the autoencoder and the text encoders together


def train(config: FinetuneRun, directory: Path, *, resume: bool) -> dict[str, Any]:
    """Encode and train; returns what came out. Ray must be initialised."""
    last = run_workers(_worker, config, directory, resume=resume)
    name = ADAPTER if config.lora is not None else MODEL
    return {name: str(directory / name), "cache": _cache(config, directory).path, "last": last}


def _cache(config: FinetuneRun, directory: Path) -> Folder:
    return Folder(config.data.cache or str(directory.absolute() / "cache"))


# -- on a worker -------------------------------------------------------------------------------------------------------


def _worker(settings: dict[str, str]) -> dict[str, float]:
    config, directory = FinetuneRun.model_validate(yaml.safe_load(settings["config"])), Path(settings["directory"])
    device = device_for(config.worker, "finetune")
    use_group(device, config.timeout_s)
    rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    policy = policy_from(config.model, config.lora, device, config.worker.threads)
    folder, shapes = _cache(config, directory), _shapes(config, policy)
    sizes = bucket_sizes(config.buckets.side or policy.height, config.buckets.multiple, config.buckets.max_ratio)
    _check(sizes, config, policy)
    tables = {split: StoredTable(config.data.path, "dialogues", split, config.data.purpose) for split in ("train", "test")}
    counts = {
        "train": min(len(tables["train"]), config.data.limit or len(tables["train"])),
        "test": min(len(tables["test"]), config.held_out),
    }
    if rank == 0:
        data = {"path": config.data.path, "purpose": config.data.purpose, "dialogues": counts}
        claim(folder, {"model": model_path(config.model), "data": data, "sizes": [list(size) for size in sizes], **asdict(shapes)})
    torch.distributed.barrier()
    for split, table in tables.items():
        for part in missing_parts(folder, split, counts[split])[rank::ranks]:
            rows = range(part * PART, min((part + 1) * PART, counts[split]))
            write_part(folder, split, part, encode(policy, (table[row] for row in rows), sizes), shapes.dtype)
    torch.distributed.barrier()
    state, metrics = _learn(config, directory, policy, folder, shapes)
    if rank == 0:
        _save(config, directory, policy, state)
    return metrics


def _learn(config: FinetuneRun, directory: Path, policy: Policy, folder: Folder, shapes: Shapes) -> tuple[LearnerState, dict[str, float]]:
    trainer = config.trainer
    latents, held_out = (LatentTable(folder.path, split, shapes, trainer.batch) for split in ("train", "test"))

    def parts(update: int, rank: int, ranks: int) -> Iterator[DialoguePart]:
        bucket, rows = latents.rows_of(update, config.seed)
        mine = np.arange(len(rows))[rank::ranks]
        for places in _split(mine, trainer.micro_batch):
            seeds = [(config.seed, update, int(place)) for place in places]
            yield DialoguePart(dialogues=latents.take(bucket, [rows[i] for i in places]), seeds=seeds, scale=1 / len(rows))

    def held_out_parts(rank: int, ranks: int) -> Iterator[DialoguePart]:
        """The same dialogues with the same noise every time."""
        for batch in range(held_out.batches):
            bucket, rows = held_out.rows_of(batch + 1, seed=0)
            for places in _split(np.arange(len(rows))[rank::ranks], trainer.micro_batch):
                dialogues = held_out.take(bucket, [rows[i] for i in places])
                yield DialoguePart(dialogues=dialogues, seeds=[(0, batch, int(place)) for place in places], scale=1.0)

    if config.lora is None:
        policy.network.float().requires_grad_(True)
    if trainer.gradient_checkpointing:
        policy.network.enable_gradient_checkpointing()
    return learn(
        config,
        directory,
        SupervisedObjective(policy, config),
        _parameters(config, policy),
        total=trainer.epochs * latents.batches,
        parts=parts,
        held_out=held_out_parts,
        ema_decay=trainer.ema_decay,
        channels_last=isinstance(config.model, DiffusersModel) and config.model.channels_last,
    )


def _parameters(config: FinetuneRun, policy: Policy) -> dict[str, torch.nn.Parameter]:
    return policy.lora_parameters() if config.lora is not None else dict(policy.network.named_parameters())


def _save(config: FinetuneRun, directory: Path, policy: Policy, state: LearnerState) -> None:
    weights = state.ema or state.weights
    if config.lora is None:
        load(_parameters(config, policy), weights)
        save_pipeline(policy.path, policy.network, directory / MODEL)
        return
    metadata = {"run": config.name, "updates": str(state.policy_version), "seed": str(config.seed)}
    adapter = Adapter(
        weights=weights, rank=config.lora.rank, alpha=config.lora.alpha, base_model=model_path(config.model), metadata=metadata
    )
    card = model_card(model_path(config.model), f"{config.name}, {state.policy_version} supervised updates", {})
    export_adapter(adapter, directory / ADAPTER, card, name=config.name)


# -- encoding ----------------------------------------------------------------------------------------------------------


def encode(policy: Policy, rows: Iterator[dict[str, Any]], sizes: Sequence[Size]) -> Iterator[tuple[Size, Encoded]]:
    """Rows of the dialogues table, encoded, each with its bucket: that of its first image, for all its rounds."""
    waiting: dict[Size, list[tuple[dict[str, Any], list[int]]]] = defaultdict(list)
    for row in rows:
        places = [place for place, turn in enumerate(row["rounds"]) if turn["target"] is not None]
        if not places:
            continue
        first = row["rounds"][places[0]]["target"]
        size = nearest_bucket(first["height"], first["width"], sizes)
        waiting[size].append((row, places))
        if sum(len(places) for _, places in waiting[size]) >= ENCODED_ROUNDS:
            yield from ((size, dialogue) for dialogue in _encoded(policy, waiting.pop(size), size))
    for size, held in waiting.items():
        yield from ((size, dialogue) for dialogue in _encoded(policy, held, size))


def _encoded(policy: Policy, dialogues: Sequence[tuple[dict[str, Any], list[int]]], size: Size) -> Iterator[Encoded]:
    turns = [row["rounds"][place] for row, places in dialogues for place in places]
    fitted: list[Fitted] = [fit(turn["target"]["bytes"], size) for turn in turns]
    latents = policy.encode_images(np.stack([image.pixels for image in fitted])).cpu().numpy()
    text = policy.encode_text(policy.tokenize([turn["prompt"] for turn in turns]))
    hidden = text.hidden.float().cpu().numpy()
    pooled = text.added["text_embeds"].float().cpu().numpy() if text.added is not None else [None] * len(turns)
    frames = iter(
        Frame(latent=latent, hidden=state, pooled=vector, conditioning=image.conditioning)
        for latent, state, vector, image in zip(latents, hidden, pooled, fitted, strict=True)
    )
    for row, places in dialogues:
        consecutive = tuple(b == a + 1 for a, b in zip(places, places[1:], strict=False))
        yield Encoded(id=row["id"], rounds=tuple(next(frames) for _ in places), consecutive=consecutive)


def _shapes(config: FinetuneRun, policy: Policy) -> Shapes:
    empty = policy.text.empty(1)
    pooled = None if empty.added is None else int(empty.added["text_embeds"].shape[-1])
    half = isinstance(config.model, DiffusersModel) and config.model.dtype == "bfloat16"
    length, width = empty.hidden.shape[1:]
    return Shapes(
        dtype="float16" if half else "float32",
        channels=policy.vae.config.latent_channels,
        factor=policy.vae_factor,
        hidden=(length, width),
        pooled=pooled,
    )


def _check(sizes: Sequence[Size], config: FinetuneRun, policy: Policy) -> None:
    multiple = config.buckets.multiple
    if multiple % policy.vae_factor:
        raise UserError(f"buckets.multiple must divide by {policy.vae_factor}, the autoencoder's factor, got {multiple}; set it so")
    if not sizes:
        raise UserError(
            f"buckets: no size with sides that divide by {multiple} has nine tenths of {config.buckets.side or policy.height} squared; "
            "lower buckets.multiple"
        )


def _split(places: np.ndarray, micro_batch: int) -> Iterator[np.ndarray]:
    return iter(np.array_split(places, math.ceil(len(places) / micro_batch)))
