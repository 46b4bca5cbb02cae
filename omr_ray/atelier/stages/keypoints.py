"""Stage 7: the garment keypoints, from renders only, disturbed like the oracle's, so that it also reads what the policy draws."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from omr_ray.atelier.garment_pose import GarmentPose, KeypointNetwork
from omr_ray.atelier.keypoints import KEYPOINTS
from omr_ray.atelier.render import render_with_keypoints
from omr_ray.atelier.stages.loop import Budget, Trainer
from omr_ray.atelier.stages.oracle import disturb
from omr_ray.atelier.stages.renders import make_posed_renders, to_float
from omr_ray.atelier.world import random_scene

BUDGET = Budget(steps=1200, batch=32, learning_rate=3e-3, weight_decay=0.02)
RENDERS = 12_000
SEEN_WEIGHT = 2.0


def keypoint_losses(places: Tensor, seen: Tensor, truth: Tensor) -> dict[str, Tensor]:
    """Mean distance |dx| + |dy| in pixels over the keypoints that are seen, and cross-entropy of whether one is.

    places [N K 2], seen [N K] (logits), truth [N K 3]; "loss" is their weighted sum.
    """
    present = truth[..., 2]
    distance = ((places - truth[..., :2]).abs().sum(2) * present).sum() / present.sum().clamp(min=1)
    doubt = F.binary_cross_entropy_with_logits(seen, present)
    return {"loss": distance + SEEN_WEIGHT * doubt, "distance": distance.detach(), "doubt": doubt.detach()}


def train_keypoints(out: Path, work: Path, *, budget: Budget, seed: int, device: torch.device) -> dict[str, float]:
    """Train, save to `out/keypoints`; returns seconds, and errors on fresh renders."""
    torch.manual_seed(seed)
    images, keypoints, _ = make_posed_renders(RENDERS, seed + 3, work)
    network: Any = KeypointNetwork(len(KEYPOINTS))
    network.to(device, memory_format=torch.channels_last)
    trainer = Trainer("keypoints", {"network": network}, budget, work=work, log=out / "logs" / "keypoints.jsonl")

    def loss_at(numbers: np.random.Generator, noise: torch.Generator) -> dict[str, Tensor]:
        rows = torch.from_numpy(numbers.integers(0, len(images), budget.batch))
        places, seen = network(disturb(to_float(images[rows], device), noise))
        return keypoint_losses(places, seen, keypoints[rows].to(device))

    seconds = trainer.run(loss_at, seed=seed)
    GarmentPose(network, KEYPOINTS).save_pretrained(out / "keypoints")
    return {"seconds": seconds} | evaluate_on_renders(GarmentPose.from_pretrained(out / "keypoints", device))


def evaluate_on_renders(estimator: GarmentPose, count: int = 1000, seed: int = 60_000) -> dict[str, float]:
    """Mean distance in pixels (Euclidean) over the seen keypoints of fresh renders, its 95th percentile, and how often "seen" is right."""
    rng = np.random.default_rng([seed, count])
    pictures, truth = zip(*(render_with_keypoints(random_scene(rng), rng) for _ in range(count)), strict=True)
    found, true = estimator.estimate(np.stack(pictures)), np.stack(truth)
    present = true[..., 2] == 1
    distance = np.linalg.norm(found[..., :2] - true[..., :2], axis=2)[present]
    return {
        "mean_error": float(distance.mean()),
        "error_95": float(np.quantile(distance, 0.95)),
        "seen_accuracy": float(((found[..., 2] >= 0.5) == present).mean()),
    }
