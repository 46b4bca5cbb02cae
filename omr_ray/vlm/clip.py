"""How well images fit texts, and texts one another, by CLIP: cosines of embeddings (TDRI eq. 5; OMR table 1, fig. 6)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from omr_ray.vlm.engine import Images
from omr_ray.weights import check_directory, reported


class Clip:
    """A frozen CLIP in float32.

    Example: Clip.from_pretrained(WEIGHTS / "clip").score(images, ["a red dress"] * len(images))
    """

    def __init__(self, network: Any, tokenizer: Any, image_processor: Any) -> None:
        self.network, self.tokenizer, self.image_processor = network.eval().requires_grad_(False), tokenizer, image_processor

    @classmethod
    def from_pretrained(cls, path: str | Path, device: str = "cpu") -> Clip:
        """From a directory in the transformers format, or a hub id. Raises UserError for missing, damaged or pickled weights."""
        if Path(path).is_dir():
            check_directory(path)
        with reported(path):
            network: Any = CLIPModel.from_pretrained(path, dtype=torch.float32, use_safetensors=True)
            return cls(network.to(device), CLIPTokenizer.from_pretrained(path), CLIPImageProcessorPil.from_pretrained(path))

    @torch.no_grad()
    def embed_images(self, images: Images, batch_size: int = 64) -> Tensor:
        """Unit vectors f32 [N D], on the CPU, of u8 images [N H W 3] of any sizes."""
        parts = []
        for start in range(0, len(images), batch_size):
            pixels = self.image_processor(list(images[start : start + batch_size]), return_tensors="pt", input_data_format="channels_last")
            parts.append(self.network.get_image_features(pixels.pixel_values.to(self.network.device)).pooler_output)
        return F.normalize(torch.cat(parts), dim=1).cpu()

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """Unit vectors f32 [N D], on the CPU; what is longer than the context is cut off."""
        parts = []
        for start in range(0, len(texts), batch_size):
            inputs = self.tokenizer(list(texts[start : start + batch_size]), padding="max_length", truncation=True, return_tensors="pt")
            parts.append(self.network.get_text_features(**inputs.to(self.network.device)).pooler_output)
        return F.normalize(torch.cat(parts), dim=1).cpu()

    def score(self, images: Images, texts: Sequence[str]) -> Tensor:
        """Cosine of each image and its text, f32 [N] (the CLIP score is this times 100)."""
        return (self.embed_images(images) * self.embed_texts(texts)).sum(1)
