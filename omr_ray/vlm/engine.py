"""What the rest asks of Qwen-VL models, and of whatever stands in for them: scores, and language.

`RewardModel` (transformers) and `VllmRewardModel` are a RewardEngine; `TransformersEngine` and `OpenAiEngine` are a LanguageModel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

Images: TypeAlias = np.ndarray | Sequence[np.ndarray]  # u8 [N H W 3], or N of [H W 3] of any sizes

VLLM_SHARE = 0.9  # of the part of a GPU that its actor reserves; vLLM takes all of it at once


class RewardEngine(Protocol):
    """A loaded preference model."""

    def score(self, images: Images, prompts: Sequence[str], batch_size: int = 64) -> Tensor:
        """Rewards of images under N prompts (OMR eq. 8), float32 [N] on the CPU; at most `batch_size` pairs go together."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message of a conversation; its images are read before its text.

    Example: Message(role="user", text='{"latest": "make it blue"}', images=(image,))
    """

    role: Literal["system", "user", "assistant"]
    text: str
    images: tuple[np.ndarray, ...] = ()  # u8 [H W 3], of any sizes


Conversation: TypeAlias = Sequence[Message]


class LanguageModel(Protocol):
    """A loaded model that reads text and images and writes text, always its likeliest one."""

    def complete(self, conversations: Sequence[Conversation], *, max_tokens: int) -> list[str]:
        """The next message of each conversation, at most `max_tokens` long. Blocks: asynchronous code calls it in a thread.

        Raises NoAnswer where there is none to be had, UserError for a conversation that is too long for the model.
        """
        ...


class NoAnswer(Exception):
    """A language model gave no answer that is of use. The message says why, for who runs the model, in one line."""
