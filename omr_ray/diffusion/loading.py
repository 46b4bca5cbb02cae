"""The parts of a Stable Diffusion 1.x, 2.x or SDXL pipeline that a policy needs, from a directory or a hub id."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, DiffusionPipeline, UNet2DConditionModel
from huggingface_hub import snapshot_download
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from omr_ray.types import UserError
from omr_ray.weights import check_directory, reported

SHARED_PARTS = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")
TEXT_ENCODERS: dict[str, Any] = {"CLIPTextModel": CLIPTextModel, "CLIPTextModelWithProjection": CLIPTextModelWithProjection}


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Frozen, in evaluation mode, on the CPU. (diffusers' classes carry no types that a checker can follow.)"""

    unet: Any  # UNet2DConditionModel
    vae: Any  # AutoencoderKL
    text_encoders: tuple[Any, ...]  # CLIP text models: one, or two for SDXL
    tokenizers: tuple[Any, ...]
    scheduler: Any  # DDIMScheduler: whatever the directory's scheduler is, its noise schedule read as DDIM
    zero_empty_prompt: bool  # SDXL: the unconditional branch gets zeros instead of an encoded empty prompt


def load_parts(path: str, dtype: torch.dtype) -> Parts:
    """Load UNet, VAE, text encoders, tokenizers and noise schedule; nothing else of the pipeline is read.

    Raises UserError for a missing, incomplete, damaged or pickled model, or a pipeline of another kind.
    """
    index = _model_index(path)
    names = [name for name in ("text_encoder", "text_encoder_2") if (index.get(name) or [None])[0]]
    _check_kind(path, index, names)
    if Path(path).is_dir():
        check_directory(path, parts=("unet", "vae", *names))
    encoders = tuple(_model(TEXT_ENCODERS[index[name][1]], path, name, dtype) for name in names)
    unet, vae = _model(UNet2DConditionModel, path, "unet", dtype), _model(AutoencoderKL, path, "vae", dtype)
    if unet.config.in_channels != vae.config.latent_channels:
        raise UserError(
            f"{path}: its UNet takes {unet.config.in_channels} channels and its VAE makes {vae.config.latent_channels} "
            "(an inpainting or editing model); take a text-to-image model"
        )
    tokenizers = tuple(_tokenizer(path, name.replace("text_encoder", "tokenizer")) for name in names)
    with reported(f"{path}/scheduler"):
        scheduler = DDIMScheduler.from_config(DDIMScheduler.load_config(path, subfolder="scheduler"))
    zero_empty_prompt = len(encoders) == 2 and bool(index.get("force_zeros_for_empty_prompt", True))
    return Parts(
        unet=unet, vae=vae, text_encoders=encoders, tokenizers=tokenizers, scheduler=scheduler, zero_empty_prompt=zero_empty_prompt
    )


def load_controlnet(path: str, parts: Parts) -> Any:
    """The ControlNet at `path`, a directory or a hub id, in the precision of the UNet it guides; frozen, on the CPU.

    Raises UserError for one that is missing, damaged or pickled, or that was made for another UNet or image size.
    """
    if Path(path).is_dir():
        check_directory(Path(path).parent, parts=(Path(path).name,))
    elif path.count("/") != 1 or path.startswith((".", "/", "~")):
        raise UserError(f"model.controlnet {path!r}: no such directory; give a ControlNet in the diffusers format, or leave it out")
    controlnet = _model(ControlNetModel, path, None, parts.unet.dtype)
    for name in ("in_channels", "cross_attention_dim", "block_out_channels", "layers_per_block", "addition_embed_type"):
        wanted, found = parts.unet.config[name], controlnet.config[name]
        if found != wanted:
            raise UserError(f"{path}: made for another UNet ({name} {found}, here {wanted}); take a ControlNet of this model")
    factor, wanted = (
        2 ** (len(sides) - 1) for sides in (controlnet.config.conditioning_embedding_out_channels, parts.vae.config.block_out_channels)
    )
    if factor != wanted:
        raise UserError(
            f"{path}: it takes images {factor} times the latent's size, here they are {wanted} times; take a ControlNet of this model"
        )
    return controlnet


def save_pipeline(path: str, unet: Any, directory: Path) -> None:
    """The pipeline at `path`, a directory or a hub id that was loaded before, with `unet` in the place of its own."""
    source = Path(path) if Path(path).is_dir() else Path(snapshot_download(path, local_files_only=True))
    directory.mkdir(parents=True, exist_ok=True)
    for name in SHARED_PARTS:
        if (source / name).is_dir():
            shutil.copytree(source / name, directory / name, dirs_exist_ok=True)
    unet.save_pretrained(directory / "unet")
    shutil.copyfile(source / "model_index.json", directory / "model_index.json")  # last: without it nothing loads


def _model_index(path: str) -> dict[str, Any]:
    folder = Path(path)
    if folder.is_dir():
        with reported(folder / "model_index.json"):
            return json.loads((folder / "model_index.json").read_text())
    if path.count("/") != 1 or path.startswith((".", "/", "~")):
        raise UserError(f"model.path {path!r}: no such directory; give a diffusers model directory or a hub id like owner/name")
    with reported(path, remedy="check the hub id and the network, or give a directory"):
        return DiffusionPipeline.load_config(path)


def _check_kind(path: str, index: dict[str, Any], text_encoders: list[str]) -> None:
    """Only pipelines of the Stable Diffusion 1.x, 2.x and SDXL architecture; others would fail later, and less clearly."""
    expected = {"unet": ("UNet2DConditionModel",), "vae": ("AutoencoderKL",), **{name: tuple(TEXT_ENCODERS) for name in text_encoders}}
    found = {name: (index.get(name) or [None, None])[1] for name in expected}
    wrong = {name: kind for name, kind in found.items() if kind not in expected[name]}
    if wrong or not text_encoders:
        raise UserError(
            f"{path}: not a Stable Diffusion 1.x, 2.x or SDXL pipeline ({index.get('_class_name')}, {wrong or 'no text encoder'}); take one"
        )


def _model(kind: Any, path: str, part: str | None, dtype: torch.dtype) -> Any:
    """One model, from safetensors only. A tensor that is missing would otherwise be random: that is an error here."""
    place = path if part is None else f"{path}/{part}"
    with reported(place):
        model, info = kind.from_pretrained(path, subfolder=part, use_safetensors=True, dtype=dtype, output_loading_info=True)
    lacking = sorted(str(key) for key in [*info["missing_keys"], *info["mismatched_keys"]])
    if lacking:
        raise UserError(f"{place}: {len(lacking)} tensors are missing or misshaped, first {lacking[0]}; fetch the model again")
    return model.eval().requires_grad_(False)


def _tokenizer(path: str, part: str) -> Any:
    with reported(f"{path}/{part}"):
        tokenizer = CLIPTokenizer.from_pretrained(path, subfolder=part)
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # what transformers makes of a folder that is empty or absent
        raise UserError(f"{path}/{part}: no vocabulary in it; fetch the model again")
    return tokenizer
