"""The config of a reward model's training (`omr-ray reward train`; OMR section 3.2)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from omr_ray.config.reading import Config
from omr_ray.config.trainer import TrainRun


class QwenVl(Config):
    """The network that becomes the reward model: Qwen2-VL, Qwen2.5-VL or Qwen3-VL."""

    path: str = Field("atelier", description="directory or hub id; atelier is the embedded one")
    scratch: bool = Field(False, description="its architecture with fresh weights")
    dtype: Literal["float32", "bfloat16"] = "float32"
    quantization: Literal["nf4"] | None = Field(None, description="bitsandbytes 4 bit; the adapter stays in float32 (QLoRA)")
    head: Literal["mean", "linear"] = Field("mean", description="mean of the last hidden state (OMR), or a learned scalar head")


class QLora(Config):
    """LoRA on the attention and feed-forward projections (OMR section 4.1: rank 64, alpha 16)."""

    rank: PositiveInt = 64
    alpha: PositiveInt = 16


class PreferenceData(Config):
    """Pairs of a built table (`omr-ray data build`)."""

    path: str
    purpose: Literal["reward", "diffusion", "dialogue", "*"] = Field("reward", description="* takes all")
    limit: PositiveInt | None = Field(None, description="at most so many pairs of the train split")


class RewardRun(TrainRun):
    """One training of a reward model."""

    model: QwenVl = QwenVl()
    lora: QLora | None = Field(QLora(), description="null trains all weights")
    data: PreferenceData
    reference: bool = Field(True, description="the margin is taken over the frozen model's (DPO); false: the margin alone")
    beta: PositiveFloat = 1.0

    @model_validator(mode="after")
    def what_is_frozen_fits(self) -> RewardRun:
        if self.lora is None and self.model.quantization is not None:
            raise ValueError("model.quantization needs lora: 4-bit weights cannot be trained; set lora, or quantization to null")
        if self.lora is None and self.reference:
            raise ValueError("reference needs lora: the frozen model is the one without the adapter; set reference=false")
        if self.lora is not None and self.model.scratch:
            raise ValueError("model.scratch trains all weights; set lora to null")
        return self
