"""Adapters of the service: which there are, and those in memory, which are not dropped while somebody paints with them."""

from __future__ import annotations

import hashlib
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from omr_ray.serving.schemas import ADAPTER, NAME, AdapterView
from omr_ray.types import UserError

if TYPE_CHECKING:
    import numpy as np

Weights = Mapping[str, "np.ndarray"]
FILE = "adapter_model.safetensors"


def listed(root: str, owner: str) -> tuple[AdapterView, ...]:
    """The shared ones, and the owner's own."""
    found = []
    for group in ("shared", f"users/{owner}"):
        for file in sorted((Path(root) / group).glob(f"*/{FILE}")):
            if re.fullmatch(NAME, file.parent.name):
                found.append(AdapterView(id=f"{group}/{file.parent.name}", sha256=sha256_of(file)))
    return tuple(found)


class AdapterCache:
    """Loaded adapters by id, at most `kept`, or as many as are in use."""

    def __init__(self, root: str, *, rank: int, alpha: float, kept: int) -> None:
        self._root, self._rank, self._alpha, self._kept = Path(root), rank, alpha, kept
        self._loaded: OrderedDict[str, Weights] = OrderedDict()
        self._users: dict[str, int] = {}
        self._lock = threading.Lock()

    @contextmanager
    def held(self, id: str) -> Iterator[Weights]:
        """The weights, which stay loaded inside the block. Raises UserError for an adapter that is not there or does not fit."""
        with self._lock:
            if id not in self._loaded:
                self._loaded[id] = self._load(id)
            self._loaded.move_to_end(id)
            self._users[id] = self._users.get(id, 0) + 1
            weights = self._loaded[id]
        try:
            yield weights
        finally:
            with self._lock:
                self._users[id] -= 1
                idle = [name for name in self._loaded if not self._users.get(name)]
                for name in idle[: max(0, len(self._loaded) - self._kept)]:
                    del self._loaded[name]
                    self._users.pop(name, None)

    def _load(self, id: str) -> Weights:
        from omr_ray.diffusion.adapters import load_adapter

        if not re.fullmatch(ADAPTER, id) or not (self._root / id).is_dir():
            raise UserError(f"there is no adapter {id!r:.80}; take one that is listed")
        return load_adapter(self._root / id).weights_for(self._rank, self._alpha)


def sha256_of(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
