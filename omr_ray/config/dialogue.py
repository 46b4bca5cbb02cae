"""The config of a dialogue (TDRI section 3.2): the language model, how it sums up, and when it asks."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from omr_ray.config.reading import Config
from omr_ray.config.rewards import LONGEST_PAUSE_S


class TransformersLanguage(Config):
    """A Qwen2-VL, Qwen2.5-VL or Qwen3-VL on this machine."""

    type: Literal["transformers"] = "transformers"
    path: str = Field("atelier", description="directory or hub id; atelier is the embedded one")
    dtype: Literal["float32", "bfloat16"] = "float32"
    batch_size: PositiveInt = Field(8, description="conversations that are answered together; an image is described in seven")


class OpenAiLanguage(Config):
    """Any server of the OpenAI chat API. Images are sent inside the request, as PNG.

    Connection faults, a late answer, status 429 and 5xx are tried again, later and later, not before Retry-After.
    """

    type: Literal["openai"] = "openai"
    url: str = Field(pattern=r"^https?://[^\s/?#]+(/[^\s?#]*)?$", description="up to and with /v1")
    model: str = Field(min_length=1)
    api_key_env: str | None = Field(
        None, pattern=r"^[A-Za-z_]\w*$", description="name of the environment variable that holds the key; None sends no key"
    )
    timeout_s: PositiveFloat = Field(60.0, description="limit of one request, answer included")
    attempts: PositiveInt = 4
    concurrency: PositiveInt = Field(8, description="requests at a time")

    @property
    def longest_s(self) -> float:
        """Seconds that all attempts of one request and the pauses between them may take."""
        return self.attempts * self.timeout_s + (self.attempts - 1) * LONGEST_PAUSE_S


Language = Annotated[TransformersLanguage | OpenAiLanguage, Field(discriminator="type")]


class DialogueToPrompt(Config):
    """How history and latest utterance become a prompt (TDRI eq. 2)."""

    w_h: NonNegativeFloat = Field(0.5, description="weight of the history")
    w_u: NonNegativeFloat = Field(0.5, description="weight of the latest utterance")
    history_rounds: PositiveInt = Field(8, description="the last ones that the language model reads; each carries its whole prompt")

    @model_validator(mode="after")
    def something_counts(self) -> DialogueToPrompt:
        if self.w_h + self.w_u == 0:
            raise ValueError("w_h and w_u cannot both be 0: nothing would be left to sum up")
        return self


class AspectWeights(Config):
    """w_i of TDRI eq. 5; the paper gives no values."""

    content: NonNegativeFloat = 1 / 7
    style: NonNegativeFloat = 1 / 7
    background: NonNegativeFloat = 1 / 7
    size: NonNegativeFloat = 1 / 7
    color: NonNegativeFloat = 1 / 7
    perspective: NonNegativeFloat = 1 / 7
    others: NonNegativeFloat = 1 / 7

    @model_validator(mode="after")
    def sum_is_one(self) -> AspectWeights:
        total = math.fsum(self.by_aspect().values())
        if not math.isclose(total, 1, abs_tol=1e-6):
            raise ValueError(f"the seven weights must sum to 1, they sum to {total:g}")
        return self

    def by_aspect(self) -> dict[str, float]:
        return self.model_dump()


class FeedbackReflection(Config):
    """When an image is asked about (TDRI eq. 5, 6)."""

    weights: AspectWeights = AspectWeights()
    threshold: float = Field(0.25, ge=0, le=2, description="a question is asked above it; A_t lies in 0..2, so 2 never asks")
    unnamed_similarity: float = Field(
        0.5, ge=-1, le=1, description="what an aspect counts for that the prompt does not name: our reading, the paper is silent"
    )


class AdaptiveOptimization(Config):
    """How votes become an adapter (TDRI section 3.2.3, eq. 7)."""

    votes: PositiveInt = Field(40, description="new ones that start an update")
    passes: PositiveInt = Field(3, description="over the votes of an update")
    beta: PositiveFloat = Field(1000.0, description="of eq. 7, where log-probabilities are means over a latent's dimensions")
    learning_rate: PositiveFloat = 3e-4
    batch: PositiveInt = Field(32, description="stored steps of an optimizer step")
    held_out: float = Field(0.2, gt=0, lt=1, description="share of the votes that are not learned from, but judge what was")


class DialogueConfig(Config):
    """The whole of TDRI's interactive side, without the network that paints."""

    language: Language = TransformersLanguage()
    d2p: DialogueToPrompt = DialogueToPrompt()
    reflection: FeedbackReflection = FeedbackReflection()
