"""Dialogue-to-Prompt: the module of TDRI section 3.2.1 that turns a dialogue into the prompt of its next image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from omr_ray.vlm.engine import LanguageModel
from omr_ray.vlm.structured import ask_one
from omr_ray.vlm.templates import TO_PROMPT

Embed: TypeAlias = Callable[[Sequence[str]], np.ndarray]  # N texts to f32 [N D]


class Exchange(NamedTuple):
    """(u, s) of TDRI eq. 1: what the user said, and what the system answered with.

    Example: Exchange("i want a dress", "a dress. Which color?")
    """

    user: str
    system: str


History: TypeAlias = Sequence[Exchange]  # H_t, the rounds before t in order (TDRI eq. 1)


def to_prompt(model: LanguageModel, history: History, utterance: str, *, w_h: float, w_u: float) -> str:
    """P_t = Summarize(w_h E_h(H_t) + w_u E_u(u_t)) (TDRI eq. 2): a language model writes the prompt from H_t and u_t.

    A language model reads words, not sums of embeddings: in our reading the weights decide how strongly the instruction
    prefers the latest utterance. `context_vector` is the sum itself. Raises as `structured.ask`.
    """
    return ask_one(model, TO_PROMPT[preferred(w_h, w_u)](history=history, latest=utterance)).prompt


def preferred(w_h: float, w_u: float) -> str:
    """Which of the three wordings of TO_PROMPT: by the latest utterance's share of both weights, in thirds."""
    share = w_u / (w_h + w_u)
    if share < 1 / 3:
        return "history"
    return "even" if share <= 2 / 3 else "latest"


def context_vector(embed: Embed, history: History, utterance: str, *, w_h: float, w_u: float) -> np.ndarray:
    """w_h E_h(H_t) + w_u E_u(u_t) (TDRI eq. 2), the context of eq. 3 and of the t-SNE plots: f32 [D].

    E_h is the mean of the embeddings of all u and s in H_t (our reading), and 0 where there is no history.
    """
    texts = [text for exchange in history for text in exchange]
    vectors = np.asarray(embed([*texts, utterance]), np.float32)
    past = vectors[:-1].mean(axis=0) if texts else np.zeros_like(vectors[-1])
    return np.float32(w_h) * past + np.float32(w_u) * vectors[-1]
