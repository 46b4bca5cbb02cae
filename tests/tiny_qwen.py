"""Tiny Qwen-VL directories with seeded random weights: real `save_pretrained` output, byte-level tokenizer included."""

from pathlib import Path

import torch
from tokenizers import pre_tokenizers
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
PATCH = 4
VISION = {"depth": 2, "num_heads": 2, "patch_size": PATCH, "spatial_merge_size": 2, "temporal_patch_size": 2, "in_channels": 3}
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 512,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
}


def make_tiny_qwen(path: str | Path, family: str = "qwen2_5_vl", seed: int = 0, heads: int = 2) -> Path:
    """A Qwen2-VL, Qwen2.5-VL or Qwen3-VL of about 40k parameters: 4-pixel patches, merged 2 x 2, images of any size.

    heads: of the language model, 1 or 2. vLLM has attention for heads of at least 32 on a CPU, that is for one.
    """
    vocab = {token: i for i, token in enumerate([*sorted(pre_tokenizers.ByteLevel.alphabet()), *SPECIAL])}
    tokens = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
    tokens |= {"vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"}
    ids = {name: vocab[token] for name, token in tokens.items()}
    torch.manual_seed(seed)
    text = {**TEXT, "vocab_size": len(vocab), "num_attention_heads": heads}
    if heads == 1:
        text["rope_parameters"] = {**TEXT["rope_parameters"], "mrope_section": [4, 6, 6]}
    model = _network(family, text, ids)
    with torch.no_grad():  # the default initialisation is too small for two images to be told apart
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.eval().save_pretrained(path)
    Qwen2Tokenizer(vocab, [], additional_special_tokens=list(SPECIAL[1:])).save_pretrained(path)
    size = {"shortest_edge": 16 * 16, "longest_edge": 32 * 32}
    Qwen2VLImageProcessorPil(patch_size=PATCH, merge_size=2, temporal_patch_size=2, size=size).save_pretrained(path)
    return Path(path)


def _network(family: str, text: dict, ids: dict[str, int]) -> torch.nn.Module:
    width = text["hidden_size"]
    if family == "qwen2_vl":
        vision = {**VISION, "embed_dim": 16, "hidden_size": width, "mlp_ratio": 2}
        return Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text, vision_config=vision, **ids))
    if family == "qwen2_5_vl":
        vision = {**VISION, "hidden_size": 16, "intermediate_size": 32, "out_hidden_size": width}
        vision |= {"window_size": 4 * PATCH, "fullatt_block_indexes": [1]}
        return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids))
    vision = {**VISION, "hidden_size": 16, "intermediate_size": 32, "out_hidden_size": width}
    vision |= {"num_position_embeddings": 64, "deepstack_visual_indexes": [0]}
    rope = {**text["rope_parameters"], "mrope_interleaved": True}
    text = {**text, "head_dim": width // text["num_attention_heads"], "rope_parameters": rope}
    return Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=text, vision_config=vision, **ids))
