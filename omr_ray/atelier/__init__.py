"""The embedded world: pictures of garments, the language about them, small real models, and a judge.

`WEIGHTS` is the directory of the shipped models; `StableDiffusionPipeline.from_pretrained(WEIGHTS)` loads it.
"""

from pathlib import Path

from omr_ray.types import UserError

WEIGHTS = Path(__file__).parent / "weights"


def shipped(part: str) -> Path:
    """The directory of a model among `WEIGHTS`. Raises UserError for one that is not there."""
    if not (WEIGHTS / part).is_dir():
        raise UserError(
            f"{WEIGHTS / part}: these embedded weights are not there; make them with `omr-ray atelier pretrain`, or name others"
        )
    return WEIGHTS / part
