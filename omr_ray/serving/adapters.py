"""Adapters of the service: which there are, and those in memory, which are not dropped while somebody paints with them.

An adapter is its content. A round keeps the hash of the one it was accepted with, and is painted with that or not at all: where
another adapter has taken the name since, and the old one is neither in memory nor among the kept versions, it fails and says so.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from omr_ray.serving.schemas import ADAPTER, NAME, AdapterView
from omr_ray.types import UserError

if TYPE_CHECKING:
    import numpy as np

Weights = Mapping[str, "np.ndarray"]
FILE = "adapter_model.safetensors"
CONFIG = "adapter_config.json"  # holds lora_alpha, which scales the weights
VERSIONS = "versions"  # ADAPTERS/versions/SHA256: those that are kept when another one takes their name


def listed(root: str, owner: str) -> tuple[AdapterView, ...]:
    """The shared ones, and the owner's own."""
    found = []
    for group in ("shared", f"users/{owner}"):
        for file in sorted((Path(root) / group).glob(f"*/{FILE}")):
            if re.fullmatch(NAME, file.parent.name):
                found.append(AdapterView(id=f"{group}/{file.parent.name}", sha256=sha256_of(file)))
    return tuple(found)


def pinned(id: str, sha256: str | None) -> str:
    """An adapter with the content that it must have. Example: pinned("shared/house", "ab12...") == "shared/house@ab12..."."""
    return id if sha256 is None else f"{id}@{sha256}"


def sha256_of(file: Path) -> str:
    """Of an adapter's configuration and weights: what `cat adapter_config.json adapter_model.safetensors | sha256sum` says.

    file: the weights.
    """
    parts = [part for part in (file.with_name(CONFIG), file) if part.is_file()]
    return _hashed(tuple((part, (stat := part.stat()).st_ino, stat.st_size, stat.st_mtime_ns) for part in parts))


@lru_cache(maxsize=4096)
def _hashed(files: tuple[tuple[Path, int, int, int], ...]) -> str:
    """Files with what tells that they are other ones: each is read once, however often adapters are listed."""
    digest = hashlib.sha256()
    for file, *_ in files:
        with file.open("rb") as opened:
            while part := opened.read(2**20):
                digest.update(part)
    return digest.hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    sha256: str  # of its content
    weights: Weights


class AdapterCache:
    """Loaded adapters by content, at most `kept`, or as many as are in use."""

    def __init__(self, root: str, *, rank: int, alpha: float, kept: int) -> None:
        self._root, self._rank, self._alpha, self._kept = Path(root), rank, alpha, kept
        self._loaded: OrderedDict[str, Weights] = OrderedDict()
        self._users: dict[str, int] = {}
        self._lock = threading.Lock()

    @contextmanager
    def held(self, adapter: str) -> Iterator[Held]:
        """An adapter by its id, or pinned to a content; it stays loaded inside the block.

        Raises UserError for one that is not there, does not fit, or has another content now.
        """
        id, _, wanted = adapter.partition("@")
        with self._lock:
            sha256 = self._found(id, wanted)
            self._loaded.move_to_end(sha256)
            self._users[sha256] = self._users.get(sha256, 0) + 1
            weights = self._loaded[sha256]
        try:
            yield Held(sha256=sha256, weights=weights)
        finally:
            with self._lock:
                self._users[sha256] -= 1
                idle = [name for name in self._loaded if not self._users.get(name)]
                for name in idle[: max(0, len(self._loaded) - self._kept)]:
                    del self._loaded[name]
                    self._users.pop(name, None)

    def _found(self, id: str, wanted: str) -> str:
        """The content that is loaded now; wanted: empty where any will do."""
        if wanted in self._loaded:
            return wanted
        from omr_ray.diffusion.adapters import load_adapter  # the web lists adapters without torch

        if not re.fullmatch(ADAPTER, id):
            raise UserError(f"there is no adapter {id!r:.80}; take one that is listed")
        found = [(directory, sha256_of(directory / FILE)) for directory in self._places(id, wanted) if (directory / FILE).is_file()]
        if not found:
            raise UserError(f"there is no adapter {id} any more; take one that is listed")
        fitting = [(directory, sha256) for directory, sha256 in found if wanted in ("", sha256)]
        if not fitting:
            raise UserError(f"adapter {id} has changed since this round was asked for; ask again to use the new one")
        directory, sha256 = fitting[0]
        if sha256 not in self._loaded:
            weights = load_adapter(directory).weights_for(self._rank, self._alpha)
            if sha256_of(directory / FILE) != sha256:
                raise UserError(f"adapter {id} was changed while it was read; try again")
            self._loaded[sha256] = weights
        return sha256

    def _places(self, id: str, wanted: str) -> tuple[Path, ...]:
        return (self._root / id, self._root / VERSIONS / wanted) if wanted else (self._root / id,)
