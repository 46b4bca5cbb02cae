"""What of the vLLM engine needs no vLLM; the rest is in tests/vllm."""

from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from omr_ray.config.rewards import PreferenceModel
from omr_ray.loading import reward_engine_from
from omr_ray.types import UserError
from omr_ray.vlm.inputs import patchify, resized
from omr_ray.vlm.vllm_engine import cpu_cache_bytes, longest_input


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_a_missing_vllm_is_named_with_its_remedy():
    with pytest.raises(UserError, match=r"vLLM is not installed on this node; install omr-ray\[vllm\]"):
        reward_engine_from(PreferenceModel(engine="vllm"))


def test_the_longest_input_is_the_largest_image_and_a_prompt():
    processor = Qwen2VLImageProcessorPil(patch_size=14, merge_size=2, size={"shortest_edge": 3136, "longest_edge": 12_845_056})
    assert longest_input(SimpleNamespace(max_position_embeddings=128_000), processor) == 16_384 + 2048
    assert longest_input(SimpleNamespace(max_position_embeddings=4096), processor) == 4096


def test_the_cache_holds_the_longest_input_in_whole_blocks():
    text = SimpleNamespace(num_hidden_layers=28, num_key_value_heads=4, hidden_size=3584, num_attention_heads=28)
    assert cpu_cache_bytes(text, 18_400, "bfloat16") == 2 * 28 * 4 * 128 * 2 * 18_432
    assert cpu_cache_bytes(text, 512, "bfloat16") == 2**28


def test_a_resized_image_gives_the_same_patches():
    """Limits so close that the rule, applied twice, would change the size twice."""
    processor = Qwen2VLImageProcessorPil(patch_size=8, merge_size=2, size={"shortest_edge": 4096, "longest_edge": 4096})
    as_it_is = Qwen2VLImageProcessorPil(patch_size=8, merge_size=2, do_resize=False)
    image = np.random.default_rng(0).integers(0, 256, (128, 80, 3), dtype=np.uint8)
    small = resized(image, processor)
    assert small.shape == (80, 48, 3) and small.dtype == np.uint8
    assert resized(small, processor).shape != small.shape

    def patches(image, processor):
        return patchify(torch.from_numpy(image).permute(2, 0, 1)[None] / 255, processor)

    for wanted, found in zip(patches(image, processor), patches(small, as_it_is), strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)
