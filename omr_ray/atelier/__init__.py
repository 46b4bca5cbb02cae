"""The embedded world: pictures of garments, the language about them, small real models, and a judge.

`WEIGHTS` is the directory of the shipped models; `StableDiffusionPipeline.from_pretrained(WEIGHTS)` loads it.
"""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
