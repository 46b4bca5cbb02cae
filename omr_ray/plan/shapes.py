"""Sizes of models without their weights: what a plan needs to know about a UNet, its VAE and a reward model.

Known families are a table; a local directory is read (JSON configs and the headers of its safetensors files, no tensor).
Activation counts are linear in the number of latent cells, because attention is computed in tiles; they were fitted to
the live bytes of one forward, and of one forward and backward with LoRA, of SD 1.5, SD 2.1 and SDXL, and hold to about 10%.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from omr_ray.types import UserError

FEATURE_CELLS = 16  # f(z) is pooled to a 4 x 4 grid
GRADIENT_CHECKPOINT = 3.5  # live activations of a training forward with checkpoints, in inference forwards


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffusionShape:
    """A latent diffusion model. Levels run from the finest to the coarsest, each with half the cells a side.

    Example: shape_of("stabilityai/stable-diffusion-xl-base-1.0").lora_parameters(4) == 5_806_080
    """

    name: str
    unet_parameters: int
    other_parameters: int  # text encoders and VAE
    channels: tuple[int, ...]  # of the UNet's levels
    layers: int  # residual blocks of a level on the way down; one more on the way up
    transformers: tuple[int, ...]  # depth of each level's transformers, 0 where a level has none
    cross_attention_dim: int
    latent_channels: int
    vae_channels: tuple[int, ...]
    pixels: tuple[int, int]  # the model's own height and width
    encoders: int
    tokens: int

    @property
    def vae_factor(self) -> int:
        """Pixels of one latent cell's side."""
        return 2 ** (len(self.vae_channels) - 1)

    @property
    def features(self) -> int:
        """Length of f(z)."""
        return FEATURE_CELLS * self.channels[0]

    def lora_parameters(self, rank: int) -> int:
        """Parameters of LoRA on q, k, v and out of self- and cross-attention: rank (14 ch + 2 cross) a transformer layer."""
        return sum(depth * rank * (14 * ch + 2 * self.cross_attention_dim) for ch, depth, _ in self._blocks(attention=True))

    def forward_elements(self) -> float:
        """Numbers alive at the peak of one inference forward, a sample and latent cell: kept skips and the widest block."""
        skips = self.channels[0] + sum(self.layers * ch / 4**i for i, ch in enumerate(self.channels))
        skips += sum(ch / 4 ** (i + 1) for i, ch in enumerate(self.channels[:-1]))
        widest = max(ch / 4**i * (21 if self.transformers[i] else 11) for i, ch in enumerate(self.channels))
        return skips + widest

    def training_elements(self, checkpointing: bool) -> float:
        """Numbers kept for the backward pass, a sample and latent cell."""
        if checkpointing:
            return GRADIENT_CHECKPOINT * self.forward_elements()
        residual = sum(ch / 4**i * count for ch, count, i in self._blocks(attention=False))
        attention = sum(ch / 4**i * depth for ch, depth, i in self._blocks(attention=True))
        return 15 * residual + 30 * attention

    def decode_elements(self) -> float:
        """Numbers alive at the peak of one VAE decoding, a pixel: the finest level, whose input is twice as wide."""
        return 2.0 * (self.vae_channels[0] + self.vae_channels[1])

    def _blocks(self, *, attention: bool) -> Iterator[tuple[int, int, int]]:
        """(channels, number of residual blocks or transformer layers, level), the middle block last."""
        for level, channels in enumerate(self.channels):
            count = 2 * self.layers + 1
            yield channels, count * self.transformers[level] if attention else count, level
        middle = next((depth for depth in reversed(self.transformers) if depth), 1) if attention else 2
        yield self.channels[-1], middle, len(self.channels) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardShape:
    """A Qwen-VL model: parameters without the last linear layer, and what one image costs."""

    name: str
    parameters: int
    hidden: int
    vision_hidden: int
    patch: int  # pixels; four patches are one token

    def forward_elements(self, pixels: int) -> float:
        """Numbers alive at the peak of one inference forward of an image of `pixels` and its prompt."""
        patches = pixels / self.patch**2
        return 20 * (patches / 4 + 120) * self.hidden + 20 * patches * self.vision_hidden


_SD1 = DiffusionShape(
    name="Stable Diffusion 1",
    unet_parameters=859_520_964,
    other_parameters=123_060_480 + 83_653_863,
    channels=(320, 640, 1280, 1280),
    layers=2,
    transformers=(1, 1, 1, 0),
    cross_attention_dim=768,
    latent_channels=4,
    vae_channels=(128, 256, 512, 512),
    pixels=(512, 512),
    encoders=1,
    tokens=77,
)
_SD2_BASE = replace(
    _SD1,
    name="Stable Diffusion 2 base",
    unet_parameters=865_910_724,
    other_parameters=340_387_840 + 83_653_863,
    cross_attention_dim=1024,
)
_SD2 = replace(_SD2_BASE, name="Stable Diffusion 2", pixels=(768, 768))
_SDXL = replace(
    _SD1,
    name="SDXL",
    unet_parameters=2_567_463_684,
    other_parameters=123_060_480 + 694_659_840 + 83_653_863,
    channels=(320, 640, 1280),
    transformers=(0, 2, 10),
    cross_attention_dim=2048,
    pixels=(1024, 1024),
    encoders=2,
)
# The first name that occurs in a hub id decides.
FAMILIES = {
    "stable-diffusion-xl": _SDXL,
    "sdxl": _SDXL,
    "stable-diffusion-2-base": _SD2_BASE,
    "stable-diffusion-2-1-base": _SD2_BASE,
    "stable-diffusion-2": _SD2,
    "stable-diffusion-v1": _SD1,
    "stable-diffusion-1": _SD1,
}
REWARD_MODELS = {
    "qwen2-vl-2b": RewardShape(name="Qwen2-VL-2B", parameters=2_208_985_600, hidden=1536, vision_hidden=1280, patch=14),
    "qwen2-vl-7b": RewardShape(name="Qwen2-VL-7B", parameters=8_291_375_616, hidden=3584, vision_hidden=1280, patch=14),
    "qwen2.5-vl-3b": RewardShape(name="Qwen2.5-VL-3B", parameters=3_754_622_976, hidden=2048, vision_hidden=1280, patch=14),
    "qwen2.5-vl-7b": RewardShape(name="Qwen2.5-VL-7B", parameters=8_292_166_656, hidden=3584, vision_hidden=1280, patch=14),
    "qwen3-vl-2b": RewardShape(name="Qwen3-VL-2B", parameters=2_127_532_032, hidden=2048, vision_hidden=1024, patch=16),
    "qwen3-vl-4b": RewardShape(name="Qwen3-VL-4B", parameters=4_437_815_808, hidden=2560, vision_hidden=1024, patch=16),
    "qwen3-vl-8b": RewardShape(name="Qwen3-VL-8B", parameters=8_767_123_696, hidden=4096, vision_hidden=1152, patch=16),
}


def shape_of(path: str) -> DiffusionShape:
    """The shape of a local directory in the diffusers format, or of a hub id of a known family. Raises UserError for neither."""
    if Path(path).is_dir():
        return _read_diffusion(Path(path))
    for name, shape in FAMILIES.items():
        if name in path.lower():
            return shape
    known = ", ".join(dict.fromkeys(shape.name for shape in FAMILIES.values()))
    raise UserError(
        f"model.path {path!r}: neither a directory nor a hub id of a known family ({known}); download it and give its directory"
    )


def reward_shape_of(path: str) -> RewardShape:
    """The shape of a local Qwen-VL directory or of a known hub id. Raises UserError for neither."""
    if Path(path).is_dir():
        return _read_reward(Path(path))
    for name, shape in REWARD_MODELS.items():
        if name in path.lower():
            return shape
    known = ", ".join(shape.name for shape in REWARD_MODELS.values())
    raise UserError(
        f"rewards.preference.path {path!r}: neither a directory nor a known hub id ({known}); download it and give its directory"
    )


def _read_diffusion(directory: Path) -> DiffusionShape:
    unet, vae = _json(directory / "unet/config.json"), _json(directory / "vae/config.json")
    encoders = sorted(folder for folder in directory.glob("text_encoder*") if folder.is_dir())
    if not encoders:
        raise UserError(f"{directory}: no text_encoder folder; give a pipeline directory in the diffusers format")
    channels = tuple(unet["block_out_channels"])
    depths = _per_level(unet.get("transformer_layers_per_block", 1), len(channels))
    size = unet["sample_size"]
    vae_channels = tuple(vae["block_out_channels"])
    factor = 2 ** (len(vae_channels) - 1)
    height, width = (size, size) if isinstance(size, int) else size
    return DiffusionShape(
        name=directory.name,
        unet_parameters=parameters_in(directory / "unet"),
        other_parameters=sum(parameters_in(folder) for folder in [*encoders, directory / "vae"]),
        channels=channels,
        layers=max(_per_level(unet["layers_per_block"], len(channels))),
        transformers=tuple(d if "Attn" in kind else 0 for d, kind in zip(depths, unet["down_block_types"], strict=True)),
        cross_attention_dim=unet["cross_attention_dim"],
        latent_channels=vae["latent_channels"],
        vae_channels=vae_channels,
        pixels=(height * factor, width * factor),
        encoders=len(encoders),
        tokens=min(_tokens(folder, directory / folder.name.replace("text_encoder", "tokenizer")) for folder in encoders),
    )


def _read_reward(directory: Path) -> RewardShape:
    config = _json(directory / "config.json")
    text, vision = config.get("text_config", config), config["vision_config"]
    return RewardShape(
        name=directory.name,
        parameters=parameters_in(directory),
        hidden=text["hidden_size"],
        vision_hidden=vision.get("embed_dim", vision["hidden_size"]),
        patch=vision["patch_size"],
    )


def _tokens(encoder: Path, tokenizer: Path) -> int:
    longest = _json(encoder / "config.json")["max_position_embeddings"]
    return min(longest, _json(tokenizer / "tokenizer_config.json").get("model_max_length", longest))


def _per_level(value: Any, levels: int) -> list[int]:
    return list(value) if isinstance(value, (list, tuple)) else [value] * levels


def parameters_in(directory: Path) -> int:
    """Parameters in the safetensors files of a folder, from their headers: 8 bytes of length, then JSON."""
    # A folder may hold one set of weights in two precisions: the variant files (name.fp16.safetensors) are the second.
    files = [file for file in directory.glob("*.safetensors") if ".fp16" not in file.name] or list(directory.glob("*.safetensors"))
    if not files:
        raise UserError(f"{directory}: no *.safetensors file; give a model directory with its weights")
    total = 0
    for file in files:
        try:
            with file.open("rb") as stream:
                (length,) = struct.unpack("<Q", stream.read(8))
                header = json.loads(stream.read(length))
        except (struct.error, ValueError, OverflowError, MemoryError):
            raise UserError(f"{file}: not a safetensors file; download it again") from None
        total += sum(prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    return total


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        raise UserError(f"{path}: missing or not JSON; give a model directory as `save_pretrained` writes it") from None
