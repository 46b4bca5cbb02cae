"""`omr-ray reward evaluate`: a reward model on the held-out pairs of a built table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from omr_ray.config.rewards import PreferenceModel
from omr_ray.config.run import RunConfig
from omr_ray.data.store import StoredTable
from omr_ray.evaluation import reward
from omr_ray.loading import reward_engine_from
from omr_ray.vlm.inputs import decoded_bytes
from omr_ray.workers.selection import select


def evaluate(
    model: str, data: str, out: Path, *, limit: int, engine: str, dtype: str, device: str, policy: RunConfig | None, prompts: int
) -> dict[str, Any]:
    """Judge the model at `model` ("atelier", a directory or hub id, or what `reward train` wrote); writes the report below `out`.

    With a `policy` also what the model selects among its images for so many `prompts` (OMR fig. 6).
    """
    table = StoredTable(data, "preferences", "test")
    network = reward_engine_from(PreferenceModel.model_validate({"path": model, "engine": engine, "dtype": dtype}), device)

    def score(images: Sequence[bytes], prompts: Sequence[str]) -> np.ndarray:
        return network.score([decoded_bytes(image) for image in images], prompts, batch_size=len(images)).double().numpy()

    judged = reward.judge(table.rows(), score, weights=f"reward model {model}, data {data}", beta=1.0, limit=limit)
    selections = () if policy is None else tuple(select(network, policy, prompts))
    figures: dict[str, Any] = {"accuracy": judged.accuracy.value, "interval": [judged.accuracy.low, judged.accuracy.high]}
    if selections:
        figures["selection"] = [asdict(contest) for contest in selections]
    return {
        **figures,
        "by_negative": {name: share.value for name, share in judged.by_negative.items()},
        **reward.write(judged, out, selections),
    }
