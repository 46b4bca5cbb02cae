"""What metrics say of images: one class a metric, each loaded from local weights, none standing in for another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F

from omr_ray.atelier import WEIGHTS, shipped
from omr_ray.atelier.oracle import SIDE, Oracle
from omr_ray.atelier.world import parse
from omr_ray.config import comparison
from omr_ray.config.run import AtelierModel, RunConfig
from omr_ray.dialogue.simulated_user import wrong_aspects
from omr_ray.evaluation.asked import Asked
from omr_ray.evaluation.stored import Value, at_size
from omr_ray.loading import device_for, policy_from, reward_engine_from
from omr_ray.types import UserError


class Metric(Protocol):
    def measure(self, asked: Sequence[Asked]) -> list[Value]: ...


def metric_from(name: str, config: comparison.ComparisonConfig, run: RunConfig) -> Metric:
    """A loaded metric, in a reward worker. Raises UserError where its weights are not there."""
    actors = run.workers.reward
    device = device_for(actors, "reward")
    if name == "preference":
        return Preference(reward_engine_from(run.rewards.preference, device, actors.threads, actors.num_gpus))
    if name == "oracle":
        if not isinstance(run.model, AtelierModel):
            raise UserError("only images of the embedded world can be read exactly, model.kind is not atelier")
        return OracleReading(Oracle.from_pretrained(WEIGHTS / "oracle"))
    if name == "features":
        return FeatureDistance(policy_from(run.model, None, device, actors.threads))
    settings = next(metric for metric in config.metrics if metric.type == name)
    match settings:
        case comparison.Clip():
            from omr_ray.vlm.clip import Clip

            return Embedding(Clip.from_pretrained(shipped("clip") if settings.path == "atelier" else settings.path, device), keep=True)
        case comparison.Blip():
            from omr_ray.vlm.blip import Blip

            return Embedding(Blip.from_pretrained(_given(settings.path, "blip.path"), device), keep=False)
        case comparison.Lpips():
            from omr_ray.evaluation.perceptual import Lpips

            return PerceptualDistance(Lpips.load(settings.path, settings.network, device))
        case comparison.Aesthetic():
            from omr_ray.vlm.aesthetic import Aesthetic

            return AestheticScore(Aesthetic.load(_given(settings.path, "aesthetic.path"), _given(settings.clip, "aesthetic.clip"), device))


@dataclass(frozen=True)
class Preference:
    """The reward model's score (OMR eq. 8)."""

    engine: Any

    def measure(self, asked: Sequence[Asked]) -> list[Value]:
        scores = self.engine.score([one.image for one in asked], [one.prompt for one in asked]).tolist()
        return [one.value("prompt", score) for one, score in zip(asked, scores, strict=True)]


@dataclass(frozen=True)
class OracleReading:
    """Share of the aspects named by prompt and intent that the image shows, and whether it shows the whole intent."""

    oracle: Oracle

    def measure(self, asked: Sequence[Asked]) -> list[Value]:
        values = []
        for one, seen in zip(asked, self.oracle.read(np.stack([at_size(one.image, (SIDE, SIDE)) for one in asked])), strict=True):
            for measure, text in (("prompt", one.prompt), ("intent", one.intent)):
                wanted = parse(text)
                if wanted:
                    values.append(one.value(measure, 1 - len(wrong_aspects(wanted, seen)) / len(wanted)))
            values.append(one.value("satisfied", float(not wrong_aspects(parse(one.intent), seen))))
        return values


@dataclass(frozen=True)
class Embedding:
    """Cosines of CLIP's or BLIP's embeddings: prompt, intent and target against the image."""

    network: Any
    keep: bool  # whether the embeddings themselves are stored

    def measure(self, asked: Sequence[Asked]) -> list[Value]:
        images = self.network.embed_images([one.image for one in asked])
        values = []
        for measure in ("prompt", "intent"):
            texts = self.network.embed_texts([getattr(one, measure) for one in asked])
            values += [one.value(measure, cosine) for one, cosine in zip(asked, (images * texts).sum(1).tolist(), strict=True)]
        rows = [n for n, one in enumerate(asked) if one.target is not None]
        if rows:
            cosines = (images[rows] * self.network.embed_images([asked[n].target for n in rows])).sum(1).tolist()
            values += [asked[n].value("target", cosine) for n, cosine in zip(rows, cosines, strict=True)]
        return values + (_vectors(asked, images.numpy()) if self.keep else [])


@dataclass(frozen=True)
class FeatureDistance:
    """1 - cosine of f(z) (OMR eq. 6, 7) of the encoded images: a feature distance, not LPIPS. Images take the model's own size."""

    policy: Any

    def measure(self, asked: Sequence[Asked]) -> list[Value]:
        sides = {name: [getattr(one, name) for one in asked] for name in ("image", "previous", "target")}
        # An image is the previous one of its next round, and siblings share a target: each is encoded once.
        different = {image.tobytes(): image for images in sides.values() for image in images if image is not None}
        places = {key: place for place, key in enumerate(different)}
        found = self._features(list(different.values()))
        own = found[[places[one.image.tobytes()] for one in asked]]
        values = _vectors(asked, own.numpy())
        for measure in ("previous", "target"):
            rows = [n for n, image in enumerate(sides[measure]) if image is not None]
            if rows:
                others = found[[places[sides[measure][n].tobytes()] for n in rows]]
                distances = (1 - F.cosine_similarity(own[rows], others)).tolist()
                values += [asked[n].value(measure, distance) for n, distance in zip(rows, distances, strict=True)]
        return values

    @torch.no_grad()
    def _features(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        from omr_ray.diffusion.features import features

        _, height, width = self.policy.latent_shape()
        size = (width * self.policy.vae_factor, height * self.policy.vae_factor)
        return features(self.policy, self.policy.encode_images(np.stack([at_size(image, size) for image in images]))).cpu()


@dataclass(frozen=True)
class PerceptualDistance:
    """LPIPS between consecutive rounds."""

    network: Any

    def measure(self, asked: Sequence[Asked]) -> list[Value]:
        rows = [one for one in asked if one.previous is not None and one.previous.shape == one.image.shape]
        if not rows:
            return []
        distances = self.network.distances(
            np.stack([one.image for one in rows]), np.stack([one.previous for one in rows if one.previous is not None])
        )
        return [one.value("previous", distance) for one, distance in zip(rows, distances.tolist(), strict=True)]


@dataclass(frozen=True)
class AestheticScore:
    network: Any

    def measure(self, asked: Sequence[Asked]) -> list[Value]:
        return [
            one.value("prompt", score) for one, score in zip(asked, self.network.score([one.image for one in asked]).tolist(), strict=True)
        ]


def _vectors(asked: Sequence[Asked], vectors: np.ndarray) -> list[Value]:
    return [
        Value(dialogue=one.dialogue, round=one.round, sibling=one.sibling, measure="embedding", vector=vector.tolist())
        for one, vector in zip(asked, vectors, strict=True)
    ]


def _given(path: str | None, key: str) -> str:
    if path is None:
        raise UserError(f"no weights are given; set metrics, {key}")
    return path
