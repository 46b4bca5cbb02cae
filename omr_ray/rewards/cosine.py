"""The cosine of OMR eq. 6 and 7."""

from __future__ import annotations

import numpy as np


def unit(features: np.ndarray) -> np.ndarray:
    """Rows of features [..., F] scaled to length 1, float64, so that a dot product is a cosine.

    A row that is zero or not finite has no direction and becomes NaN.
    """
    features = np.asarray(features, dtype=np.float64)
    length = np.sqrt((features**2).sum(-1, keepdims=True))
    return features / np.where(np.isfinite(length) & (length > 0), length, np.nan)
