"""How well images fit texts, and one another, by BLIP's retrieval embeddings (arXiv:2201.12086; OMR table 1, TDRI table 1)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoTokenizer, BlipForImageTextRetrieval
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from omr_ray.vlm.engine import Images
from omr_ray.weights import check_directory, reported


class Blip:
    """A frozen BlipForImageTextRetrieval in float32: the cosines of its contrastive (ITC) embeddings."""

    def __init__(self, network: Any, tokenizer: Any, image_processor: Any) -> None:
        self.network, self.tokenizer, self.image_processor = network.eval().requires_grad_(False), tokenizer, image_processor

    @classmethod
    def from_pretrained(cls, path: str | Path, device: str = "cpu") -> Blip:
        """From a directory in the transformers format, or a hub id. Raises UserError for missing, damaged or pickled weights."""
        if Path(path).is_dir():
            check_directory(path)
        with reported(path):
            network: Any = BlipForImageTextRetrieval.from_pretrained(path, dtype=torch.float32, use_safetensors=True)
            return cls(network.to(device), AutoTokenizer.from_pretrained(path), BlipImageProcessorPil.from_pretrained(path))

    @torch.no_grad()
    def embed_images(self, images: Images, batch_size: int = 32) -> Tensor:
        """Unit vectors f32 [N D], on the CPU, of u8 images [N H W 3] of any sizes."""
        parts = []
        for start in range(0, len(images), batch_size):
            pixels = self.image_processor(list(images[start : start + batch_size]), return_tensors="pt", input_data_format="channels_last")
            seen = self.network.vision_model(pixel_values=pixels.pixel_values.to(self.network.device)).last_hidden_state
            parts.append(self.network.vision_proj(seen[:, 0]))
        return F.normalize(torch.cat(parts), dim=1).cpu()

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str], batch_size: int = 128) -> Tensor:
        """Unit vectors f32 [N D], on the CPU; what is longer than the context is cut off."""
        parts = []
        for start in range(0, len(texts), batch_size):
            inputs = self.tokenizer(list(texts[start : start + batch_size]), padding=True, truncation=True, return_tensors="pt")
            inputs = inputs.to(self.network.device)
            read = self.network.text_encoder(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask).last_hidden_state
            parts.append(self.network.text_proj(read[:, 0]))
        return F.normalize(torch.cat(parts), dim=1).cpu()
