"""Versions of adapters that are learned from votes: kept by their hash, and one of them in use.

ADAPTERS/versions/SHA256/            every version as it was exported; never changed
ADAPTERS/users/OWNER/taste           a link to the version in use, moved in one step
"""

from __future__ import annotations

import os
import re
import shutil
import uuid
from pathlib import Path

import numpy as np

from omr_ray.diffusion.adapters import Adapter, export_adapter, load_adapter, model_card
from omr_ray.serving.adapters import FILE, VERSIONS, sha256_of
from omr_ray.serving.schemas import ADAPTER, ADDRESS
from omr_ray.types import UserError


class Versions:
    def __init__(self, root: str) -> None:
        self._root = Path(root)

    def add(self, adapter: Adapter, title: str, figures: dict[str, object]) -> str:
        """Store a version; returns its hash."""
        card = model_card(adapter.base_model, title, figures)
        made = self._root / VERSIONS / f".{uuid.uuid4().hex}"
        try:
            export_adapter(adapter, made, card, name="taste")
            sha256 = sha256_of(made / FILE)
            kept = self._root / VERSIONS / sha256
            if not kept.exists():
                made.rename(kept)
        finally:
            shutil.rmtree(made, ignore_errors=True)
        return sha256

    def weights(self, sha256: str, rank: int, alpha: float) -> dict[str, np.ndarray] | None:
        """Of a version, or of an adapter that is listed; None where none has that hash any more."""
        if not re.fullmatch(ADDRESS, sha256):
            return None
        kept = self._root / VERSIONS / sha256
        if not kept.is_dir():
            found = [file.parent for file in self._root.glob(f"*/**/{FILE}") if sha256_of(file) == sha256]
            if not found:
                return None
            kept = found[0]
        return load_adapter(kept).weights_for(rank, alpha)

    def use(self, adapter: str, sha256: str | None) -> None:
        """Make a version what the id stands for; None takes the id away: the base is used. Raises UserError for one that is not kept."""
        if not re.fullmatch(ADAPTER, adapter):
            raise ValueError(adapter)
        link = self._root / adapter
        if sha256 is None:
            link.unlink(missing_ok=True)
            return
        if not (self._root / VERSIONS / sha256).is_dir():
            raise UserError(f"version {sha256[:12]} of adapter {adapter} is not kept any more; start from another one")
        link.parent.mkdir(parents=True, exist_ok=True)
        part = link.with_name(f".{uuid.uuid4().hex}")
        part.symlink_to(Path(os.path.relpath(self._root / VERSIONS / sha256, link.parent)))
        try:
            part.replace(link)
        except OSError:
            part.unlink()
            raise UserError(
                f"adapter {adapter} is a directory that somebody put there; move it away, then its place can be learned into"
            ) from None
