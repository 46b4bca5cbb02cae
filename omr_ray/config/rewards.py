"""The config of the rewards (OMR section 3.2): their schedule, the preference model, and those that users bring."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, field_validator, model_validator

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


class ExponentialSchedule(Config):
    """lambda_div = exp(-alpha t), lambda_cons = 1 - exp(-beta t), lambda_MI = 0.5 exp(-gamma t) (OMR eq. 9)."""

    type: Literal["exponential"] = "exponential"
    alpha: NonNegativeFloat = 0.15
    beta: NonNegativeFloat = 0.1
    gamma: NonNegativeFloat = 0.075


class ConstantSchedule(Config):
    """The same weights in every round; 0.25 each is the paper's Ours_RC25."""

    type: Literal["constant"] = "constant"
    diversity: float = 0.25
    consistency: float = 0.25
    mutual_information: float = 0.25


class LinearSchedule(Config):
    """Weights that go in a straight line from `first` (round 1) to `last` (round `rounds`): diversity, consistency, MI."""

    type: Literal["linear"] = "linear"
    first: tuple[float, float, float] = (0.86, 0.1, 0.46)
    last: tuple[float, float, float] = (0.3, 0.55, 0.27)
    rounds: PositiveInt = 8


Schedule = Annotated[ExponentialSchedule | ConstantSchedule | LinearSchedule, Field(discriminator="type")]


class PreferenceModel(Config):
    """The Qwen-VL reward model behind the mutual-information reward (OMR eq. 8). `path: atelier` is the embedded one."""

    path: str = "atelier"
    engine: Literal["transformers", "vllm"] = Field(
        "transformers", description="what reward workers score with; a learner that follows the reward's gradient takes transformers"
    )
    dtype: Literal["float32", "bfloat16"] = "float32"
    batch_size: PositiveInt = 64


class PreferenceScore(Config):
    """A sample's own preference score stands for I(X; Y), as in the paper."""

    type: Literal["score"] = "score"


class InfoNce(Config):
    """A lower bound on I(X; Y) (OMR eq. 8): how well a sample's prompt tells its image from those of other dialogues.

    The D samples of one round and sibling index over a step's dialogues compete. This takes D times as many preference
    scores as `score`. A round that one dialogue alone has gives 0. `reward_gradient`, refl and the evaluation keep the
    plain score.
    """

    type: Literal["infonce"] = "infonce"


MutualInformation = Annotated[PreferenceScore | InfoNce, Field(discriminator="type")]


class ImmediateCredit(Config):
    """A sample is credited with the reward of its own round."""

    type: Literal["immediate"] = "immediate"


class ReturnToGoCredit(Config):
    """A sample is also credited with later rounds, discounted: they start from its latent."""

    type: Literal["return_to_go"] = "return_to_go"
    discount: float = Field(0.9, ge=0, le=1)


Credit = Annotated[ImmediateCredit | ReturnToGoCredit, Field(discriminator="type")]


class Rewards(Config):
    """The three rewards of OMR section 3.2, those that users add, and how they become one number."""

    schedule: Schedule = ExponentialSchedule()
    standardize: bool = Field(True, description="(x - mean) / std of each term, both running, before weighting; off is the raw sum")
    diversity_scope: Literal["siblings", "dialogue"] = "siblings"
    credit: Credit = ImmediateCredit()
    preference: PreferenceModel = PreferenceModel()
    mutual_information: MutualInformation = PreferenceScore()
    terms: tuple[Term, ...] = ()

    @model_validator(mode="after")
    def every_term_has_its_own_name(self) -> Rewards:
        names = [term.name for term in self.terms]
        if len(set(names)) < len(names):
            raise ValueError(f"terms need names of their own, got {', '.join(names)}")
        return self
