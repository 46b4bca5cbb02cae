"""Pairs of image and prompt from the embedded world, for tests and the bench."""

import numpy as np

from omr_ray.atelier.dialogues import make_dialogues
from omr_ray.atelier.render import render
from omr_ray.atelier.world import prompt_of, random_part, random_scene

SIZES = ((64, 64), (96, 96), (128, 80), (72, 144))  # height, width; the embedded model makes 4096 pixels of each


def dialogue_pairs(count: int) -> tuple[list[np.ndarray], list[str]]:
    """Targets u8 [64 64 3] of held-out dialogues: half under their own prompt, half under that of another dialogue."""
    rounds = [round_ for dialogue in make_dialogues("heldout", -(-count // 4)) for round_ in dialogue.rounds][:count]
    prompts = [round_.prompt for round_ in rounds]
    return [round_.target for round_ in rounds], [prompt if i % 2 else prompts[i - 7] for i, prompt in enumerate(prompts)]


def pairs_of_many_sizes(count: int, seed: int = 0) -> tuple[list[np.ndarray], list[str]]:
    """Renders of four sizes, u8 [H W 3], under prompts that name two to seven aspects of them."""
    rng = np.random.default_rng(seed)
    scenes = [random_scene(rng) for _ in range(count)]
    shapes = [SIZES[i % len(SIZES)] for i in range(count)]
    images = [render(scene, rng, size=max(shape))[: shape[0], : shape[1]] for scene, shape in zip(scenes, shapes, strict=True)]
    return images, [prompt_of(random_part(scene, rng)) for scene in scenes]
