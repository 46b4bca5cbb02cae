"""Models under comparison as painters: each makes one round of images from prompts, whoever paints them."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import httpx2
import numpy as np
import yaml
from PIL import Image
from pydantic import BaseModel, Field, ValidationError

from omr_ray.config.comparison import Adapted, Augmented, Base, ImageEndpoint, ImageFolder, Model, Scheduled
from omr_ray.config.run import AtelierModel, RunConfig
from omr_ray.data.store import Folder
from omr_ray.diffusion.adapters import Adapter, load_adapter
from omr_ray.evaluation.generating import Generate
from omr_ray.evaluation.stored import MadeImage, png
from omr_ray.types import Dialogue, Update, UserError
from omr_ray.vlm.http import Refused, Unanswered, post_json
from omr_ray.workers.pool import RolloutPool
from omr_ray.workers.rewriting import RewritingPainter

ANSWER_BYTES = 64 * 2**20


class Painter(Protocol):
    """A model that is ready to paint."""

    sha256: str  # of what makes the images: another one does not go on from what is stored

    @property
    def weights(self) -> str:
        """Which ones, in words."""

    @property
    def generate(self) -> Generate: ...


class PolicyPainter:
    """The run's diffusion model, with or without an adapter, on the rollout workers."""

    def __init__(self, pool: RolloutPool, run: RunConfig, adapter: str | None) -> None:
        base = "atelier" if isinstance(run.model, AtelierModel) else run.model.path
        loaded = None if adapter is None else load_adapter(adapter)
        self.weights = f"{base}, {'no adapter' if adapter is None else f'adapter {adapter}'}"
        self.sha256 = "" if loaded is None else _digest(loaded)
        self._pool, self._update = pool, None
        if loaded is not None:
            weights = loaded.weights_for(run.lora.rank, run.lora.alpha)
            self._update = Update(policy_version=1, weights=weights, metrics={})

    @property
    def generate(self) -> Generate:
        self._pool.load(self._update)
        return self._pool.generate


class EndpointPainter:
    """A server of the OpenAI Images API. What later rounds edit is the image itself; strength means nothing to it."""

    def __init__(self, config: ImageEndpoint) -> None:
        self.weights, self.sha256, self._config = f"{config.model} at {config.url}", "", config
        self._key = os.environ.get(config.api_key_env, "").strip() if config.api_key_env else ""
        if config.api_key_env and not self._key:
            raise UserError(f"model {config.name!r}: the environment variable {config.api_key_env} is empty; put the server's key into it")

    @property
    def generate(self) -> Generate:
        return self._generate

    def _generate(
        self, prompts: Sequence[str], *, seeds: Sequence[int], from_latents: Any = None, strength: float = 1.0
    ) -> tuple[np.ndarray, Any]:
        edited = from_latents if self._config.edits else None
        try:
            images = asyncio.run(self._ask_all(prompts, seeds, edited))
        except (Unanswered, Refused) as error:
            said = str(error).replace(self._key, "***") if self._key else str(error)
            raise UserError(
                f"model {self._config.name!r}, {self._config.url}: {said}; mend the config or the server, and start again"
            ) from None
        made = np.stack(images)
        return made, made

    async def _ask_all(self, prompts: Sequence[str], seeds: Sequence[int], edited: Any) -> list[np.ndarray]:
        limit = asyncio.Semaphore(self._config.concurrency)
        async with httpx2.AsyncClient() as client:
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [
                        group.create_task(self._ask(client, limit, prompt, seeds[n], None if edited is None else edited[n]))
                        for n, prompt in enumerate(prompts)
                    ]
            except ExceptionGroup as failed:
                raise failed.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _ask(self, client: httpx2.AsyncClient, limit: asyncio.Semaphore, prompt: str, seed: int, image: Any) -> np.ndarray:
        config, headers = self._config, {"authorization": f"Bearer {self._key}"} if self._key else {}
        fields = {"model": config.model, "prompt": prompt, "n": 1, "size": config.size}
        if image is None:
            url, body = f"{config.url.rstrip('/')}/images/generations", json.dumps(fields).encode()
        else:
            url = f"{config.url.rstrip('/')}/images/edits"
            form = {name: str(value) for name, value in fields.items()}
            request = httpx2.Request("POST", url, data=form, files={"image": ("image.png", png(np.asarray(image)), "image/png")})
            body, headers = request.read(), headers | {"content-type": request.headers["content-type"]}
        async with limit:
            content = await post_json(
                client, url, body, headers=headers, timeout_s=config.timeout_s, attempts=config.attempts, answer_bytes=ANSWER_BYTES
            )
        return _image_in(content)


class _Datum(BaseModel):
    b64_json: str


class _Answer(BaseModel):
    data: list[_Datum] = Field(min_length=1)


def _image_in(content: bytes) -> np.ndarray:
    """The first image u8 [H W 3] of an answer. Raises Unanswered for another form."""
    try:
        encoded = _Answer.model_validate_json(content).data[0].b64_json
        with Image.open(io.BytesIO(base64.b64decode(encoded, validate=True))) as opened:
            return np.asarray(opened.convert("RGB"))
    except (ValidationError, OSError, ValueError):
        raise Unanswered("the answer is no data[0].b64_json with an image") from None


def folder_images(config: ImageFolder, dialogues: Sequence[Dialogue], siblings: int) -> list[MadeImage]:
    """The images of a folder for these dialogues; those that are missing are left out."""
    root, made = Path(config.path), []
    for dialogue in dialogues:
        for round_ in dialogue.rounds:
            for sibling in range(siblings):
                file = root / dialogue.id / f"{round_.index}_{sibling}.png"
                if file.is_file():
                    with Image.open(file) as opened:
                        image = png(np.asarray(opened.convert("RGB")))
                    made.append(
                        MadeImage(
                            dialogue=dialogue.id,
                            round=round_.index,
                            sibling=sibling,
                            seed=0,
                            image=image,
                            seconds=0.0,
                            utterance=round_.utterance,
                            prompt=round_.prompt,
                            intent=dialogue.intent,
                        )
                    )
    return made


def painter_for(model: Model, pool: RolloutPool, run: RunConfig, folder: Folder) -> Painter | None:
    """None for a folder, whose images are there already. Raises UserError for what is not there or does not fit."""
    match model:
        case Base():
            return PolicyPainter(pool, run, None)
        case Adapted(path=path):
            return PolicyPainter(pool, run, path)
        case Scheduled():
            return PolicyPainter(pool, run, str(_constant(model)))
        case Augmented(adapter=adapter):
            return RewritingPainter(PolicyPainter(pool, run, adapter), model, folder)
        case ImageEndpoint():
            return EndpointPainter(model)
        case ImageFolder(path=path):
            if not Path(path).is_dir():
                raise UserError(f"model {model.name!r}: {path} is no directory; put images there as DIALOGUE/ROUND_SIBLING.png")
            return None


def _constant(model: Scheduled) -> Path:
    """The adapter of a run whose schedule was constant. Raises UserError for another run."""
    run = Path(model.run)
    remedy = "make one with `omr-ray train CONFIG rewards.schedule='{type: constant}'`"
    try:
        schedule = yaml.safe_load((run / "config.yaml").read_text())["rewards"]["schedule"]["type"]
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        raise UserError(f"model {model.name!r}: {run} is no run directory; {remedy}") from None
    if schedule != "constant":
        raise UserError(f"model {model.name!r}: the schedule of {run} is {schedule}, RC25's is constant; {remedy}")
    return run / "adapter"


def _digest(adapter: Adapter) -> str:
    digest = hashlib.sha256()
    for name in sorted(adapter.weights):
        digest.update(name.encode() + np.ascontiguousarray(adapter.weights[name]).tobytes())
    return digest.hexdigest()
