"""A reward model that can be trained: fresh or pretrained, in full or by QLoRA (arXiv:2305.14314), and how it is stored."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, BitsAndBytesConfig
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from omr_ray.types import UserError
from omr_ray.vlm.reward_model import FAMILIES, RewardModel
from omr_ray.weights import check_directory, reported

# Attention and feed-forward, of the language model and of the vision tower, as the three families name them.
PROJECTIONS = r".*\.(q_proj|k_proj|v_proj|o_proj|qkv|attn\.proj|gate_proj|up_proj|down_proj|fc1|fc2|linear_fc1|linear_fc2)"


class TrainableRewardModel(RewardModel):
    """A RewardModel of which `trainable()` learns; the rest is frozen."""

    @classmethod
    def load(
        cls,
        path: str,
        *,
        scratch: bool,
        dtype: str,
        quantization: str | None,
        head: Any,
        lora: tuple[int, int] | None,
        seed: int,
        device: str,
        gradient_checkpointing: bool = False,
    ) -> TrainableRewardModel:
        """Two processes that call this with equal arguments hold equal weights. lora: rank and alpha; None trains everything.

        Raises UserError as `RewardModel.from_pretrained`.
        """
        if Path(path).exists():
            check_directory(path)
        torch.manual_seed(seed)
        with reported(path):
            settings = AutoConfig.from_pretrained(path)
            if settings.model_type not in FAMILIES:
                raise UserError(f"reward model {path}: its family must be one of {', '.join(FAMILIES)}, got {settings.model_type!r}")
            if scratch:
                network = AutoModel.from_config(settings, dtype=getattr(torch, dtype))
            else:
                options: dict[str, Any] = {"dtype": dtype, "use_safetensors": True}
                if quantization == "nf4":
                    options["quantization_config"] = BitsAndBytesConfig(
                        load_in_4bit=True,
                        bnb_4bit_quant_type="nf4",
                        bnb_4bit_use_double_quant=True,
                        bnb_4bit_compute_dtype=getattr(torch, dtype),
                    )
                    options["device_map"] = {"": device}
                network = AutoModel.from_pretrained(path, **options)
            tokenizer, processor = AutoTokenizer.from_pretrained(path), Qwen2VLImageProcessorPil.from_pretrained(path)
        if gradient_checkpointing:
            network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if lora is not None:
            network.requires_grad_(False)
            rank, alpha = lora
            network = get_peft_model(network, LoraConfig(r=rank, lora_alpha=alpha, target_modules=PROJECTIONS))
            for parameter in network.parameters():
                if parameter.requires_grad:
                    parameter.data = parameter.data.float()
        model = cls(network, tokenizer, processor, head)
        return model if quantization else model.to(device)

    def trainable(self) -> dict[str, nn.Parameter]:
        """Parameters that learn, by name."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    @contextmanager
    def adapter_off(self) -> Iterator[None]:
        """The frozen model (and, with a linear head, the head's starting point, the mean)."""
        head, self.head = self.head, None
        try:
            with self.network.disable_adapter():
                yield
        finally:
            self.head = head

    def save(self, path: Path, base: str) -> None:
        """What `loading.reward_model_from` reads: a PEFT adapter that names its `base`, or the whole model; and the head."""
        if isinstance(self.network, PeftModel):
            self.network.peft_config["default"].base_model_name_or_path = base
            self.network.save_pretrained(str(path))
            self.save_head(path)
        else:
            self.save_pretrained(path)
