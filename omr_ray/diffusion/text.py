"""Prompts to the UNet's conditioning, with a cache: in one run the same few prompts come back many times."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

CACHED_PROMPTS = 512  # 77 x 768 float32 is 0.23 MiB a prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """The conditioning of N rows."""

    hidden: Tensor  # [N L D]
    added: dict[str, Tensor] | None = None  # SDXL: {"text_embeds": pooled [N D']}

    def __len__(self) -> int:
        return len(self.hidden)

    def take(self, rows: Any) -> Text:
        """The rows `rows` (a slice, or i64 [M])."""
        return Text(hidden=self.hidden[rows], added=self.added and {name: value[rows] for name, value in self.added.items()})

    def join(self, other: Text) -> Text:
        """These rows, then the other's."""
        added = self.added and other.added and {name: torch.cat([value, other.added[name]]) for name, value in self.added.items()}
        return Text(hidden=torch.cat([self.hidden, other.hidden]), added=added)


class TextEncoders:
    """One CLIP text encoder (Stable Diffusion 1.x, 2.x) or two side by side (SDXL), frozen."""

    def __init__(self, tokenizers: Sequence[Any], encoders: Sequence[Any], zero_empty_prompt: bool) -> None:
        self.tokenizers, self.encoders = tuple(tokenizers), tuple(encoders)
        pairs = zip(self.tokenizers, self.encoders, strict=True)
        self.length = min(min(tokenizer.model_max_length, encoder.config.max_position_embeddings) for tokenizer, encoder in pairs)
        self._zero_empty_prompt = zero_empty_prompt
        self._cache: OrderedDict[bytes, tuple[Tensor, ...]] = OrderedDict()
        self._empty: Text | None = None

    def tokenize(self, prompts: Sequence[str]) -> np.ndarray:
        """Token ids i64 [N E L], padded and cut to the encoders' length."""
        options = {"padding": "max_length", "truncation": True, "max_length": self.length, "return_tensors": "np"}
        ids = [tokenizer(list(prompts), **options).input_ids for tokenizer in self.tokenizers]
        return np.stack(ids, axis=1).astype(np.int64)

    def encode(self, prompt_ids: np.ndarray | Tensor) -> Text:
        """The conditioning of token ids i64 [N E L]; each distinct prompt is encoded once."""
        ids = np.ascontiguousarray(prompt_ids.cpu().numpy() if isinstance(prompt_ids, Tensor) else prompt_ids, dtype=np.int64)
        keys = [row.tobytes() for row in ids]
        first_row = {key: row for row, key in reversed(list(enumerate(keys)))}
        missing = [key for key in first_row if key not in self._cache]
        if missing:
            encoded = self._run(ids[[first_row[key] for key in missing]])
            self._cache.update(zip(missing, encoded, strict=True))
        position = {key: index for index, key in enumerate(first_row)}
        tables = [torch.stack(columns) for columns in zip(*(self._cache[key] for key in first_row), strict=True)]
        self._forget(first_row)
        rows = torch.tensor([position[key] for key in keys], device=tables[0].device)
        return Text(hidden=tables[0][rows], added={"text_embeds": tables[1][rows]} if len(tables) == 2 else None)

    def empty(self, count: int) -> Text:
        """`count` rows of the unconditional branch."""
        row = self._empty_row()
        added = row.added and {name: value.expand(count, -1) for name, value in row.added.items()}
        return Text(hidden=row.hidden.expand(count, -1, -1), added=added)

    def _empty_row(self) -> Text:
        if self._empty is None:
            text = self.encode(self.tokenize([""]))
            if self._zero_empty_prompt:
                zeros = text.added and {name: torch.zeros_like(value) for name, value in text.added.items()}
                text = Text(hidden=torch.zeros_like(text.hidden), added=zeros)
            self._empty = text
        return self._empty

    def _run(self, ids: np.ndarray) -> list[tuple[Tensor, ...]]:
        """Per prompt (hidden [L D],) or, for SDXL, (hidden [L D], pooled [D'])."""
        # A tensor made in inference mode could not be used later under a gradient.
        with torch.inference_mode(False), torch.no_grad():
            tokens = torch.from_numpy(ids).to(self.encoders[0].device)
            if len(self.encoders) == 1:
                return [(hidden.clone(),) for hidden in self.encoders[0](tokens[:, 0]).last_hidden_state]
            # SDXL: the last layer but one of both, side by side, and the second one's projected pooled output.
            outputs = [encoder(tokens[:, e], output_hidden_states=True) for e, encoder in enumerate(self.encoders)]
            hidden = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
            return [(row.clone(), pooled.clone()) for row, pooled in zip(hidden, outputs[-1].text_embeds, strict=True)]

    def _forget(self, used: Iterable[bytes]) -> None:
        """Drop the prompts that were not used for longest."""
        for key in used:
            self._cache.move_to_end(key)
        while len(self._cache) > CACHED_PROMPTS:
            self._cache.popitem(last=False)
