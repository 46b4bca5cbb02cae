"""The published ImageReward checkpoint (arXiv:2304.05977): the names of its tensors in the authors' code, and ours."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from transformers import BlipConfig

from omr_ray.vlm.image_reward import ImageReward
from omr_ray.weights import reported

UNUSED = ("blip.vision_proj.", "blip.text_proj.", "blip.text_encoder.embeddings.position_ids")
RENAMED = {
    "blip.visual_encoder.cls_token": "vision_model.embeddings.class_embedding",
    "blip.visual_encoder.pos_embed": "vision_model.embeddings.position_embedding",
    "blip.visual_encoder.patch_embed.proj.": "vision_model.embeddings.patch_embedding.",
    "blip.visual_encoder.blocks.": "vision_model.encoder.layers.",
    "blip.visual_encoder.norm.": "vision_model.post_layernorm.",
    "blip.text_encoder.": "text_encoder.",  # BERT's names on both sides
    **{f"mlp.layers.{theirs}.": f"head.{ours}." for ours, theirs in enumerate((0, 2, 4, 6, 7))},  # dropout lies between
}
IN_A_BLOCK = {
    ".norm1.": ".layer_norm1.",
    ".norm2.": ".layer_norm2.",
    ".attn.qkv.": ".self_attn.qkv.",
    ".attn.proj.": ".self_attn.projection.",
}


def from_original(state: Mapping[str, np.ndarray]) -> ImageReward:
    """A model from the tensors of the published checkpoint, by their names in the authors' code.

    Sizes are read off the shapes; an attention head has 64 channels in both encoders. The projections that BLIP was
    pretrained with are left out. Raises UserError for a tensor that is missing, unknown or of another shape.
    """
    tensors = {new: torch.tensor(state[old]) for old in state if (new := _renamed(old)) is not None}
    with reported("the checkpoint", "give the tensors of ImageReward.pt under their own names"):
        model = ImageReward(_config_of(tensors)).eval()
        model.load_state_dict(tensors)
    return model


def _renamed(name: str) -> str | None:
    """Our name of one of their tensors; None for one that scoring does not use."""
    if name.startswith(UNUSED):
        return None
    for theirs, ours in RENAMED.items():
        if name.startswith(theirs):
            name = ours + name.removeprefix(theirs)
            break
    if name.startswith("vision_model.encoder."):
        for theirs, ours in IN_A_BLOCK.items():
            name = name.replace(theirs, ours)
    return name


def _config_of(tensors: Mapping[str, Tensor]) -> BlipConfig:
    vision, text = "vision_model.embeddings.", "text_encoder.embeddings."
    width, patch = tensors[vision + "patch_embedding.weight"].shape[0], tensors[vision + "patch_embedding.weight"].shape[-1]
    words, hidden = tensors[text + "word_embeddings.weight"].shape
    return BlipConfig(
        vision_config={
            "hidden_size": width,
            "intermediate_size": tensors["vision_model.encoder.layers.0.mlp.fc1.weight"].shape[0],
            "num_hidden_layers": _layers(tensors, "vision_model.encoder.layers."),
            "num_attention_heads": max(width // 64, 1),
            "image_size": patch * round((tensors[vision + "position_embedding"].shape[1] - 1) ** 0.5),
            "patch_size": patch,
            "layer_norm_eps": 1e-6,
        },
        text_config={
            "vocab_size": words,
            "hidden_size": hidden,
            "intermediate_size": tensors["text_encoder.encoder.layer.0.intermediate.dense.weight"].shape[0],
            "num_hidden_layers": _layers(tensors, "text_encoder.encoder.layer."),
            "num_attention_heads": max(hidden // 64, 1),
            "max_position_embeddings": tensors[text + "position_embeddings.weight"].shape[0],
        },
    )


def _layers(tensors: Mapping[str, Tensor], prefix: str) -> int:
    return len({name.removeprefix(prefix).split(".")[0] for name in tensors if name.startswith(prefix)})
