"""The pose estimator of the embedded world: garment keypoints by a small convolutional network, trained on renders."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from omr_ray.types import UserError
from omr_ray.weights import check_directory, reported

SIDE = 64


class KeypointNetwork(nn.Module):
    """f32 [N 3 64 64] in -1..1 to places f32 [N K 2], in pixels, and logits f32 [N K] of being seen.

    A place is the mean cell of a map of probabilities at 32 x 32 (integral regression, arXiv:1711.08229): finer than a cell, and
    differentiable.
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        self.down = nn.ModuleList([_block(3, 24, 5, 2), _block(24, 48, 3, 2), _block(48, 96, 3, 2)])
        self.middle = nn.Sequential(_block(96, 96, 3, 1), _block(96, 96, 3, 1))
        self.up = nn.ModuleList([_up(96 + 48, 48), _up(48 + 24, 24)])
        self.maps = nn.Conv2d(24, count, 1)
        self.seen = nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(96 * 16, count))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        passed = [images]
        for down in self.down:
            passed.append(down(passed[-1]))
        coarse = features = self.middle(passed.pop())
        for up in self.up:
            features = up(torch.cat([F.interpolate(features, scale_factor=2.0), passed.pop()], 1))
        return mean_cells(self.maps(features)), self.seen(coarse)


def mean_cells(maps: Tensor) -> Tensor:
    """Logits f32 [N K 32 32] of where a keypoint is to its mean place f32 [N K 2], x and y in pixels of the 64 x 64 image."""
    probabilities = maps.flatten(2).softmax(2).unflatten(2, maps.shape[2:])
    centres = 2 * torch.arange(maps.shape[3], device=maps.device) + 0.5
    return torch.stack([probabilities.sum(2) @ centres, probabilities.sum(3) @ centres], 2)


def _block(into: int, out: int, kernel: int, stride: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(into, out, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(out), nn.ReLU())


def _up(into: int, out: int) -> nn.Module:
    return nn.Sequential(_block(into, out, 1, 1), _block(out, out, 3, 1))


class GarmentPose:
    """Finds a garment's keypoints; `names` are those of `atelier/keypoints.py`.

    Example: `GarmentPose.from_pretrained(WEIGHTS / "keypoints").estimate(images)`
    """

    def __init__(self, network: KeypointNetwork, names: Sequence[str]) -> None:
        self.network, self.names = network.eval().requires_grad_(False), tuple(names)

    @classmethod
    def from_pretrained(cls, directory: str | os.PathLike, device: str | torch.device = "cpu") -> "GarmentPose":
        """Load `config.json` and `model.safetensors`. Raises UserError for a directory that is not there or damaged."""
        directory = Path(directory)
        check_directory(directory.parent, parts=(directory.name,))
        with reported(directory):
            names = json.loads((directory / "config.json").read_text())["names"]
            network = KeypointNetwork(len(names))
            weights = load_file(directory / "model.safetensors")
            network.load_state_dict({name: w.float() if w.is_floating_point() else w for name, w in weights.items()})
        return cls(network.to(device), names)

    def save_pretrained(self, directory: str | os.PathLike) -> None:
        """Write `config.json` and `model.safetensors` (float16)."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "config.json").write_text(json.dumps({"names": self.names}, indent=2) + "\n")
        weights = {name: (w.half() if w.is_floating_point() else w).cpu().contiguous() for name, w in self.network.state_dict().items()}
        save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})

    @torch.no_grad()
    def estimate(self, images: np.ndarray) -> np.ndarray:
        """Images u8 [N 64 64 3] to keypoints f32 [N K 3]: x and y in pixels, and the confidence. Raises UserError for another size."""
        images = np.asarray(images)
        if images.ndim != 4 or images.shape[1:] != (SIDE, SIDE, 3) or images.dtype != np.uint8:
            raise UserError(
                f"the embedded pose estimator reads uint8 [N, {SIDE}, {SIDE}, 3], got {images.dtype} {list(images.shape)}; take an onnx one"
            )
        device, found = next(self.network.parameters()).device, [np.zeros((0, len(self.names), 3), np.float32)]
        for part in torch.from_numpy(images.copy()).split(256):
            places, seen = self.network(part.to(device).movedim(-1, 1).float() / 127.5 - 1)
            found.append(torch.cat([places, seen.sigmoid()[..., None]], 2).cpu().numpy())
        return np.concatenate(found)
