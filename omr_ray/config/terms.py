"""Rewards that users bring (`rewards.terms`): what makes the scores, and how much they count."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator

from omr_ray.config.reading import Config

TAKEN = ("diversity", "consistency", "mutual_information", "total", "missing")  # names of metrics below "reward/"
LONGEST_PAUSE_S = 30.0  # between two attempts of an HTTP request


class FunctionScorer(Config):
    """A Python function of yours, imported in every reward worker.

    def reward(images: np.ndarray, prompts: Sequence[str]) -> Sequence[float | None]

    images u8 [N H W 3] and N prompts; returns N numbers, None where there is no score. It may get any part of a step at
    a time, so a score must follow from its own image and prompt. If it raises, the scores of that call are missing.
    """

    type: Literal["function"] = "function"
    path: str = Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$", description="package.module:function")
    batch_size: PositiveInt = 64


class HttpScorer(Config):
    """A server of yours. It is sent JSON and answers with JSON, null where there is no score:

        POST url  {"images": [base64 of a PNG, ...], "prompts": ["a dress", ...]}  ->  {"scores": [0.5, null, ...]}

    Connection faults, a late answer, status 429 and 5xx are tried again, later and later, not before Retry-After; then
    the scores of the batch are missing. So they are at once if the answer has another form; a number that is not finite
    is one missing score. Any other status stops the run with the server's words.
    """

    type: Literal["http"] = "http"
    url: str = Field(pattern=r"^https?://\S+$")
    timeout_s: PositiveFloat = Field(30.0, description="limit of one request, answer included")
    attempts: PositiveInt = 4
    batch_size: PositiveInt = 64

    @property
    def longest_s(self) -> float:
        """Seconds that all attempts and the pauses between them may take."""
        return self.attempts * self.timeout_s + (self.attempts - 1) * LONGEST_PAUSE_S


class ImageRewardScorer(Config):
    """ImageReward (arXiv:2304.05977) from a local directory, as `jobs/convert_imagereward.py` writes it."""

    type: Literal["imagereward"] = "imagereward"
    path: str
    dtype: Literal["float32", "bfloat16"] = "float32"
    batch_size: PositiveInt = 64


Scorer = Annotated[FunctionScorer | HttpScorer | ImageRewardScorer, Field(discriminator="type")]


class Term(Config):
    """One more line of OMR eq. 9, with the same weight in every round; standardised as the other terms are."""

    name: str
    weight: float
    scorer: Scorer

    @field_validator("name")
    @classmethod
    def name_is_free(cls, name: str) -> str:
        if not name.isidentifier() or name in TAKEN:
            raise ValueError(f"must be letters, digits and _ and none of {', '.join(TAKEN)}")
        return name
