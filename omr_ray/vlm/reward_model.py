"""The preference reward: a Qwen-VL network without its last linear layer (OMR section 3.2, eq. 8)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from omr_ray.types import UserError
from omr_ray.vlm.inputs import QwenInputs
from omr_ray.weights import check_directory, read_safetensors, reported, write_safetensors_atomic

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
HEAD_FILE = "reward_head.safetensors"


def linear_head(width: int) -> nn.Linear:
    """A scalar head that starts as the mean."""
    head = nn.Linear(width, 1)
    nn.init.constant_(head.weight, 1 / width)
    nn.init.zeros_(head.bias)
    return head


class RewardModel(nn.Module):
    """r(image, prompt) = mean over the last hidden state at the answer position: the "logits' mean" of OMR section 3.2.

    The hidden state is the one that the removed linear layer would have read. `head="linear"` replaces the mean by a
    learned scalar head that starts as the mean.
    """

    def __init__(self, network: Any, tokenizer: Any, image_processor: Qwen2VLImageProcessorPil, head: Literal["mean", "linear"] = "mean"):
        super().__init__()
        self.network: Any = network  # a family's base model, or its ForConditionalGeneration, whose last layer is passed over
        self.inputs = QwenInputs(tokenizer, image_processor)
        self.head = linear_head(network.config.text_config.hidden_size) if head == "linear" else None

    @classmethod
    def from_pretrained(
        cls, path: str | Path, *, dtype: str = "float32", device: str = "cpu", head: Literal["mean", "linear"] = "mean"
    ) -> RewardModel:
        """A frozen reward model in evaluation mode, from a directory in the transformers format or a hub id.

        Raises UserError for a missing directory, weights that are not safetensors, are damaged or incomplete, and for
        other families than Qwen2-VL, Qwen2.5-VL and Qwen3-VL.
        """
        path = str(path)
        if Path(path).exists() or not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", path):
            check_directory(path)
        with reported(path):
            family = AutoConfig.from_pretrained(path).model_type
            if family not in FAMILIES:
                raise UserError(f"reward model {path}: its family must be one of {', '.join(FAMILIES)}, got {family!r}; take another model")
            network, loading = AutoModel.from_pretrained(path, dtype=dtype, use_safetensors=True, output_loading_info=True)
            tokenizer, processor = AutoTokenizer.from_pretrained(path), Qwen2VLImageProcessorPil.from_pretrained(path)
        if loading["missing_keys"]:
            names = sorted(loading["missing_keys"])
            raise UserError(f"reward model {path}: {len(names)} weights are missing, the first is {names[0]!r}; fetch it again")
        model = cls(network, tokenizer, processor, "linear" if (Path(path) / HEAD_FILE).exists() else head)
        model.load_head(path)
        return model.to(device).eval().requires_grad_(False)

    def with_adapter(self, path: str | Path) -> RewardModel:
        """This model with a PEFT adapter merged into its weights, and the adapter's head. Raises UserError as `from_pretrained`."""
        check_directory(path)
        with reported(path):
            self.network = PeftModel.from_pretrained(self.network, str(path)).merge_and_unload()
        if self.head is None and (Path(path) / HEAD_FILE).exists():
            self.head = linear_head(self.network.config.text_config.hidden_size).to(self.device)
        self.load_head(path)
        return self.eval().requires_grad_(False)  # type: ignore[return-value]

    def load_head(self, path: str | Path) -> None:
        """The linear head that lies at `path`, if this model has one and there is one."""
        file = Path(path) / HEAD_FILE
        if self.head is not None and file.exists():
            weights = {name: torch.tensor(value) for name, value in read_safetensors(file).items()}
            with reported(file):
                self.head.load_state_dict(weights)

    def save_head(self, path: str | Path) -> None:
        if self.head is not None:
            arrays = {name: value.float().cpu().numpy() for name, value in self.head.state_dict().items()}
            write_safetensors_atomic(Path(path) / HEAD_FILE, arrays, {"head": "linear"})

    def save_pretrained(self, path: str | Path) -> None:
        """Network, tokenizer, image processor and, where there is one, the head; `from_pretrained` reads it back."""
        self.network.save_pretrained(path)
        self.inputs.tokenizer.save_pretrained(path)
        self.inputs.image_processor.save_pretrained(path)
        self.save_head(path)

    def score_tensor(self, images: Tensor | Sequence[Tensor], prompts: Sequence[str]) -> Tensor:
        """Differentiable rewards of images [N, 3, H, W] in [0, 1], or N of any sizes, under N prompts, float32 [N] (OMR eq. 8)."""
        on_device = images.to(self.device) if isinstance(images, Tensor) else [image.to(self.device) for image in images]
        inputs = self.inputs(on_device, prompts)
        hidden = self.network.base_model(**inputs, use_cache=False).last_hidden_state
        answer = inputs["attention_mask"].sum(1) - 1
        state = hidden[torch.arange(len(hidden), device=hidden.device), answer].float()
        return state.mean(1) if self.head is None else self.head(state).squeeze(1)

    forward = score_tensor

    @torch.no_grad()
    def score(self, images: np.ndarray, prompts: Sequence[str], batch_size: int = 64) -> Tensor:
        """Rewards of images u8 [N, H, W, 3] under N prompts, float32 [N] on the CPU; `batch_size` pairs go together."""
        scores = []
        for start in range(0, len(images), batch_size):
            part = torch.from_numpy(np.array(images[start : start + batch_size])).permute(0, 3, 1, 2) / 255
            scores.append(self.score_tensor(part, prompts[start : start + batch_size]).cpu())
        return torch.cat(scores) if scores else torch.zeros(0)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device
