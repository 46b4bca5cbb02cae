"""Weights on disk: safetensors only, checked before they are used, and replaced in one step or not at all.

Pickled weights can run code when they are opened, so they are refused, never converted.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import safetensors
from safetensors.numpy import save

from omr_ray.types import UserError

PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
CHECKSUMS = "checksums.json"  # relative file name -> sha256, beside the shipped weights


def check_directory(path: str | Path, parts: Sequence[str] = (".",)) -> Path:
    """The model directory `path`, if each of its folders `parts` holds safetensors and every listed checksum is right.

    Raises UserError for a missing folder, one without weights, one with pickled weights only, or a damaged file.
    """
    root = Path(path)
    for part in parts:
        folder = root / part
        if not folder.is_dir():
            raise UserError(f"{folder}: no such model directory; give a directory in the diffusers or transformers format")
        names = sorted(entry.name for entry in folder.iterdir())
        if any(name.endswith(".safetensors") for name in names):
            continue
        pickles = [name for name in names if name.endswith(PICKLES)]
        if pickles:
            raise UserError(f"{folder / pickles[0]}: pickled weights are never opened; convert the model to safetensors")
        raise UserError(f"{folder}: no *.safetensors file in it; give a complete model directory")
    _verify_checksums(root, parts)
    return root


def _verify_checksums(root: Path, parts: Sequence[str]) -> None:
    listing = root / CHECKSUMS
    if not listing.is_file():
        return
    with reported(listing):
        sums = json.loads(listing.read_text())
    folders = [(root / part).resolve() for part in parts]
    for name, expected in sums.items():
        file = (root / name).resolve()
        if not any(file.is_relative_to(folder) for folder in folders):
            continue
        with reported(file), file.open("rb") as opened:
            found = hashlib.file_digest(opened, "sha256").hexdigest()
        if found != expected:
            raise UserError(f"{file}: its sha256 {found[:12]}... is not the listed {expected[:12]}...; fetch the file again")


@contextmanager
def reported(path: str | Path, remedy: str = "fetch or export it again") -> Iterator[None]:
    """Turn whatever reading the weights at `path` raises into one UserError line."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{error.filename or path}: no such file; give a complete model directory") from None
    # Loaders raise OSError, ValueError, KeyError, RuntimeError and SafetensorError (an Exception) for a damaged model.
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"{path}: cannot be loaded ({reason}); {remedy}") from None


def read_safetensors(path: str | Path) -> dict[str, np.ndarray]:
    """All tensors of a safetensors file, as arrays of their own; bfloat16 comes back as float32.

    Raises UserError for a missing or truncated file, or one that is not safetensors.
    """
    path = Path(path)
    if path.suffix in PICKLES:
        raise UserError(f"{path}: pickled weights are never opened; convert the file to safetensors")
    with reported(path):
        if not path.is_file():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        tensors = dict(safetensors.deserialize(path.read_bytes()))
        return {name: _array(tensor["dtype"], tensor["shape"], tensor["data"]) for name, tensor in tensors.items()}


def read_metadata(path: str | Path) -> dict[str, str]:
    """The string metadata in the header of a safetensors file."""
    with reported(path), safetensors.safe_open(str(path), framework="np") as opened:
        return dict(opened.metadata() or {})


def _array(dtype: str, shape: Sequence[int], data: bytes) -> np.ndarray:
    if dtype == "BF16":  # the upper half of a float32
        return (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(shape)
    kind = {"F": "f", "I": "i", "U": "u"}[dtype[0]] if dtype != "BOOL" else "?"
    size = "" if dtype == "BOOL" else str(int(dtype[1:]) // 8)
    return np.frombuffer(data, np.dtype(kind + size)).reshape(shape)


def write_safetensors_atomic(path: str | Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> None:
    """Write `arrays` to `path` so that a reader sees the old file or the whole new one. Raises UserError on a full disk."""
    contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    write_atomic(path, _with_sorted_header(save(contiguous, metadata=dict(metadata or {}))))


def _with_sorted_header(content: bytes) -> bytes:
    """The same safetensors file; the library writes metadata in another order in every process, and equal tensors are to be equal bytes."""
    size = int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8 : 8 + size]), separators=(",", ":"), sort_keys=True).encode()
    header = header.ljust(-(-len(header) // 8) * 8)  # the tensors behind it stay aligned
    return len(header).to_bytes(8, "little") + header + content[8 + size :]


def write_atomic(path: str | Path, content: bytes) -> None:
    """Write `content` under another name, flush it to the disk, then rename. The old file stays where that fails."""
    path = Path(path)
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        with os.fdopen(descriptor, "wb") as opened:
            opened.write(content)
            opened.flush()
            os.fsync(opened.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes a file that only its owner can read
        os.replace(temporary, path)
        temporary = None
        _flush_directory(path.parent)
    except OSError as error:
        remedy = "free some space" if error.errno == errno.ENOSPC else "give a directory that can be written to"
        raise UserError(f"{path}: cannot be written ({error.strerror or error}); {remedy} and start again") from None
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def _flush_directory(path: Path) -> None:
    """Make the rename itself survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
