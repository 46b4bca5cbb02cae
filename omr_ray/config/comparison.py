"""The config of `omr-ray evaluate --protocol`: which models are compared, with which metrics, on how much."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt, field_validator, model_validator

from omr_ray.config.dialogue import Language, TransformersLanguage
from omr_ray.config.reading import Config
from omr_ray.config.rewards import LONGEST_PAUSE_S
from omr_ray.config.run import RunConfig

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 .-]*$", max_length=40)]
Names = Annotated[tuple[Name, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value), Field(min_length=1)]

# -- models under comparison -------------------------------------------------------------------------------------------


class Compared(Config):
    name: Name
    published: str | None = Field(None, description="the row of the papers' tables that stands beside it, for example Dalle-3")


class Base(Compared):
    """The run's diffusion model without any adapter."""

    type: Literal["base"] = "base"
    name: Name = "Base"
    published: str | None = "SD V-1.4"


class Adapted(Compared):
    """The diffusion model with an adapter, in any of the three exported forms."""

    type: Literal["adapter"] = "adapter"
    path: str
    published: str | None = "Ours"


class Scheduled(Compared):
    """The adapter of a finished run whose rewards had the constant schedule: the paper's Ours_RC25."""

    type: Literal["rc25"] = "rc25"
    name: Name = "RC25"
    run: str = Field(description="run directory of `omr-ray train CONFIG rewards.schedule={type: constant}`")
    published: str | None = "Ours_RC25"


class Augmented(Compared):
    """A language model rewrites every prompt before the diffusion model paints it (TDRI section 4.3.3)."""

    type: Literal["augmentation"] = "augmentation"
    language: Language
    adapter: str | None = Field(None, description="of the diffusion model; None is the base")
    max_tokens: PositiveInt = 96


class ImageEndpoint(Compared):
    """Any server of the OpenAI Images API: round 1 by /images/generations, later ones by /images/edits where `edits` is on.

    Without `edits` every round is made from its prompt alone.
    """

    type: Literal["endpoint"] = "endpoint"
    url: str = Field(pattern=r"^https?://[^\s/?#]+(/[^\s?#]*)?$", description="up to and with /v1")
    model: str = Field(min_length=1)
    api_key_env: str | None = Field(None, pattern=r"^[A-Za-z_]\w*$")
    edits: bool = False
    size: str = Field("1024x1024", pattern=r"^\d+x\d+$")
    timeout_s: PositiveFloat = 120.0
    attempts: PositiveInt = 4
    concurrency: PositiveInt = 4

    @property
    def longest_s(self) -> float:
        """Seconds that all attempts of one request and the pauses between them may take."""
        return self.attempts * self.timeout_s + (self.attempts - 1) * LONGEST_PAUSE_S


class ImageFolder(Compared):
    """Images made elsewhere: PATH/DIALOGUE/ROUND_SIBLING.png, rounds from 1, siblings from 0; one that is missing is a missing value."""

    type: Literal["folder"] = "folder"
    path: str


Model = Annotated[Base | Adapted | Scheduled | Augmented | ImageEndpoint | ImageFolder, Field(discriminator="type")]

# -- metrics -----------------------------------------------------------------------------------------------------------


class Clip(Config):
    """Cosine of CLIP's embeddings, of text and image (times 100: CLIPScore) or of two images."""

    type: Literal["clip"] = "clip"
    path: str = Field("atelier", description="directory in the transformers format; atelier is the embedded one")


class Blip(Config):
    """Cosine of BLIP's retrieval embeddings (BlipForImageTextRetrieval, arXiv:2201.12086)."""

    type: Literal["blip"] = "blip"
    path: str | None = Field(None, description="directory in the transformers format; there is no embedded one")


class Lpips(Config):
    """LPIPS of consecutive rounds (arXiv:1801.03924), by torchmetrics."""

    type: Literal["lpips"] = "lpips"
    path: str | None = Field(None, description="safetensors file with the backbone, named as in torchvision (features.0.weight, ...)")
    network: Literal["alex", "vgg", "squeeze"] = "alex"


class Aesthetic(Config):
    """A linear or small head on CLIP's image embedding, as LAION's aesthetic predictors are."""

    type: Literal["aesthetic"] = "aesthetic"
    path: str | None = Field(None, description="safetensors file of the head: layers.N.weight and layers.N.bias, or weight and bias")
    clip: str | None = Field(None, description="directory of the CLIP that the head was trained on")


Metric = Annotated[Clip | Blip | Lpips | Aesthetic, Field(discriminator="type")]

# -- the whole ---------------------------------------------------------------------------------------------------------


class Selection(Config):
    """Top 3 of 9, 25 and 64 images (OMR fig. 6), of the first model."""

    prompts: PositiveInt = 16
    images: int = Field(64, ge=64, description="for each prompt")


class Excite(Config):
    """Attend-and-Excite at several thresholds (TDRI table 6), on the first model of the list that is sampled here."""

    thresholds: tuple[Annotated[float, Field(gt=0, le=1)], ...] = (0.80, 0.75, 0.73, 0.70, 0.68, 0.66)
    prompts: PositiveInt = 48


class ComparisonConfig(Config):
    """What is compared, and on what: the held-out dialogues of `run`, with its sampler and its workers."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    run: str = Field(description="config of a training run, see configs/")
    overrides: tuple[str, ...] = Field((), description="of that config, as on the command line; dialogues.rounds=8 for OMR fig. 7")
    models: tuple[Model, ...] = (Base(),)
    metrics: tuple[Metric, ...] = (Clip(), Blip(), Lpips(), Aesthetic())
    language: Language = Field(TransformersLanguage(batch_size=64), description="of the dialogue engine, which OMR table 2 talks to")
    selection: Selection = Selection()
    excite: Excite = Excite()
    ablations: dict[str, Names] = Field({}, description="OMR fig. 8: what was left out -> one model above, or several: their mean")
    ablation_sweep: str | None = Field(
        None, description="directory of `omr-ray sweep` with variants: the adapter of each finished trial is a model of OMR fig. 8"
    )
    training_sizes: dict[PositiveInt, Names] = Field({}, description="OMR fig. 9: number of training dialogues -> models")
    personal: dict[Literal["general", "per user"], Names] = Field({}, description="TDRI table 5: the D3PO adapters, per user one each")
    users: tuple[Name, ...] = Field((), description="TDRI fig. 4, 5: one adapter a user")
    language_sizes: dict[str, Names] = Field({}, description='TDRI table 7: "7B" -> an augmentation by a model of that size')
    votes: str | None = Field(None, description="JSON lines of judged pairs, see omr_ray/evaluation/votes.py")
    annotators: PositiveInt = Field(6, description="that blind pairs are assigned to")
    voted_dialogues: PositiveInt = Field(24, description="whose last rounds are put up as pairs")
    chunk: PositiveInt = Field(16, description="dialogues in one part: what is made again after a cut")
    seed: NonNegativeInt = 0

    @field_validator("models")
    @classmethod
    def names_differ(cls, models: tuple[Model, ...]) -> tuple[Model, ...]:
        names = [model.name for model in models]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"models need names of their own, got {', '.join(names) or 'none'}")
        return models

    @field_validator("metrics")
    @classmethod
    def metrics_differ(cls, metrics: tuple[Metric, ...]) -> tuple[Metric, ...]:
        kinds = [metric.type for metric in metrics]
        if len(set(kinds)) < len(kinds):
            raise ValueError(f"a metric stands twice in {', '.join(kinds)}")
        return metrics

    @model_validator(mode="after")
    def roles_name_models(self) -> ComparisonConfig:
        known = {model.name for model in self.models}
        for key in ("ablations", "training_sizes", "personal", "language_sizes"):
            _refuse_unknown(key, tuple(name for names in getattr(self, key).values() for name in names), known)
        _refuse_unknown("users", self.users, known)
        return self

    def base(self) -> RunConfig:
        """The run's config. What it trains on plays no part: only model, sampler, dialogues, preference model and workers do."""
        run = RunConfig.load(self.run, self.overrides)
        # Terms that users add score no protocol, so what scores them need not be there.
        return run.model_copy(update={"rewards": run.rewards.model_copy(update={"terms": ()})})


def _refuse_unknown(key: str, names: Sequence[str], known: set[str]) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"{key}: {name!r} is no model of the list ({', '.join(sorted(known))}); add it to models")
