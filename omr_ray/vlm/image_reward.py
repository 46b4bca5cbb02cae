"""ImageReward (arXiv:2304.05977): a BLIP whose text encoder looks at the image, and an MLP on its [CLS] state."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoTokenizer
from transformers.models.blip.modeling_blip import BlipPreTrainedModel, BlipVisionModel
from transformers.models.blip.modeling_blip_text import BlipTextModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from omr_ray.types import UserError
from omr_ray.weights import check_directory, reported

MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of the published model's scores
LONGEST_PROMPT = 35  # tokens
WIDTHS = (1024, 128, 64, 16, 1)  # of the head, whose layers follow one another without an activation


class ImageReward(BlipPreTrainedModel):
    """r(image, prompt) = (head([CLS] of the text encoder, attending to the image) - mean) / std.

    A directory holds config.json (a BlipConfig), model.safetensors with the head in it, the tokenizer and the image
    processor: `save_directory` writes it, `load` reads it.
    """

    tokenizer: Any
    image_processor: CLIPImageProcessorPil

    def __init__(self, config: Any):  # a BlipConfig
        super().__init__(config)
        self.vision_model = BlipVisionModel(config.vision_config)
        self.text_encoder = BlipTextModel(config.text_config, add_pooling_layer=False)
        widths = (config.text_config.hidden_size, *WIDTHS)
        self.head = nn.Sequential(*(nn.Linear(before, after) for before, after in zip(widths, WIDTHS, strict=False)))
        self.post_init()

    @classmethod
    def load(cls, path: str | Path, *, dtype: str = "float32", device: str = "cpu") -> ImageReward:
        """A frozen model in evaluation mode. Raises UserError for a directory that is missing, incomplete or damaged, or holds pickles."""
        check_directory(path)
        with reported(path):
            loaded: Any = cls.from_pretrained(str(path), dtype=dtype, use_safetensors=True, output_loading_info=True)
            model, loading = loaded
            model.tokenizer, model.image_processor = AutoTokenizer.from_pretrained(path), CLIPImageProcessorPil.from_pretrained(path)
        if loading["missing_keys"]:
            names = sorted(loading["missing_keys"])
            raise UserError(f"ImageReward {path}: {len(names)} weights are missing, the first is {names[0]!r}; convert it again")
        model.head.float()  # its last layers would lose digits that the ranking of siblings needs
        return model.to(device).eval().requires_grad_(False)

    def save_directory(self, path: str | Path, tokenizer: Any) -> None:
        """Everything that `load` reads. Images become squares of the vision model's size: shorter side, then the middle."""
        side = self.config.vision_config.image_size  # type: ignore[union-attr]
        self.save_pretrained(path)
        tokenizer.save_pretrained(path)
        CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side}).save_pretrained(path)

    def forward(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Scores float32 [N] of normalised images [N 3 H W] under prompts of L tokens, ids and mask i64 [N L]."""
        image = self.vision_model(pixel_values=pixel_values).last_hidden_state
        read = self.text_encoder(input_ids=input_ids, attention_mask=attention_mask, encoder_hidden_states=image)
        return (self.head(read.last_hidden_state[:, 0].float()).squeeze(1) - MEAN) / STD

    @torch.no_grad()
    def score(self, images: np.ndarray, prompts: Sequence[str]) -> Tensor:
        """Scores of images u8 [N H W 3] under N prompts, float32 [N] on the CPU. Prompts are cut off at 35 tokens."""
        pixels = self.image_processor(list(images), return_tensors="pt")["pixel_values"]
        text = self.tokenizer(
            [str(prompt) for prompt in prompts], padding=True, truncation=True, max_length=LONGEST_PROMPT, return_tensors="pt"
        )
        on_device = (part.to(self.device) for part in (pixels, text["input_ids"], text["attention_mask"]))
        return self(*on_device).cpu()
