"""A fixed set of rendered scenes that several stages train on."""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from omr_ray.atelier.render import render_with_keypoints
from omr_ray.atelier.world import ASPECTS, VALUES, Scene, random_scene

Renders = tuple[torch.Tensor, list[Scene]]  # u8 [N 3 H W], N scenes


def make_renders(count: int, seed: int, work: Path) -> Renders:
    """`count` random scenes and their pictures; kept in `work`, because drawing takes 2 ms each."""
    images, _, scenes = make_posed_renders(count, seed, work)
    return images, scenes


def make_posed_renders(count: int, seed: int, work: Path) -> tuple[torch.Tensor, torch.Tensor, list[Scene]]:
    """The pictures and scenes of `make_renders`, and between them the keypoints f32 [N K 3]."""
    path = work / f"posed-{seed}-{count}.safetensors"
    if path.exists():
        stored = load_file(path)
        return stored["images"], stored["keypoints"], [_scene_of(row) for row in stored["labels"].tolist()]
    rng = np.random.default_rng([seed, count])
    scenes = [random_scene(rng) for _ in range(count)]
    pictures, points = zip(*(render_with_keypoints(scene, rng) for scene in scenes), strict=True)
    images, keypoints = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(np.stack(points))
    path.parent.mkdir(parents=True, exist_ok=True)
    labels = torch.tensor([labels_of(scene) for scene in scenes])
    save_file({"images": images, "keypoints": keypoints, "labels": labels}, path)
    return images, keypoints, scenes


def labels_of(scene: Scene) -> list[int]:
    """The seven class numbers of a scene, in the order of `ASPECTS`."""
    return [VALUES[aspect].index(getattr(scene, aspect)) for aspect in ASPECTS]


def _scene_of(labels: list[int]) -> Scene:
    return Scene(**{aspect: VALUES[aspect][label] for aspect, label in zip(ASPECTS, labels, strict=True)})


def to_float(images: torch.Tensor, device: torch.device) -> torch.Tensor:
    """u8 [N 3 H W] in 0..255 to f32 in -1..1, channels last."""
    images = images.to(device, memory_format=torch.channels_last)
    return images.float() / 127.5 - 1
