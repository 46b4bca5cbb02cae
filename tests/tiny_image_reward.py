"""A tiny ImageReward directory with seeded random weights, in the format that `jobs/convert_imagereward.py` writes."""

from pathlib import Path

import torch
from transformers import BertTokenizer, BlipConfig

from omr_ray.vlm.image_reward import ImageReward

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "blue", "coat", "hat")
SIDE = 16


def tiny_image_reward(seed: int = 0) -> ImageReward:
    """Two layers a side, images of 16 pixels in patches of 8; the published widths in the head alone."""
    torch.manual_seed(seed)
    sizes = {"intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 1}
    config = BlipConfig(
        vision_config={**sizes, "hidden_size": 12, "image_size": SIDE, "patch_size": 8, "layer_norm_eps": 1e-6},
        text_config={**sizes, "hidden_size": 8, "vocab_size": len(WORDS), "max_position_embeddings": 40},
    )
    model = ImageReward(config)
    with torch.no_grad():  # the default initialisation is too small for two images to be told apart
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def tokenizer() -> BertTokenizer:
    return BertTokenizer(vocab={word: index for index, word in enumerate(WORDS)})


def make_tiny_image_reward(path: str | Path, seed: int = 0) -> Path:
    tiny_image_reward(seed).save_directory(path, tokenizer())
    return Path(path)
