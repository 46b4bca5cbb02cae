"""Stage 5: the reward model, a small Qwen2.5-VL read without its last linear layer (OMR section 3.2, eq. 8).

It learns in three phases, with the losses of `reward_losses`: first to read images and prompts, then, with the rate
raised again and the truth of every single aspect asked for as well, to compare the two, and last the accessories, which
cover the fewest pixels: there four pairs in ten differ in nothing else.
"""

import copy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import Qwen2Tokenizer

from omr_ray.atelier.stages.loop import Budget, Trainer
from omr_ray.atelier.stages.pairs import PairMaker, fresh_pairs
from omr_ray.atelier.stages.qwen import WIDTH, build_qwen
from omr_ray.atelier.stages.reward_losses import Losses
from omr_ray.atelier.stages.soft_renders import SoftRenders, reconstruct
from omr_ray.atelier.stages.tokenizers import make_qwen_tokenizer, world_text
from omr_ray.atelier.world import ASPECTS, VALUES
from omr_ray.vlm.reward_model import RewardModel

READING = Budget(steps=1700, batch=32, learning_rate=2e-3, weight_decay=0.02, ema_decay=0.995)
BUDGET = Budget(steps=1150, batch=32, learning_rate=1.5e-3, weight_decay=0.02, ema_decay=0.995)
ACCESSORIES = Budget(steps=600, batch=32, learning_rate=1e-3, weight_decay=0.02, ema_decay=0.99)


def build_reward_model(tokenizer: Qwen2Tokenizer) -> RewardModel:
    """The untrained model."""
    network, processor = build_qwen(tokenizer, layers=3, positions=1024)
    return RewardModel(network, tokenizer, processor)


def train_reward_model(out: Path, work: Path, *, budget: Budget, seed: int, device: torch.device) -> dict[str, float]:
    """Train, save to `out/reward_model`; returns seconds and the accuracy on fresh pairs, by the one aspect changed."""
    torch.manual_seed(seed)
    renders = SoftRenders(out, work, seed, device, repainted=False)
    model = build_reward_model(make_qwen_tokenizer(work / "qwen_tokenizer", world_text(seed))).to(device).train()
    heads = nn.ModuleDict({aspect: nn.Linear(WIDTH, len(VALUES[aspect])) for aspect in ASPECTS}).to(device)
    truth = nn.Linear(WIDTH, 1).to(device)

    def loss_at(losses, pairs, numbers, noise):
        batch = [pairs.draw(numbers) for _ in range(budget.batch)]
        rows = torch.tensor([pair.chosen for pair in batch] + [pair.rejected for pair in batch])
        return losses(renders.pixels(rows, noise).to(device), batch, renders.labels[rows].to(device))

    def publish(trainer):
        trainer.swap_ema()
        copy.deepcopy(model).half().save_pretrained(out / "reward_model")
        trainer.swap_ema()

    seconds, reading = 0.0, {"model": model, "heads": heads}
    for number, (phase, modules, phase_budget, losses, focus) in enumerate(
        (
            ("reward_reading", reading, READING, Losses(model, heads), None),
            ("reward_model", reading | {"truth": truth}, budget, Losses(model, heads, truth), None),
            ("reward_accessories", reading | {"truth": truth}, ACCESSORIES, Losses(model, heads, truth), "others"),
        )
    ):
        trainer = Trainer(phase, modules, phase_budget, work=work, log=out / "logs" / f"{phase}.jsonl")
        loss = partial(loss_at, losses, PairMaker(renders.scenes, focus))
        seconds += trainer.run(loss, seed=seed + number, on_checkpoint=partial(publish, trainer))
        trainer.swap_ema()
    trained = RewardModel.from_pretrained(out / "reward_model", device=str(device))
    return {"seconds": seconds} | pairwise_accuracy(trained, renders.vae, device)


def pairwise_accuracy(model: RewardModel, vae: Any, device: torch.device, *, count: int = 200, seed: int = 40_000) -> dict[str, float]:
    """Share of fresh pairs in which the fitting image scores higher, for each aspect as the one thing wrong.

    `pairs_*` are renders, `rebuilt_mean` the same pairs as the autoencoder gives them back.
    """
    rng, accuracy, soft = np.random.default_rng(seed), {}, []
    for aspect in ASPECTS:
        prompts, pictures = fresh_pairs(aspect, count, rng)
        score = model.score(pictures, prompts * 2)
        accuracy[f"pairs_{aspect}"] = float((score[:count] > score[count:]).float().mean())
        pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).float().to(device) / 127.5 - 1
        with torch.no_grad():
            codes = torch.cat([vae.encode(part).latent_dist.mean for part in pixels.split(64)])
        rebuilt = reconstruct(vae, codes * vae.config.scaling_factor, device).permute(0, 2, 3, 1).numpy()
        score = model.score(rebuilt, prompts * 2)
        soft.append(float((score[:count] > score[count:]).float().mean()))
    return accuracy | {"pairs_mean": float(np.mean(list(accuracy.values()))), "rebuilt_mean": float(np.mean(soft))}
