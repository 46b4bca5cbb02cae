"""The untrained Qwen2.5-VL of the embedded world (arXiv:2502.13923), as the reward model and the language model are built."""

from typing import Any

from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

WIDTH = 128
PIXELS = 64 * 64


def build_qwen(tokenizer: Qwen2Tokenizer, *, layers: int, positions: int) -> tuple[Any, Qwen2VLImageProcessorPil]:
    """The network and its image processor: 8-pixel patches merged 2x2, so 16 image tokens for 64x64 pixels."""
    ids: Any = tokenizer.convert_tokens_to_ids
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": WIDTH,
            "intermediate_size": 320,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": positions,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
            "tie_word_embeddings": True,
            "bos_token_id": ids("<|endoftext|>"),
            "eos_token_id": ids("<|im_end|>"),
        },
        vision_config={
            "depth": 3,
            "hidden_size": 96,
            "num_heads": 4,
            "intermediate_size": 256,
            "patch_size": 8,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "out_hidden_size": WIDTH,
            "fullatt_block_indexes": [0, 1, 2],
        },
        tie_word_embeddings=True,
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
    )
    size = {"shortest_edge": PIXELS, "longest_edge": PIXELS}
    processor = Qwen2VLImageProcessorPil(patch_size=8, merge_size=2, temporal_patch_size=2, size=size)
    return Qwen2_5_VLForConditionalGeneration(config), processor
