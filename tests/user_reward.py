"""A reward as a user writes one."""

from collections.abc import Sequence

import numpy as np


def redness(images: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
    """Mean of red over the mean of all colours."""
    return images[..., 0].mean((1, 2)) / (images.mean((1, 2, 3)) + 1)
