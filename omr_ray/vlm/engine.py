"""What scores images under prompts: the Protocol of `RewardModel` (transformers) and `VllmRewardModel`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, TypeAlias

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
