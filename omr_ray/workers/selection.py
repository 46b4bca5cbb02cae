"""`omr-ray reward evaluate --policy CONFIG`: does the reward model pick better images of a policy than chance and CLIP do?"""

from __future__ import annotations

from contextlib import closing

import numpy as np

from omr_ray.atelier import WEIGHTS, shipped
from omr_ray.atelier.oracle import Oracle
from omr_ray.config.run import AtelierModel, RunConfig
from omr_ray.evaluation.selection import SIZES, Contest, contests
from omr_ray.ray_session import connected
from omr_ray.types import UserError
from omr_ray.vlm.clip import Clip
from omr_ray.vlm.engine import RewardEngine
from omr_ray.workers.launch import source_from
from omr_ray.workers.placement import total_cpus
from omr_ray.workers.pool import RolloutPool


def select(model: RewardEngine, config: RunConfig, prompts: int) -> list[Contest]:
    """Draw 64 images of the untrained policy for the last prompt of each of `prompts` held-out dialogues, and let each scorer choose.

    The embedded world's oracle judges: the share of the prompt's aspects that an image shows. Raises UserError for another model.
    """
    if not isinstance(config.model, AtelierModel):
        raise UserError(f"selection needs a judge, and {config.model.path} has none: only images of the embedded world can be read exactly")
    images_a_prompt = max(SIZES)
    texts = [dialogue.rounds[-1].prompt for dialogue in source_from(config).held_out(prompts) for _ in range(images_a_prompt)]
    with connected(total_cpus(config)), closing(RolloutPool(config)) as pool:
        pool.load(None)
        images, _ = pool.generate(texts, seeds=np.random.SeedSequence(config.evaluation.seed).generate_state(len(texts)).tolist())
    scores = {
        "oracle": Oracle.from_pretrained(WEIGHTS / "oracle").accuracy(images, texts),
        "reward": model.score(images, texts).numpy(),
        "CLIP": Clip.from_pretrained(shipped("clip")).score(images, texts).numpy(),
    }
    table = {name: np.asarray(values, dtype=np.float64).reshape(-1, images_a_prompt) for name, values in scores.items()}
    return contests(table["oracle"], table["reward"], {"CLIP": table["CLIP"]})
