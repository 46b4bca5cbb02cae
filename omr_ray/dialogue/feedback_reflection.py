"""Feedback-Reflection: the module of TDRI section 3.2.2 that compares an image with its prompt, and asks where they part."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from omr_ray.dialogue.d2p import Embed
from omr_ray.vlm.engine import LanguageModel
from omr_ray.vlm.structured import ask, ask_one
from omr_ray.vlm.templates import ASPECTS, CLARIFY, DESCRIBE, SPLIT

Similarity: TypeAlias = Callable[[Sequence[str], Sequence[str]], np.ndarray]  # N texts and N texts to f64 [N], in -1..1

WEAKEST = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class AspectScore:
    """One aspect of a prompt and of its image.

    Example: AspectScore(aspect="color", wanted="blue", shown="a red dress", similarity=0.62)
    """

    aspect: str
    wanted: str | None  # p_i; None where the prompt does not name the aspect
    shown: str  # c_i
    similarity: float | None  # sim(p_i, c_i); None where there is no p_i


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A clarification question (TDRI eq. 6). The user may answer it, in any words, or skip it.

    Example: Question(aspect="color", text="Which color should it be?", suggestions=("red", "blue"))
    """

    aspect: str
    text: str
    suggestions: tuple[str, ...] = ()


def describe(model: LanguageModel, image: np.ndarray) -> dict[str, str]:
    """C_t = V(I_t) (TDRI eq. 4): what an image u8 [H W 3] shows, aspect by aspect, each with a template of its own."""
    answers = ask(model, [DESCRIBE[aspect](images=(image,)) for aspect in ASPECTS])
    return {aspect: answer.description for aspect, answer in zip(ASPECTS, answers, strict=True)}


def split(model: LanguageModel, prompt: str) -> dict[str, str]:
    """p_i of TDRI eq. 5: the words of a prompt for each aspect that it names."""
    return {aspect: words for aspect, words in ask_one(model, SPLIT(prompt=prompt)).model_dump().items() if words}


def aspect_scores(wanted: Mapping[str, str], shown: Mapping[str, str], similarity: Similarity) -> tuple[AspectScore, ...]:
    """sim(p_i, c_i) (TDRI eq. 5) of the aspects that the prompt names, in the order of ASPECTS.

    Raises ValueError for a similarity that is not finite.
    """
    named = [aspect for aspect in ASPECTS if aspect in wanted]
    values = similarity([wanted[aspect] for aspect in named], [shown[aspect] for aspect in named]) if named else np.zeros(0)
    known = {aspect: float(value) for aspect, value in zip(named, values, strict=True)}
    if not np.isfinite(list(known.values())).all():
        raise ValueError(f"similarities must be finite, got {known}")
    return tuple(
        AspectScore(aspect=aspect, wanted=wanted.get(aspect), shown=shown[aspect], similarity=known.get(aspect)) for aspect in ASPECTS
    )


def by_cosine(embed: Embed) -> Similarity:
    """sim of TDRI eq. 5 as the cosine of a text encoder's unit vectors."""

    def similarity(wanted: Sequence[str], shown: Sequence[str]) -> np.ndarray:
        vectors = embed([*wanted, *shown]).astype(np.float64)
        return (vectors[: len(wanted)] * vectors[len(wanted) :]).sum(1)

    return similarity


def ambiguity(scores: Sequence[AspectScore], weights: Mapping[str, float], unnamed_similarity: float) -> float:
    """A_t = 1 - sum_i w_i sim(p_i, c_i) (TDRI eq. 5); the weights sum to 1.

    An aspect that the prompt does not name has no p_i. In our reading it counts as `unnamed_similarity`: the image may
    show there what the user wants, or not.
    """
    return 1 - sum(weights[score.aspect] * _counted(score, unnamed_similarity) for score in scores)


def aspect_to_ask(
    scores: Sequence[AspectScore],
    *,
    ambiguity: float,
    threshold: float,
    unnamed_similarity: float,
    passed_over: Sequence[AspectScore],
    rng: np.random.Generator,
) -> AspectScore | None:
    """Which aspect a question is asked about (TDRI eq. 6, section 4.3.1); None where A_t is not above the threshold.

    One of the three that score lowest, drawn at random. `passed_over` are aspects as they stood when a question about
    them was skipped: while neither the prompt nor the image says anything else there, they are not asked about again.
    """
    if ambiguity <= threshold:
        return None
    open_ = [score for score in scores if not any(_unchanged(score, before) for before in passed_over)]
    weakest = sorted(open_, key=lambda score: _counted(score, unnamed_similarity))[:WEAKEST]
    return weakest[int(rng.integers(len(weakest)))] if weakest else None


def clarification(model: LanguageModel, prompt: str, score: AspectScore) -> Question:
    """The question about one aspect (TDRI eq. 6), in the language model's words, with up to four answers to choose from."""
    answer = ask_one(model, CLARIFY(prompt=prompt, aspect=score.aspect, wanted=score.wanted or "", shown=score.shown))
    return Question(aspect=score.aspect, text=answer.question, suggestions=answer.suggestions)


def _counted(score: AspectScore, unnamed_similarity: float) -> float:
    return unnamed_similarity if score.similarity is None else score.similarity


def _unchanged(score: AspectScore, before: AspectScore) -> bool:
    return (score.aspect, score.wanted, score.shown) == (before.aspect, before.wanted, before.shown)
