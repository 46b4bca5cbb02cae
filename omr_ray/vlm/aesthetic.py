"""An aesthetic head on CLIP's image embedding, as LAION's predictors are (OMR table 1 has another, commercial one)."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from omr_ray.types import UserError
from omr_ray.vlm.clip import Clip
from omr_ray.vlm.engine import Images
from omr_ray.weights import read_safetensors

LAYER = re.compile(r"^(?:(?:layers|mlp)\.(\d+)\.)?(weight|bias)$")


class Aesthetic:
    """Linear layers one after the other, without activations in between, on the unit image embedding."""

    def __init__(self, clip: Clip, layers: list[tuple[Tensor, Tensor]]) -> None:
        self.clip, self.layers = clip, layers

    @classmethod
    def load(cls, head: str | Path, clip: str | Path, device: str = "cpu") -> Aesthetic:
        """Raises UserError for files that are missing or no such head, and for a CLIP of another width."""
        found: dict[int, dict[str, np.ndarray]] = {}
        for name, array in read_safetensors(head).items():
            matched = LAYER.match(name)
            if matched is None:
                raise UserError(f"{head}: {name!r} is no layer of an aesthetic head; it needs layers.N.weight and layers.N.bias")
            found.setdefault(int(matched[1] or 0), {})[matched[2]] = array
        if not found or any(set(parts) != {"weight", "bias"} for parts in found.values()):
            raise UserError(f"{head}: every layer of an aesthetic head needs a weight and a bias; convert it again")
        layers = [(torch.tensor(found[n]["weight"]).float(), torch.tensor(found[n]["bias"]).float()) for n in sorted(found)]
        network = Clip.from_pretrained(clip, device)
        width = network.network.config.projection_dim
        if layers[0][0].shape[1] != width or layers[-1][0].shape[0] != 1:
            raise UserError(
                f"{head}: takes embeddings of width {layers[0][0].shape[1]}, the CLIP at {clip} makes {width}; give its own CLIP"
            )
        return cls(network, layers)

    @torch.no_grad()
    def score(self, images: Images) -> Tensor:
        """f32 [N] of images u8 [N H W 3]."""
        value = self.clip.embed_images(images)
        for weight, bias in self.layers:
            value = value @ weight.T + bias
        return value[:, 0]
