"""A pose estimator from an ONNX file: models that read a coordinate as a class (SimCC, arXiv:2107.03332; RTMPose, arXiv:2303.07399)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from omr_ray.types import UserError
from omr_ray.weights import reported

# Of ImageNet's RGB pixels, as RTMPose was trained with.
MEAN, STD = np.array([123.675, 116.28, 103.53], np.float32), np.array([58.395, 57.12, 57.375], np.float32)

PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")  # the first one that is there


class OnnxPose:
    """Finds the keypoints of the one person that an image shows, whole images at a time, without a detector in front.

    The model takes float32 [N 3 h w] and gives scores [N K a w] and [N K a h] of each coordinate, a bins to the pixel. Raises
    UserError for a file that is missing or another kind of model, or where onnxruntime is not installed.
    """

    def __init__(self, path: str) -> None:
        if not Path(path).is_file():
            raise UserError(f"pose.estimator.path {path!r}: no such file; give an ONNX file of a SimCC pose model, such as RTMPose")
        try:
            import onnxruntime
        except ImportError:
            raise UserError("pose.estimator onnx needs onnxruntime; install it with pip install 'omr-ray[pose]'") from None
        providers = [name for name in PROVIDERS if name in onnxruntime.get_available_providers()]
        with reported(path, remedy="give an ONNX file of a SimCC pose model"):
            self._session: Any = onnxruntime.InferenceSession(path, providers=providers)
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        shape = inputs[0].shape
        if len(inputs) != 1 or len(shape) != 4 or not all(isinstance(side, int) for side in shape[2:]) or len(outputs) != 2:
            kind = f"inputs {[entry.shape for entry in inputs]}, outputs {[entry.shape for entry in outputs]}"
            raise UserError(f"{path}: not a SimCC pose model ({kind}); it takes one [N 3 h w] and gives [N K a w] and [N K a h]")
        self._input: str = inputs[0].name
        self.height, self.width = int(shape[2]), int(shape[3])

    def estimate(self, images: np.ndarray) -> np.ndarray:
        """Images u8 [N H W 3] to keypoints f32 [N K 3]: x and y in pixels of the image, and the confidence in 0..1."""
        # One at a time: many exported models have a batch of 1 written into them.
        return np.concatenate([self._estimate_one(image) for image in images])

    def _estimate_one(self, image: np.ndarray) -> np.ndarray:
        pixels, scale, left, top = self._letterboxed(image)
        across, down = self._session.run(None, {self._input: ((pixels - MEAN) / STD).transpose(2, 0, 1)[None]})
        x = across.argmax(2) * self.width / across.shape[2]
        y = down.argmax(2) * self.height / down.shape[2]
        # Sure of a point is who is sure of both coordinates.
        confidence = np.minimum(across.max(2), down.max(2)).clip(0, 1)
        return np.stack([(x - left + 0.5) / scale - 0.5, (y - top + 0.5) / scale - 0.5, confidence], 2).astype(np.float32)

    def _letterboxed(self, image: np.ndarray) -> tuple[np.ndarray, float, int, int]:
        """The image, whole and in its proportions, in the middle of the model's input, f32 [h w 3]; the factor, and the margins."""
        height, width = image.shape[:2]
        scale = min(self.height / height, self.width / width)
        size = max(1, round(width * scale)), max(1, round(height * scale))
        left, top = (self.width - size[0]) // 2, (self.height - size[1]) // 2
        pixels = np.broadcast_to(MEAN, (self.height, self.width, 3)).copy()
        shown = Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)
        pixels[top : top + size[1], left : left + size[0]] = np.asarray(shown)
        return pixels, scale, left, top
