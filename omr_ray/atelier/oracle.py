"""The judge of the embedded world: reads the seven aspects off a picture.

One small convolutional network with a head for each aspect, trained on renders only: never on anything
that a model made. It measures what generated images show; nothing is ever trained on what it says.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from omr_ray.atelier.render import render
from omr_ray.atelier.world import ASPECTS, parse, random_scene

SIDE = 64  # pixels of what it reads


class OracleNetwork(nn.Module):
    """f32 [N 3 64 64] in -1..1 to one tensor of logits [N values] for each aspect."""

    def __init__(self, values: Mapping[str, Sequence[str]]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for into, out, kernel, stride in ((3, 24, 5, 2), (24, 48, 3, 2), (48, 64, 3, 1), (64, 96, 3, 2), (96, 96, 3, 1)):
            layers += [nn.Conv2d(into, out, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
        # A coarse grid is kept: size and perspective are a matter of where things are.
        self.trunk = nn.Sequential(*layers, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(96 * 16, 192), nn.ReLU())
        self.heads = nn.ModuleDict({aspect: nn.Linear(192, len(known)) for aspect, known in values.items()})

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        features = self.trunk(images)
        return {aspect: head(features) for aspect, head in self.heads.items()}


class Oracle:
    """Reads aspects off images, and scores images against the aspects their prompts name.

    Example: `Oracle.from_pretrained(weights() / "oracle").accuracy(images, prompts)`
    """

    def __init__(self, network: OracleNetwork, values: Mapping[str, Sequence[str]]) -> None:
        self.network = network.eval().requires_grad_(False)
        self.values = {aspect: tuple(known) for aspect, known in values.items()}

    @classmethod
    def from_pretrained(cls, directory: str | os.PathLike, device: str | torch.device = "cpu") -> "Oracle":
        """Load `config.json` and `model.safetensors` from a directory. Raises FileNotFoundError where one is missing."""
        directory = Path(directory)
        values = json.loads((directory / "config.json").read_text())["values"]
        network = OracleNetwork(values)
        weights = load_file(directory / "model.safetensors")
        network.load_state_dict({name: w.float() if w.is_floating_point() else w for name, w in weights.items()})
        return cls(network.to(device), values)

    def save_pretrained(self, directory: str | os.PathLike) -> None:
        """Write `config.json` and `model.safetensors` (float16)."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "config.json").write_text(json.dumps({"values": self.values}, indent=2) + "\n")
        weights = {name: (w.half() if w.is_floating_point() else w).cpu().contiguous() for name, w in self.network.state_dict().items()}
        save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})

    @torch.no_grad()
    def read(self, images: np.ndarray) -> list[dict[str, str]]:
        """What each image shows: u8 [N 64 64 3] to N complete descriptions. Raises ValueError for another shape."""
        images = np.asarray(images)
        if images.ndim != 4 or images.shape[1:] != (64, 64, 3) or images.dtype != np.uint8:
            raise ValueError(f"the oracle reads uint8 [N, 64, 64, 3], got {images.dtype} {list(images.shape)}")
        readings: list[dict[str, str]] = []
        device = next(self.network.parameters()).device
        for part in np.array_split(images, max(1, -(-len(images) // 256))):
            pixels = torch.tensor(part, device=device).permute(0, 3, 1, 2).float() / 127.5 - 1
            classes = {aspect: logits.argmax(1).tolist() for aspect, logits in self.network(pixels).items()}
            readings += [{aspect: self.values[aspect][classes[aspect][i]] for aspect in self.values} for i in range(len(part))]
        return readings

    def accuracy(self, images: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        """Share of the aspects named in each prompt that its image shows: f64 [N], NaN where a prompt names none.

        Raises ValueError unless there are as many prompts as images.
        """
        if len(images) != len(prompts):
            raise ValueError(f"one prompt an image is needed, got {len(prompts)} prompts for {len(images)} images")
        scores = []
        for seen, prompt in zip(self.read(images), prompts, strict=True):
            hits = [seen[aspect] == value for aspect, value in parse(prompt).items()]
            scores.append(float(np.mean(hits)) if hits else float("nan"))
        return np.array(scores)

    def accuracy_by_aspect(self, images: np.ndarray, prompts: Sequence[str]) -> dict[str, float]:
        """For each aspect, the share of the prompts naming it whose image shows it; absent where none names it."""
        hits: dict[str, list[bool]] = {aspect: [] for aspect in ASPECTS}
        for seen, prompt in zip(self.read(images), prompts, strict=True):
            for aspect, value in parse(prompt).items():
                hits[aspect].append(seen[aspect] == value)
        return {aspect: float(np.mean(known)) for aspect, known in hits.items() if known}

    def evaluate_on_renders(self, count: int = 2000, seed: int = 20_000) -> dict[str, float]:
        """Accuracy per aspect on `count` renders of a seed that no training uses."""
        rng = np.random.default_rng([seed, count])
        scenes = [random_scene(rng) for _ in range(count)]
        readings = self.read(np.stack([render(scene, rng) for scene in scenes]))
        return {
            aspect: float(np.mean([seen[aspect] == getattr(scene, aspect) for seen, scene in zip(readings, scenes, strict=True)]))
            for aspect in ASPECTS
        }
