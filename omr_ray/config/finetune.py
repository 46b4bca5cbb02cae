"""The config of supervised diffusion training (`omr-ray finetune`; OMR eq. 4, 5, 13, TDRI section 4.2)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from omr_ray.config.reading import Config
from omr_ray.config.run import AtelierModel, Lora, MultiRoundLoss, TrainedModel
from omr_ray.config.trainer import Trainer, TrainRun


class DialogueData(Config):
    """Dialogues of a built table (`omr-ray data build`). Every round with an image is a text-image pair."""

    path: str
    purpose: Literal["reward", "diffusion", "dialogue", "*"] = Field("diffusion", description="* takes all")
    limit: PositiveInt | None = Field(None, description="at most so many dialogues of the train split")
    cache: str | None = Field(None, description="directory or bucket of encoded latents and texts (default: in the run directory)")


class Buckets(Config):
    """Sizes that images are brought to: about one area, several aspect ratios (SDXL, arXiv:2307.01952, section 2.3)."""

    side: PositiveInt | None = Field(None, description="of the square bucket, pixels; None is the model's own size")
    multiple: PositiveInt = Field(64, description="every side of a bucket divides by it")
    max_ratio: float = Field(2.0, ge=1, description="longer side over shorter; 1 is the square alone")


class TextImageLoss(Config):
    """The noise, v or x0 regression on single rounds (arXiv:2006.11239, eq. 14)."""

    weight: NonNegativeFloat = 1.0
    min_snr_gamma: PositiveFloat | None = Field(
        5.0, description="min-SNR weights (arXiv:2303.09556, section 3.4); None: all timesteps alike"
    )
    drop_prompt: float = Field(0.1, ge=0, le=1, description="share of rows with the empty prompt: what guidance needs")


class ReferenceLoss(Config):
    """What single rounds are held to: the frozen model's own answers. The KL to the reference, but for a factor of the timestep."""

    weight: NonNegativeFloat = 0.0


class Rounds(MultiRoundLoss):
    """L_multi on consecutive rounds; a dialogue of one round has none."""

    steps: PositiveInt = Field(50, description="denoising steps of the sampler that it prepares: how far one step of eq. 13 goes")


class SupervisedTrainer(Trainer):
    ema_decay: float = Field(0.999, ge=0, lt=1, description="of what is trained; 0 turns it off")


class FinetuneRun(TrainRun):
    """One supervised training of a diffusion model."""

    model: TrainedModel = AtelierModel()
    lora: Lora | None = Field(Lora(), description="null trains the whole UNet, in float32")
    data: DialogueData
    buckets: Buckets = Buckets()
    text_image: TextImageLoss = TextImageLoss()
    reference: ReferenceLoss = ReferenceLoss()
    multi_round: Rounds = Rounds()
    trainer: SupervisedTrainer = SupervisedTrainer()
    held_out: PositiveInt = Field(64, description="dialogues of the test split whose loss is measured at every checkpoint")

    @model_validator(mode="after")
    def something_is_learned(self) -> FinetuneRun:
        if self.text_image.weight == 0 and self.multi_round.weight == 0:
            raise ValueError("text_image.weight and multi_round.weight are both 0: nothing would be learned; raise one")
        return self

    @model_validator(mode="after")
    def a_reference_is_there(self) -> FinetuneRun:
        if self.reference.weight > 0 and self.lora is None:
            raise ValueError(
                f"reference.weight is {self.reference.weight:g} and lora is null: the frozen model is not there any more; set it to 0"
            )
        return self
