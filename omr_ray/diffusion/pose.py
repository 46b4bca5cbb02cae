"""A pose: keypoints of an image, and the heat maps that a ControlNet reads (TDRI section 3.1).

    pose_1 = E(I_1) = {(x_k, y_k, c_k)}, k = 1..K;  one heat map H_k a keypoint;  I_t = G(P_t, H, C_{t-1})

Pixels are counted from the centre of the first one, (0, 0).
"""

from __future__ import annotations

from typing import Protocol

import numpy as np


class PoseEstimator(Protocol):
    """What finds keypoints: `atelier/garment_pose.py` for garments of the embedded world, `onnx_pose.py` for people."""

    def estimate(self, images: np.ndarray) -> np.ndarray:
        """Images u8 [N H W 3] to keypoints f32 [N K 3]: x and y in pixels of the image, and the confidence in 0..1."""
        ...


def heat_maps(keypoints: np.ndarray, *, height: int, width: int, sigma: float, min_confidence: float) -> np.ndarray:
    """H_k(u, v) = exp(-((u - x_k)^2 + (v - y_k)^2) / (2 s^2)), float32 [N K H W], with s = `sigma` times the shorter side.

    keypoints f32 [N K 3]. The map of a keypoint that is not finite or not believed (confidence below `min_confidence`) is
    zero: it asks for nothing. Raises ValueError for another shape.
    """
    if keypoints.ndim != 3 or keypoints.shape[2] != 3:
        raise ValueError(f"keypoints are [N K 3], got {list(keypoints.shape)}")
    seen = np.isfinite(keypoints).all(2) & (keypoints[..., 2] >= min_confidence)
    x, y = np.where(seen[..., None], keypoints[..., :2], 0).astype(np.float32).transpose(2, 0, 1)
    spread = 2 * (sigma * min(height, width)) ** 2
    # The kernel is a product: one line of numbers for each axis.
    across = np.exp(-np.square(np.arange(width, dtype=np.float32) - x[..., None]) / spread)
    down = np.exp(-np.square(np.arange(height, dtype=np.float32) - y[..., None]) / spread)
    return (down[..., :, None] * across[..., None, :] * seen[..., None, None]).astype(np.float32)
