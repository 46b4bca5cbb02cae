"""The dialogue engine in this process, with the models of a service's config: many sessions at a time, one batch a step."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Protocol

import numpy as np

from omr_ray.config.generation import AttendAndExcite
from omr_ray.config.serve import ServeConfig
from omr_ray.dialogue.engine import Commission, DialogueEngine, Picture
from omr_ray.dialogue.feedback_reflection import by_cosine
from omr_ray.dialogue.session import Session, SessionRound
from omr_ray.evaluation.interactive.talking import Said, Shown, Variant
from omr_ray.evaluation.interactive.together import Ask, Together
from omr_ray.serving.pictures import address_of
from omr_ray.vlm.engine import Conversation

BATCH = 64  # images, or conversations, that go through a network together


class Models(Protocol):
    """The loaded models of a system."""

    def complete(self, conversations: Sequence[Conversation], *, max_tokens: int) -> list[str]: ...

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """f32 [N D], unit vectors."""
        ...

    def paint_all(self, commissions: Sequence[Commission]) -> list[Picture]: ...

    def features(self, latents: np.ndarray) -> np.ndarray:
        """f(z) of latents f32 [N C H W], f32 [N F]."""
        ...


class Album:
    """Pictures in memory."""

    def __init__(self) -> None:
        self._pictures: dict[str, Picture] = {}

    def put(self, picture: Picture) -> str:
        address = address_of(picture)
        self._pictures[address] = picture
        return address

    def get(self, address: str) -> Picture:
        return self._pictures[address]


class EngineSystem:
    """As talking.System. adapter: the id of the one that `variant` paints with, where it is adapted."""

    def __init__(self, models: Models, config: ServeConfig, variant: Variant, adapter: str | None = None) -> None:
        self._models, self._config, self._variant = models, config, variant
        self._adapter = adapter if variant.adapted else None
        self._sessions: dict[int, Session] = {}
        self._album = Album()
        self._together = Together(
            {
                "complete": lambda conversations, max_tokens: models.complete(conversations, max_tokens=max_tokens),
                "embed": lambda texts, _: models.embed(texts),
                "paint": lambda commissions, _: models.paint_all(commissions),
            }
        )

    def turns(self, said: Sequence[Said]) -> list[Shown]:
        rounds = self._together.run([partial(self._turn, one) for one in said])
        pictures = [self._album.get(round_.image) if _shows(round_) and round_.image else None for round_ in rounds]
        latents = [picture.latents for picture in pictures if picture is not None and picture.latents is not None]
        features = iter(self._models.features(np.stack(latents)) if latents else [])
        return [
            Shown(
                status=round_.status,
                modality=round_.modality,
                prompt=round_.prompt,
                image=None if picture is None else picture.image,
                question=None if round_.question is None else round_.question.aspect,
                ambiguity=round_.ambiguity,
                features=None if picture is None or picture.latents is None else next(features),
                error=round_.error,
            )
            for round_, picture in zip(rounds, pictures, strict=True)
        ]

    def _turn(self, said: Said, ask: Ask) -> SessionRound:
        session = self._sessions.get(said.talk) or Session(id=str(said.talk))
        if said.skips and session.head is not None:
            session = session.skip(session.head)
        session = self._started(session.branch(None) if self._variant.alone else session, said)
        id = session.rounds[-1].id
        for round_ in self._engine(ask).turn(session, id):
            session = session.updated(round_)
            if not self._variant.asks and round_.image is not None and round_.status == "running":
                # Who never asks need not know what the image shows: that is most of a turn's work.
                session = session.finish(id)
                break
        self._sessions[said.talk] = session
        return session.round(id)

    def _started(self, session: Session, said: Said) -> Session:
        return session.start(
            said.utterance,
            seed=said.seed,
            strength=self._config.painting.strength,
            answer=said.answer,
            mode=self._variant.mode,
            modality="picture" if self._variant.alone else None,
            adapter=self._adapter,
        )

    def _engine(self, ask: Ask) -> DialogueEngine:
        front = _Front(ask)
        return DialogueEngine(
            language=front,
            painter=lambda commission: ask("paint", [commission])[0],
            pictures=self._album,
            embed=front.embed,
            similarity=by_cosine(front.embed),
            config=self._config.dialogue,
        )


class _Front:
    """The models as one dialogue sees them."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask

    def complete(self, conversations: Sequence[Conversation], *, max_tokens: int) -> list[str]:
        return self._ask("complete", conversations, max_tokens)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        return np.stack(self._ask("embed", texts))


class LoadedModels:
    """As Models, from a service's config. Raises UserError for weights that are not there."""

    def __init__(self, config: ServeConfig) -> None:
        from omr_ray.atelier import shipped
        from omr_ray.loading import device_for, language_model_from
        from omr_ray.serving.painter import Painter
        from omr_ray.vlm.clip import Clip

        language, diffusion = config.replicas.language, config.replicas.diffusion
        device = device_for(language, "language")
        self._clip = Clip.from_pretrained(shipped("clip") if config.clip == "atelier" else config.clip, device)
        spoken = config.dialogue.language
        if spoken.type == "transformers":
            spoken = spoken.model_copy(update={"batch_size": BATCH})
        self._language = language_model_from(spoken, device, language.threads)
        self._painter = Painter(config, device_for(diffusion, "diffusion"), diffusion.threads, BATCH)

    def complete(self, conversations: Sequence[Conversation], *, max_tokens: int) -> list[str]:
        return self._language.complete(conversations, max_tokens=max_tokens)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        return self._clip.embed_texts(texts).numpy()

    def paint_all(self, commissions: Sequence[Commission]) -> list[Picture]:
        return self._painter.paint_all(commissions)

    def features(self, latents: np.ndarray) -> np.ndarray:
        import torch

        from omr_ray.diffusion.features import features

        policy = self._painter.policy
        with torch.no_grad():
            return features(policy, torch.from_numpy(latents).to(policy.device)).cpu().numpy()

    def similarity(self, images: np.ndarray, texts: Sequence[str]) -> np.ndarray:
        """CLIP's cosine of each image u8 [N H W 3] and its text, f32 [N]."""
        return self._clip.score(images, texts).numpy()

    def excited(
        self, prompts: Sequence[str], seeds: Sequence[int], settings: AttendAndExcite | None, adapter: str | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Images u8 [N H W 3] from noise under Attend-and-Excite, or without it, and whether it was used, bool [N]."""
        from omr_ray.diffusion import attend_and_excite
        from omr_ray.diffusion.generation import generate_guided

        painter = self._painter
        attention = None if settings is None else attend_and_excite.AttendAndExcite(painter.policy, **settings.model_dump())
        with painter.wearing(adapter):
            made = generate_guided(painter.sampler, prompts, seeds=seeds, attention=attention)
        return made.images, made.excited


def _shows(round_: SessionRound) -> bool:
    return round_.status == "done" and round_.modality == "picture"
