"""LPIPS (arXiv:1801.03924) by torchmetrics, with the backbone from a local file."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from omr_ray.types import UserError
from omr_ray.weights import read_safetensors

SLICE = re.compile(r"^(slice\d+|slices\.\d+)\.")


class Lpips:
    """Distances of image pairs. torchmetrics ships the calibrated linear heads; the backbone's weights are the user's."""

    def __init__(self, network: Any, device: str) -> None:
        self._network, self._device = network.to(device).requires_grad_(False), device

    @classmethod
    def load(cls, path: str | Path | None, network: str, device: str = "cpu") -> Lpips:
        """Raises UserError without a file, without torchvision, and for weights of another backbone."""
        if path is None:
            raise UserError("no weights are given; set metrics, lpips.path to a safetensors file of torchvision's backbone")
        if importlib.util.find_spec("torchvision") is None:
            raise UserError("torchvision is not installed, which torchmetrics builds the backbone with; pip install torchvision")
        from torchmetrics.functional.image.lpips import _NoTrainLpips

        made: Any = _NoTrainLpips(net=network, pnet_rand=True)  # type: ignore[arg-type]  # without a download of the backbone
        made.net.load_state_dict(_backbone(read_safetensors(path), made.net.state_dict(), path))
        return cls(made, device)

    @torch.no_grad()
    def distances(self, images: np.ndarray, others: np.ndarray) -> Tensor:
        """f32 [N] of u8 [N H W 3] twice, 0 for equal images."""
        one, other = (torch.as_tensor(side).to(self._device).movedim(-1, 1).float() / 127.5 - 1 for side in (images, others))
        return self._network(one, other).flatten().cpu()


def _backbone(weights: Mapping[str, np.ndarray], wanted: Mapping[str, Tensor], path: str | Path) -> dict[str, Tensor]:
    """torchvision's names (features.8.weight) as torchmetrics' (slice3.8.weight, or slices.2.8.weight)."""
    by_layer = {SLICE.sub("", name): name for name in wanted}
    given = {name.removeprefix("features."): array for name, array in weights.items() if name.startswith("features.")}
    if missing := sorted(by_layer.keys() - given.keys()):
        raise UserError(f"{path}: {len(missing)} layers of the backbone are missing, the first is features.{missing[0]}; export it again")
    return {name: torch.tensor(given[layer]) for layer, name in by_layer.items()}
