"""The config of the service (`omr-ray serve`)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from omr_ray.config.dialogue import AdaptiveOptimization, DialogueConfig
from omr_ray.config.generation import AttendAndExcite, Pose
from omr_ray.config.reading import Config
from omr_ray.config.run import Actor, Actors, AtelierModel, Lora, Model, Sampler

LOOPBACK = ("127.0.0.1", "::1", "localhost")
# Keys that may name a directory or file of this machine, or something of a hub, or of the embedded world.
MAYBE_PATHS = ("model.path", "model.controlnet", "lora.start", "clip", "dialogue.language.path", "pose.estimator.path")


class Painting(Config):
    """How an image of a round is made."""

    steps: PositiveInt = 5
    eta: PositiveFloat = 1.0
    guidance_scale: float = Field(1.0, ge=1.0)
    strength: float = Field(0.8, gt=0, le=1, description="of an edit, where a request does not say it")
    height: PositiveInt | None = None
    width: PositiveInt | None = None
    preview_every: NonNegativeInt = Field(1, description="fewest steps between two previews; 0 sends none")

    def sampler(self) -> Sampler:
        shared = self.model_dump(include={"steps", "eta", "guidance_scale", "height", "width"})
        return Sampler(**shared, strength=(self.strength,), siblings=1, window=(1, self.steps), batch_size=1)


class Http(Config):
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=1, le=65535)
    keys: Literal["required", "off"] | None = Field(None, description="None: required, except where only this machine can connect")
    operators: tuple[str, ...] = Field((), description="owners of keys who may take back what all use; without keys everybody is one")

    @property
    def keys_required(self) -> bool:
        return self.keys == "required" or self.keys is None and self.host not in LOOPBACK

    @model_validator(mode="after")
    def no_open_door(self) -> Http:
        if self.keys == "off" and self.host not in LOOPBACK:
            raise ValueError(f"keys: off would serve anybody who reaches {self.host}; leave it out, or listen on 127.0.0.1")
        return self


class Limits(Config):
    """For each owner of keys, and for each request."""

    requests_per_minute: PositiveInt = Field(60, description="of those that make something")
    concurrent_rounds: PositiveInt = 4
    images_wait_s: PositiveFloat = Field(600.0, description="that a request of the OpenAI API waits for its images")
    body_bytes: PositiveInt = Field(256 * 1024, description="of a request without an image")
    image_bytes: PositiveInt = 16 * 2**20
    image_pixels: PositiveInt = Field(4096 * 4096, description="that an uploaded image may have when it is opened")


class Replicas(Config):
    """The processes of each deployment."""

    web: Actors = Actors(num_cpus=0.25)
    rounds: Actors = Actors(num_cpus=0.25)
    diffusion: Actors = Actors()
    language: Actors = Actors(num_cpus=0.5)
    updates: Actor = Actor(num_cpus=0.5)  # for as long as one lasts
    rounds_at_once: PositiveInt = Field(8, description="of one `rounds` process")
    lease_s: float = Field(15.0, ge=3, description="after this time without a sign of life, another process goes on with a round")
    answer_timeout_s: PositiveFloat = Field(300.0, description="limit of one call of a model")


class ServeConfig(Config):
    """The dialogue as a service."""

    name: str = Field("omr", pattern=r"^[A-Za-z0-9._-]+$")
    model: Model = AtelierModel()
    lora: Lora = Lora()
    painting: Painting = Painting()
    pose: Pose | None = Field(None, description="let the first image's pose lead the later ones; needs model.controlnet")
    attention: AttendAndExcite | None = None
    dialogue: DialogueConfig = DialogueConfig()
    updates: AdaptiveOptimization | None = Field(None, description="let votes teach adapters; null only keeps the votes")
    clip: str = Field("atelier", description="compares texts (TDRI eq. 5): a directory or hub id; atelier is the embedded one")
    database: str = Field("sqlite:///runs/serve/service.db", description="or postgresql+psycopg://USER@HOST/NAME, for several machines")
    images: str = Field("runs/serve/images", description="directory, s3:// or gs://")
    adapters: str = Field("runs/serve/adapters", description="directory with shared/NAME and users/OWNER/NAME, as they are exported")
    adapters_kept: PositiveInt = Field(16, description="that a diffusion process keeps in memory")
    http: Http = Http()
    limits: Limits = Limits()
    replicas: Replicas = Replicas()

    @model_validator(mode="after")
    def updates_can_draw_again(self) -> ServeConfig:
        if self.updates is not None and (self.pose is not None or self.attention is not None):
            raise ValueError("updates draw images again from prompt and seed alone; leave out pose and attention, or updates")
        return self

    @model_validator(mode="after")
    def a_pose_needs_its_network(self) -> ServeConfig:
        if self.pose is not None and self.model.controlnet is None:
            raise ValueError("pose needs model.controlnet, which reads it; set that too, or leave pose out")
        return self

    def with_absolute_paths(self) -> ServeConfig:
        """Relative paths as they are meant in the working directory: each process of the service may have another one."""
        values = self.model_dump()
        values["database"] = re.sub(
            r"^(sqlite\b[^:]*:///)([^/:].*)", lambda found: found[1] + str(Path(found[2]).absolute()), self.database
        )
        values["images"] = self.images if "://" in self.images else str(Path(self.images).absolute())
        values["adapters"] = str(Path(self.adapters).absolute())
        for key in MAYBE_PATHS:
            *sections, name = key.split(".")
            section: Any = values
            for each in sections:
                section = (section or {}).get(each)
            value = (section or {}).get(name)
            if value is not None and Path(value).exists():
                section[name] = str(Path(value).absolute())
        return ServeConfig.model_validate(values)
