"""The Arrow schemas of everything that is stored: dialogues, preference pairs, and what was encoded of dialogues for training.

Images are bytes inside the rows.

An image is stored as the encoded bytes it came with (JPEG, PNG or WebP), beside the figures of its quality; a row whose
images are elsewhere (text-only sources, or `missing_images: keep`) has null there. Both schemas carry a version in their
metadata; a reader refuses another one.
"""

from __future__ import annotations

import pyarrow as pa

from omr_ray.types import UserError

VERSION = "1"

IMAGE = pa.struct(
    [
        pa.field("bytes", pa.binary(), nullable=False),  # encoded: JPEG, PNG or WebP
        pa.field("width", pa.int32(), nullable=False),  # pixels
        pa.field("height", pa.int32(), nullable=False),
        pa.field("sharpness", pa.float32(), nullable=False),  # filters.sharpness
    ]
)

ORIGIN = [
    pa.field("id", pa.string(), nullable=False),  # unique within its table
    pa.field("source", pa.string(), nullable=False),  # "imagereward", "fashioniq", ...
    pa.field("group", pa.string(), nullable=False),  # prompt or product: never in two splits
    pa.field("split", pa.string(), nullable=False),  # "train" or "test"
    pa.field("purpose", pa.string(), nullable=False),  # "reward", "diffusion" or "dialogue" (OMR section 4.2)
    pa.field("license", pa.string(), nullable=False),  # SPDX identifier, or "unknown"
]

ROUND = pa.struct(
    [
        pa.field("utterance", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),  # P_t (OMR eq. 1)
        pa.field("reflection", pa.string()),
        pa.field("target", IMAGE),
    ]
)

DIALOGUES = pa.schema(
    [*ORIGIN, pa.field("intent", pa.string(), nullable=False), pa.field("rounds", pa.list_(ROUND), nullable=False)],
    metadata={"omr_ray": "dialogues", "version": VERSION},
)

PREFERENCES = pa.schema(
    [
        *ORIGIN,
        pa.field("prompt", pa.string(), nullable=False),
        # What makes the rejected image worse: "ranked" (people said so), "mismatched" (an image of another group),
        # or "aspect:NAME" (one aspect was drawn otherwise).
        pa.field("negative", pa.string(), nullable=False),
        pa.field("chosen", IMAGE),
        pa.field("rejected", IMAGE),
    ],
    metadata={"omr_ray": "preferences", "version": VERSION},
)

REJECTS = pa.schema(
    [
        pa.field("source", pa.string(), nullable=False),
        pa.field("id", pa.string(), nullable=False),  # of the record, or the file and line it stands in
        pa.field("reason", pa.string(), nullable=False),  # one of filters.REASONS
        pa.field("detail", pa.string(), nullable=False),
    ],
    metadata={"omr_ray": "rejects", "version": VERSION},
)

# Numbers are little-endian bytes, float32 or float16 as the cache's cache.json says (latent_cache.py). C H W is of the bucket.
LATENT_ROUND = pa.struct(
    [
        pa.field("latent", pa.binary(), nullable=False),  # [C H W], scaled
        pa.field("hidden", pa.binary(), nullable=False),  # [L D], of the prompt
        pa.field("pooled", pa.binary()),  # [D'], SDXL
        pa.field("conditioning", pa.list_(pa.int32(), 6), nullable=False),  # buckets.Fitted
    ]
)

LATENTS = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),  # of the dialogue
        pa.field("rounds", pa.list_(LATENT_ROUND), nullable=False),  # those with an image
        pa.field("consecutive", pa.list_(pa.bool_()), nullable=False),  # whether round i + 1 followed round i in the dialogue
    ],
    metadata={"omr_ray": "latents", "version": VERSION},
)

TABLES = {"dialogues": DIALOGUES, "preferences": PREFERENCES, "rejects": REJECTS, "latents": LATENTS}


def check(found: pa.Schema, name: str, path: str) -> None:
    """Raises UserError unless the file at `path` was written with the schema `name` of this version."""
    wanted = TABLES[name]
    told = {key.decode(): value.decode() for key, value in (found.metadata or {}).items()}
    if told.get("omr_ray") != name:
        raise UserError(f"{path}: is not a table of {name} (columns {', '.join(found.names)[:200]}); make one with `omr-ray data build`")
    if told.get("version") != VERSION or not found.equals(wanted):
        raise UserError(f"{path}: schema version {told.get('version')} of {name}, this program reads {VERSION}; build the data again")
