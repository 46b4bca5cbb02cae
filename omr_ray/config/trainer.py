"""What the jobs under Ray Train share: how long, at what rate, in what batches."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from omr_ray.config.reading import Config
from omr_ray.config.run import Actor, Checkpoints, Optimization, Tracking


class Trainer(Optimization):
    """Passes over the data with a cosine schedule (OMR section 4.1: one, batch 128)."""

    # Stage 3 leaves no rank with whole weights, and these jobs write whole models.
    zero_stage: Literal[0, 1, 2] = 0
    batch: PositiveInt = Field(128, description="rows of one update, over all ranks")
    epochs: PositiveInt = 1
    warmup_share: float = Field(0.03, ge=0, lt=1, description="of all updates; then the rate falls as a cosine, to nothing")

    @model_validator(mode="after")
    def batch_divides(self) -> Trainer:
        if self.batch % self.ranks:
            raise ValueError(f"trainer.batch ({self.batch}) must divide by trainer.ranks ({self.ranks})")
        return self


class TrainRun(Config):
    """One job under Ray Train."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    seed: NonNegativeInt = 0
    trainer: Trainer = Trainer()
    worker: Actor = Actor()
    max_failures: NonNegativeInt = Field(3, description="dead workers that are survived")
    timeout_s: PositiveFloat = Field(1800.0, description="limit of one collective, and of a start")
    checkpoint: Checkpoints = Checkpoints(every=50)
    tracking: Tracking = Tracking()
