"""The preference reward: a Qwen-VL network without its last linear layer (OMR section 3.2, eq. 8)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from omr_ray.types import UserError
from omr_ray.vlm.engine import Images
from omr_ray.vlm.inputs import QwenInputs, as_floats
from omr_ray.weights import check_directory, read_safetensors, reported, write_safetensors_atomic

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
HEAD_FILE = "reward_head/model.safetensors"  # in a folder of its own: vLLM takes every *.safetensors beside the network for a part of it


def check_model(path: str) -> Any:
    """The transformers config of the Qwen-VL at `path`, a directory or hub id. Raises UserError as `RewardModel.from_pretrained`."""
    if Path(path).exists() or not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", path):
        check_directory(path)
    with reported(path):
        config = AutoConfig.from_pretrained(path)
        if config.model_type not in FAMILIES:
            families = ", ".join(FAMILIES)
            raise UserError(f"{path}: a Qwen-VL's family must be one of {families}, got {config.model_type!r}; take another model")
    return config


def linear_head(width: int) -> nn.Linear:
    """A scalar head that starts as the mean."""
    head = nn.Linear(width, 1)
    nn.init.constant_(head.weight, 1 / width)
    nn.init.zeros_(head.bias)
    return head


def stored_head(path: str | Path, width: int) -> nn.Linear | None:
    """The linear head that lies at `path`, if there is one, for hidden states of `width` numbers."""
    file = Path(path) / HEAD_FILE
    if not file.exists():
        return None
    with reported(file):
        weights = {name: torch.tensor(value) for name, value in read_safetensors(file).items()}
        head = linear_head(width)
        head.load_state_dict(weights)
    return head


def reward_of(states: Tensor, head: nn.Linear | None) -> Tensor:
    """Rewards float32 [N] of hidden states [N, D] at the answer position: their mean, or what a learned head says."""
    return states.float().mean(1) if head is None else head(states.float()).squeeze(1)


class RewardModel(nn.Module):
    """r(image, prompt) = mean over the last hidden state at the answer position: the "logits' mean" of OMR section 3.2.

    The hidden state is the one that the removed linear layer would have read. `head="linear"` replaces the mean by a
    learned scalar head that starts as the mean.
    """

    def __init__(self, network: Any, tokenizer: Any, image_processor: Qwen2VLImageProcessorPil, head: Literal["mean", "linear"] = "mean"):
        super().__init__()
        self.network: Any = network  # a family's base model, or its ForConditionalGeneration, whose last layer is passed over
        self.inputs = QwenInputs(tokenizer, image_processor)
        self.head = linear_head(self.width) if head == "linear" else None

    @classmethod
    def from_pretrained(
        cls, path: str | Path, *, dtype: str = "float32", device: str = "cpu", head: Literal["mean", "linear"] = "mean"
    ) -> RewardModel:
        """A frozen reward model in evaluation mode, from a directory in the transformers format or a hub id.

        Raises UserError for a missing directory, weights that are not safetensors, are damaged or incomplete, and for
        other families than Qwen2-VL, Qwen2.5-VL and Qwen3-VL.
        """
        path = str(path)
        check_model(path)
        with reported(path):
            network, loading = AutoModel.from_pretrained(path, dtype=dtype, use_safetensors=True, output_loading_info=True)
            tokenizer, processor = AutoTokenizer.from_pretrained(path), Qwen2VLImageProcessorPil.from_pretrained(path)
        if loading["missing_keys"]:
            names = sorted(loading["missing_keys"])
            raise UserError(f"reward model {path}: {len(names)} weights are missing, the first is {names[0]!r}; fetch it again")
        model = cls(network, tokenizer, processor, head)
        model.head = stored_head(path, model.width) or model.head
        return model.to(device).eval().requires_grad_(False)

    def with_adapter(self, path: str | Path) -> RewardModel:
        """This model with a PEFT adapter merged into its weights, and the adapter's head. Raises UserError as `from_pretrained`."""
        check_directory(path)
        with reported(path):
            self.network = PeftModel.from_pretrained(self.network, str(path)).merge_and_unload()
        self.head = stored_head(path, self.width) or self.head
        return self.to(self.device).eval().requires_grad_(False)

    def save_head(self, path: str | Path) -> None:
        if self.head is not None:
            arrays = {name: value.float().cpu().numpy() for name, value in self.head.state_dict().items()}
            write_safetensors_atomic(Path(path) / HEAD_FILE, arrays, {"head": "linear"})

    def save_pretrained(self, path: str | Path) -> None:
        """Network, tokenizer, image processor and, where there is one, the head; `from_pretrained` reads it back.

        The network is stored as the family's ForConditionalGeneration without its last layer: the form that other
        libraries load.
        """
        with torch.device("meta"):
            whole = AutoModelForImageTextToText.from_config(self.network.config, dtype=self.network.dtype)
        whole.model = self.network.base_model
        whole.save_pretrained(path, state_dict={f"model.{name}": value for name, value in whole.model.state_dict().items()})
        self.inputs.tokenizer.save_pretrained(path)
        self.inputs.image_processor.save_pretrained(path)
        self.save_head(path)

    def score_tensor(self, images: Tensor | Sequence[Tensor], prompts: Sequence[str]) -> Tensor:
        """Differentiable rewards of images [N, 3, H, W] in [0, 1], or N of any sizes, under N prompts, float32 [N] (OMR eq. 8)."""
        on_device = images.to(self.device) if isinstance(images, Tensor) else [image.to(self.device) for image in images]
        inputs = self.inputs(on_device, prompts)
        hidden = self.network.base_model(**inputs, use_cache=False).last_hidden_state
        answer = inputs["attention_mask"].sum(1) - 1
        return reward_of(hidden[torch.arange(len(hidden), device=hidden.device), answer], self.head)

    forward = score_tensor

    @torch.no_grad()
    def score(self, images: Images, prompts: Sequence[str], batch_size: int = 64) -> Tensor:
        """As `RewardEngine.score`."""
        scores = []
        for start in range(0, len(images), batch_size):
            part = as_floats(images[start : start + batch_size])
            scores.append(self.score_tensor(part, prompts[start : start + batch_size]).cpu())
        return torch.cat(scores) if scores else torch.zeros(0)

    @property
    def width(self) -> int:
        """D, numbers of a hidden state."""
        return self.network.config.text_config.hidden_size

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device
