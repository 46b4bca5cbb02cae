"""What a Qwen-VL network is fed: image patches and token ids, built here and nowhere else.

The patches equal Qwen2VLImageProcessorPil's, but come from torch operations, so that a reward can be followed back to
the image. The token ids equal those of the family's processor, which cannot be built without torchvision.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from omr_ray.types import UserError
from omr_ray.vlm.engine import Conversation, Images
from omr_ray.vlm.templates import IMAGE, REWARD_TEMPLATE, SPECIAL_TOKENS


class _Inputs:
    """What both kinds of inputs are made with."""

    def __init__(self, tokenizer: Any, image_processor: Qwen2VLImageProcessorPil):
        missing = [token for token in SPECIAL_TOKENS if token not in tokenizer.get_vocab()]
        if missing:
            raise UserError(f"a Qwen-VL tokenizer needs the special tokens {', '.join(missing)}; take the model's own tokenizer")
        self.tokenizer, self.image_processor = tokenizer, image_processor
        self.image_token_id = tokenizer.convert_tokens_to_ids("<|image_pad|>")

    def _encode(self, text: str) -> list[int]:
        """Ids of a text of ours."""
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=False)["input_ids"]

    def _encode_plain(self, text: str) -> list[int]:
        """Ids of a text that others wrote: a special token inside it is plain text."""
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


class QwenInputs(_Inputs):
    """Images and prompts to the keyword arguments of a Qwen2-VL, Qwen2.5-VL or Qwen3-VL forward."""

    def __init__(self, tokenizer: Any, image_processor: Qwen2VLImageProcessorPil):
        super().__init__(tokenizer, image_processor)
        before, after = REWARD_TEMPLATE.split("{prompt}")
        self._before, self._after = self._encode(before), self._encode(after)

    def __call__(self, images: Tensor | Sequence[Tensor], prompts: Sequence[str]) -> dict[str, Tensor]:
        """images float [N, 3, H, W] in [0, 1], or N of [3, H, W] of any sizes, and N prompts.

        Rows are padded on the right, so the answer position of a row is its last unmasked token.

        Returns input_ids, attention_mask, mm_token_type_ids i64 [N, L], pixel_values [N * patches, 3 * 2 * p * p] and
        image_grid_thw i64 [N, 3]; differentiable in images.
        """
        if len(images) != len(prompts):
            raise ValueError(f"every image needs one prompt, got {len(images)} images and {len(prompts)} prompts")
        if isinstance(images, Tensor):
            pixel_values, grid = patchify(images, self.image_processor)
        else:
            pixel_values, grid = map(torch.cat, zip(*(patchify(image[None], self.image_processor) for image in images), strict=True))
        placeholders = (grid.prod(1) // self.image_processor.merge_size**2).tolist()
        rows = [torch.tensor(self.token_ids(str(prompt), count)) for prompt, count in zip(prompts, placeholders, strict=True)]
        lengths = torch.tensor([len(row) for row in rows])
        # Any id will do as padding: it is masked. The template's last one is in every vocabulary.
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self._after[-1])
        return {
            "input_ids": ids.to(grid.device),
            "attention_mask": (torch.arange(ids.shape[1]) < lengths[:, None]).long().to(grid.device),
            "mm_token_type_ids": (ids == self.image_token_id).long().to(grid.device),
            "pixel_values": pixel_values,
            "image_grid_thw": grid,
        }

    def token_ids(self, prompt: str, placeholders: int) -> list[int]:
        """Ids of REWARD_TEMPLATE with the image placeholder repeated. A special token inside a prompt is plain text."""
        image = self._before.index(self.image_token_id)
        before = self._before[:image] + [self.image_token_id] * placeholders + self._before[image + 1 :]
        return before + self._encode_plain(prompt) + self._after


class ConversationInputs(_Inputs):
    """Conversations to the keyword arguments with which a Qwen-VL of these families writes the next message of each."""

    def __call__(self, conversations: Sequence[Conversation], device: torch.device) -> dict[str, Tensor]:
        """N conversations with M images in all.

        Rows are padded on the left, so that all of them go on at the same place.

        Returns input_ids, attention_mask, mm_token_type_ids i64 [N, L] and, where there are images, pixel_values
        [M * patches, 3 * 2 * p * p] and image_grid_thw i64 [M, 3].
        """
        images = [image for messages in conversations for message in messages for image in message.images]
        patches = [patchify(torch.stack(list(as_floats([image]))).to(device), self.image_processor) for image in images]
        placeholders = iter([int(grid.prod()) // self.image_processor.merge_size**2 for _, grid in patches])
        rows = [torch.tensor(self.token_ids(messages, placeholders)) for messages in conversations]
        # Any id will do as padding: it is masked.
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=int(rows[0][0]), padding_side="left")
        lengths = torch.tensor([len(row) for row in rows])
        inputs = {
            "input_ids": ids.to(device),
            "attention_mask": (torch.arange(ids.shape[1]) >= ids.shape[1] - lengths[:, None]).long().to(device),
            "mm_token_type_ids": (ids == self.image_token_id).long().to(device),
        }
        if patches:
            pixel_values, grids = map(torch.cat, zip(*patches, strict=True))
            inputs |= {"pixel_values": pixel_values, "image_grid_thw": grids}
        return inputs

    def token_ids(self, messages: Conversation, placeholders: Iterator[int]) -> list[int]:
        """Ids in the family's chat form, up to where the answer begins; `placeholders` gives the number of tokens of each image."""
        ids = []
        for message in messages:
            ids += self._encode(f"<|im_start|>{message.role}\n")
            for _ in message.images:
                ids += self._encode(IMAGE.replace("<|image_pad|>", "<|image_pad|>" * next(placeholders)))
            ids += self._encode_plain(message.text) + self._encode("<|im_end|>\n")
        return ids + self._encode("<|im_start|>assistant\n")


def decoded(content: bytes) -> Tensor:
    """An encoded image as float32 [3 H W] in [0, 1]."""
    return as_floats([decoded_bytes(content)])[0]


def decoded_bytes(content: bytes) -> np.ndarray:
    """An encoded image as u8 [H W 3]."""
    with Image.open(io.BytesIO(content)) as opened:
        return np.array(opened.convert("RGB"))


def as_floats(images: Images) -> Tensor | list[Tensor]:
    """Images u8 as float32 in [0, 1] with channels first: [N 3 H W] of an array, N of [3 H W] of a list."""
    if isinstance(images, np.ndarray):
        return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2) / 255
    return [torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 for image in images]


def resized(image: np.ndarray, processor: Qwen2VLImageProcessorPil) -> np.ndarray:
    """An image u8 [H W 3] at the size that the network sees, u8, by the same operations as in `patchify`."""
    levels = _resize(torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255, processor)
    return (levels[0] * 255).round().byte().permute(1, 2, 0).numpy()


def patchify(images: Tensor, processor: Qwen2VLImageProcessorPil) -> tuple[Tensor, Tensor]:
    """Resize, normalise and cut images into the patch rows of Qwen2-VL (arXiv:2409.12191), in the order of its 2x2 merge.

    images float [N, 3, H, W] in [0, 1]; returns [N * gh * gw, 3 * temporal * p * p] float32 and the grid i64 [N, 3] of
    rows (1, gh, gw). On images of whole grey levels the values equal the processor's own.
    """
    patch, merge, temporal = processor.patch_size, processor.merge_size, processor.temporal_patch_size
    images = _resize(images.float(), processor)
    mean = torch.tensor(processor.image_mean, device=images.device).reshape(3, 1, 1)
    std = torch.tensor(processor.image_std, device=images.device).reshape(3, 1, 1)
    images = (images - mean) / std
    count, channels, height, width = images.shape
    rows, columns = height // patch, width // patch
    blocks = images.reshape(count, channels, rows // merge, merge, patch, columns // merge, merge, patch)
    blocks = blocks.permute(0, 2, 5, 3, 6, 1, 4, 7).unsqueeze(6)  # N, row, column, row and column in the merge, C, 1, p, p
    blocks = blocks.expand(*blocks.shape[:6], temporal, patch, patch)
    grid = torch.tensor([[1, rows, columns]] * count, device=images.device)
    return blocks.reshape(count * rows * columns, channels * temporal * patch * patch), grid


def _resize(images: Tensor, processor: Qwen2VLImageProcessorPil) -> Tensor:
    """Bicubic to the size the processor asks for, as Pillow does it: columns, then rows, each rounded to grey levels."""
    height, width = images.shape[-2:]
    factor = processor.patch_size * processor.merge_size
    if not processor.do_resize:
        if height % factor or width % factor:
            raise UserError(f"image sides must divide by {factor} where do_resize is false, got {height} x {width}; turn it on")
        return images
    limits = {"min_pixels": processor.size["shortest_edge"], "max_pixels": processor.size["longest_edge"]}
    new_height, new_width = smart_resize(height, width, factor, **limits)
    if new_width != width:
        images = _grey_levels(F.interpolate(images, (height, new_width), mode="bicubic", antialias=True))
    if new_height != height:
        images = _grey_levels(F.interpolate(images, (new_height, new_width), mode="bicubic", antialias=True))
    return images


def _grey_levels(images: Tensor) -> Tensor:
    """Rounded to 8 bits in value, not rounded in gradient (straight-through, arXiv:1308.3432)."""
    levels = (images.detach().clamp(0, 1) * 255).round() / 255
    return images + (levels - images.detach())
