"""What leads a generation in a dialogue besides its prompt: the pose of the first image, and Attend-and-Excite (TDRI section 3)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from omr_ray.config.reading import Config


class AtelierPose(Config):
    """The embedded world's own garment keypoints."""

    kind: Literal["atelier"] = "atelier"


class OnnxPose(Config):
    """An ONNX model of the RTMPose kind (SimCC), from a file; needs `pip install omr-ray[pose]`."""

    kind: Literal["onnx"] = "onnx"
    path: str


PoseEstimator = Annotated[AtelierPose | OnnxPose, Field(discriminator="kind")]


class Pose(Config):
    """Keypoints to heat maps (TDRI section 3.1). The ControlNet that reads them is `model.controlnet`."""

    estimator: PoseEstimator = AtelierPose()
    sigma: PositiveFloat = Field(1 / 32, description="of a keypoint's heat map, as a share of the image's shorter side")
    min_confidence: float = Field(0.3, ge=0, le=1, description="a keypoint that is believed less leads nothing")


class AttendAndExcite(Config):
    """Gradient steps on early latents whose L_AE is above the threshold (TDRI eq. 8, table 6)."""

    threshold: float = Field(0.7, gt=0, le=1, description="of L_AE; the paper compares 0.66 to 0.80, 1 never acts")
    early_share: float = Field(0.5, gt=0, le=1, description="share of the schedule's steps, counted from the noisiest, that are looked at")
    iterations: PositiveInt = Field(1, description="most gradient steps before one denoising step")
    step_size: tuple[NonNegativeFloat, NonNegativeFloat] = Field(
        (20.0, 10.0), description="at the schedule's first step and at its last; a straight line in between"
    )
