"""Language from a Qwen-VL model in this process, by transformers."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoTokenizer, GenerationConfig
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from omr_ray.types import UserError
from omr_ray.vlm.engine import Conversation
from omr_ray.vlm.inputs import ConversationInputs
from omr_ray.vlm.reward_model import check_model
from omr_ray.weights import reported

STOPS = ("<|im_end|>", "<|endoftext|>")


class TransformersEngine:
    """A frozen Qwen2-VL, Qwen2.5-VL or Qwen3-VL that writes its likeliest answer (greedy), as `LanguageModel`."""

    def __init__(self, network: Any, tokenizer: Any, image_processor: Qwen2VLImageProcessorPil, batch_size: int = 8) -> None:
        self.inputs = ConversationInputs(tokenizer, image_processor)
        self._stops = [tokenizer.convert_tokens_to_ids(token) for token in STOPS if token in tokenizer.get_vocab()]
        # In place of the model's own, which may sample and punish repetition: JSON repeats itself.
        network.generation_config = GenerationConfig(do_sample=False, eos_token_id=self._stops, pad_token_id=self._stops[0])
        self.network = network.eval().requires_grad_(False)
        self.batch_size = batch_size
        self._lock = threading.Lock()

    @classmethod
    def from_pretrained(cls, path: str | Path, *, dtype: str = "float32", device: str = "cpu", batch_size: int = 8) -> TransformersEngine:
        """From a directory in the transformers format or a hub id. Raises UserError as `RewardModel.from_pretrained`."""
        path = str(path)
        check_model(path)
        load: Any = AutoModelForImageTextToText.from_pretrained  # typed as if there were no loading info
        with reported(path):
            network, loading = load(path, dtype=dtype, use_safetensors=True, output_loading_info=True)
            tokenizer, processor = AutoTokenizer.from_pretrained(path), Qwen2VLImageProcessorPil.from_pretrained(path)
        if loading["missing_keys"]:
            names = sorted(loading["missing_keys"])
            raise UserError(f"language model {path}: {len(names)} weights are missing, the first is {names[0]!r}; fetch it again")
        return cls(network.to(device), tokenizer, processor, batch_size)

    def complete(self, conversations: Sequence[Conversation], *, max_tokens: int) -> list[str]:
        """As `LanguageModel.complete`. Raises UserError for a conversation that leaves no room for its answer."""
        answers = []
        for start in range(0, len(conversations), self.batch_size):
            # transformers keeps the positions of the running generation in the network itself.
            with self._lock:
                answers += self._write(conversations[start : start + self.batch_size], max_tokens)
        return answers

    @torch.inference_mode()
    def _write(self, conversations: Sequence[Conversation], max_tokens: int) -> list[str]:
        inputs = self.inputs(conversations, self.network.device)
        length, limit = inputs["input_ids"].shape[1], self.network.config.text_config.max_position_embeddings
        if length + max_tokens > limit:
            raise UserError(
                f"the language model reads and writes at most {limit} tokens, got a conversation of {length} and room for {max_tokens}; "
                "shorten the utterance, lower d2p.history_rounds or take smaller images"
            )
        written = self.network.generate(**inputs, max_new_tokens=max_tokens)[:, length:].tolist()
        return [self.inputs.tokenizer.decode(self._up_to_stop(row), skip_special_tokens=True) for row in written]

    def _up_to_stop(self, ids: list[int]) -> list[int]:
        return ids[: next((place for place, token in enumerate(ids) if token in self._stops), len(ids))]
