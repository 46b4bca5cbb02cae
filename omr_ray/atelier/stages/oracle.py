"""Stage 2: the oracle, from renders only, blurred and noised a little so that it does not lean on crisp pixels."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from omr_ray.atelier.oracle import Oracle, OracleNetwork
from omr_ray.atelier.stages.loop import Budget, Trainer
from omr_ray.atelier.stages.renders import labels_of, make_renders, to_float
from omr_ray.atelier.world import ASPECTS, VALUES

BUDGET = Budget(steps=2400, batch=64, learning_rate=3e-3, weight_decay=0.02)
RENDERS = 20_000


def disturb(images: torch.Tensor, noise: torch.Generator) -> torch.Tensor:
    """Blur, gray-level noise and light, each of random strength per image. f32 [N 3 H W], same out."""
    count = len(images)
    strength = torch.rand(count, 3, 1, 1, 1, generator=noise).to(images.device)
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    images = torch.lerp(images, blurred, 0.8 * strength[:, 0])
    grain = torch.randn(images.shape, generator=noise).to(images.device)
    return (images + 0.08 * strength[:, 1] * grain) * (0.9 + 0.2 * strength[:, 2])


def train_oracle(out: Path, work: Path, *, budget: Budget, seed: int, device: torch.device) -> dict[str, float]:
    """Train, save to `out/oracle`; returns seconds and the accuracy per aspect on held-out renders."""
    torch.manual_seed(seed)
    images, scenes = make_renders(RENDERS, seed + 2, work)
    labels = torch.tensor([labels_of(scene) for scene in scenes])
    network: Any = OracleNetwork(VALUES)
    network.to(device, memory_format=torch.channels_last)
    trainer = Trainer("oracle", {"network": network}, budget, work=work, log=out / "logs" / "oracle.jsonl")

    def loss_at(numbers, noise):
        rows = torch.from_numpy(numbers.integers(0, len(images), budget.batch))
        logits = network(disturb(to_float(images[rows], device), noise))
        truth = labels[rows].to(device)
        losses = {aspect: F.cross_entropy(logits[aspect], truth[:, i]) for i, aspect in enumerate(ASPECTS)}
        return {"loss": sum(losses.values())} | {aspect: loss.detach() for aspect, loss in losses.items()}

    seconds = trainer.run(loss_at, seed=seed)
    Oracle(network, VALUES).save_pretrained(out / "oracle")
    accuracy = Oracle.from_pretrained(out / "oracle", device).evaluate_on_renders()
    return {"seconds": seconds} | {f"accuracy_{aspect}": value for aspect, value in accuracy.items()}
