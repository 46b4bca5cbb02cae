"""The config of a data build (`omr-ray data build`)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator

from omr_ray.config.reading import Config

Kind = Literal[
    "imagereward",
    "fashioniq",
    "deepfashion_inshop",
    "deepfashion_multimodal",
    "pickapic",
    "hpdv2",
    "hpdv3",
    "photographs",
    "json_dialogues",
    "json_preferences",
]


class FileSource(Config):
    """Data as its makers hand it out, below a directory, s3://bucket/path or gs://bucket/path; see omr_ray/data/importers."""

    kind: Kind
    path: str
    license: str | None = Field(None, description="SPDX identifier where the importer's own does not hold")


class AtelierSource(Config):
    """Dialogues and preference pairs of the embedded world, drawn while the data is built."""

    kind: Literal["atelier"] = "atelier"
    dialogues: NonNegativeInt = 0
    pairs: NonNegativeInt = 0
    rounds: PositiveInt = 4
    seed: NonNegativeInt = 0


class Filters(Config):
    """What keeps a row out (OMR section 4.2: too many style words, unclear images)."""

    max_prompt: PositiveInt = Field(2000, description="characters")
    max_style_words: NonNegativeInt = 8
    min_side: PositiveInt = Field(64, description="pixels")
    max_pixels: PositiveInt = Field(50_000_000, description="width times height, judged before any pixel is decoded")
    min_sharpness: NonNegativeFloat = Field(0.0, description="standard deviation of the Laplacian, gray levels of 255")
    missing_images: Literal["reject", "keep"] = Field("reject", description="keep: the row stays, as text, without the image")


class SplitShares(Config):
    """By group (OMR section 4.2): 80% train; 38% for the reward model, 17% for diffusion training, the rest for dialogues."""

    train: float = Field(0.80, gt=0, le=1)
    reward: float = Field(0.38, ge=0, le=1)
    diffusion: float = Field(0.17, ge=0, le=1)

    @model_validator(mode="after")
    def shares_fit(self) -> SplitShares:
        if self.reward + self.diffusion > 1:
            raise ValueError(f"reward + diffusion must be at most 1, they are {self.reward + self.diffusion}")
        return self


class DataConfig(Config):
    """One build: sources to two tables of Parquet files, and a table of what was rejected."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    sources: tuple[Annotated[FileSource | AtelierSource, Field(discriminator="kind")], ...] = Field(min_length=1)
    filters: Filters = Filters()
    split: SplitShares = SplitShares()
    records_per_part: PositiveInt = Field(2000, description="about how many records one task reads, and one file holds")
