"""Which rows are trained on and for what: by a hash of the group alone, so that no prompt or product is ever on two sides.

Nothing is drawn: the same group lands in the same place on every machine, in every part of a build, and in later builds
with more data.
"""

from __future__ import annotations

import hashlib
import unicodedata
from dataclasses import dataclass
from typing import Literal

Split = Literal["train", "test"]
Purpose = Literal["reward", "diffusion", "dialogue"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """OMR section 4.2: 80% train; 38% of the data for the reward model, 17% for diffusion training, the rest for dialogues."""

    train: float = 0.80
    reward: float = 0.38
    diffusion: float = 0.17


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    split: Split
    purpose: Purpose


def place_of(group: str, shares: Shares) -> Place:
    """Split and purpose of a group, independent of one another. Spacing and Unicode form do not count."""
    normal = " ".join(unicodedata.normalize("NFC", group).split())
    digest = hashlib.blake2b(normal.encode("utf-8", "replace"), digest_size=16).digest()
    first, second = (int.from_bytes(half, "big") / 2**64 for half in (digest[:8], digest[8:]))
    purpose: Purpose = "reward" if second < shares.reward else "diffusion" if second < shares.reward + shares.diffusion else "dialogue"
    return Place(split="train" if first < shares.train else "test", purpose=purpose)
