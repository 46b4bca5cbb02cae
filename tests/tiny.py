"""Tiny Stable Diffusion directories with seeded random weights: real `save_pretrained` output, tokenizer included."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, CLIPVisionConfig
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

WIDTH = 16  # of a text encoder
TOKENS = 16


def make_tiny_sd(path: str | Path, prediction_type: str = "epsilon", seed: int = 0) -> Path:
    """A StableDiffusionPipeline: latents 4x8x8, images 16x16."""
    torch.manual_seed(seed)
    StableDiffusionPipeline(
        unet=_unet(cross_attention_dim=WIDTH),
        vae=_vae(),
        text_encoder=CLIPTextModel(_text_config()).eval(),
        tokenizer=tokenizer(),
        scheduler=_scheduler(prediction_type),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(path)
    return Path(path)


def make_tiny_sdxl(path: str | Path, seed: int = 0) -> Path:
    """A StableDiffusionXLPipeline with two text encoders, pooled text and time ids."""
    torch.manual_seed(seed)
    StableDiffusionXLPipeline(
        unet=_unet(
            cross_attention_dim=2 * WIDTH,
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=6 * 4 + WIDTH,
        ),
        vae=_vae(),
        text_encoder=CLIPTextModel(_text_config()).eval(),
        text_encoder_2=CLIPTextModelWithProjection(_text_config()).eval(),
        tokenizer=tokenizer(),
        tokenizer_2=tokenizer(),
        scheduler=_scheduler("epsilon"),
    ).save_pretrained(path)
    return Path(path)


def make_tiny_clip(path: str | Path, seed: int = 0) -> Path:
    """A CLIPModel with vectors of 16 numbers, its tokenizer and its image processor."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = CLIPVisionConfig(image_size=16, patch_size=8, projection_dim=WIDTH, **sizes)
    config = CLIPConfig(text_config=_text_config().to_dict(), vision_config=vision.to_dict(), projection_dim=WIDTH)
    size = {"height": 16, "width": 16}
    for part in (CLIPModel(config).eval(), tokenizer(), CLIPImageProcessorPil(size=size, crop_size=size)):
        part.save_pretrained(path)
    return Path(path)


def _unet(**options) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=2,
        **options,
    )


def _vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=16,
        mid_block_add_attention=False,
    )


def _text_config() -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=2 * 256 + 2,
        hidden_size=WIDTH,
        projection_dim=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=TOKENS,
        bos_token_id=2 * 256,
        eos_token_id=2 * 256 + 1,
        pad_token_id=2 * 256 + 1,
    )


def tokenizer() -> CLIPTokenizer:
    """A byte-level CLIP tokenizer without merges: one token a letter."""
    letters = _byte_letters()
    vocabulary = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: index for index, token in enumerate(vocabulary)}, merges=[], model_max_length=TOKENS)


def _byte_letters() -> list[str]:
    """The 256 letters that stand for bytes in byte-level BPE: printable ones for themselves, the rest from U+0100 on."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) if byte in printable else chr(256 + others.index(byte)) for byte in range(256)]


def _scheduler(prediction_type: str) -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )
