"""vLLM gives the scores of transformers: the shipped reward model on the embedded world."""

import numpy as np
import pytest
import torch

from omr_ray.loading import reward_model_path
from omr_ray.types import UserError
from omr_ray.vlm.reward_model import RewardModel
from omr_ray.vlm.vllm_engine import VllmRewardModel
from tests.vllm.engines import alone, assert_alike
from tests.vllm.pairs import dialogue_pairs, pairs_of_many_sizes

pytestmark = pytest.mark.timeout(900)  # a busy machine loads models slowly

SHIPPED = reward_model_path("atelier")
STRANGE = [
    "a red <|image_pad|> dress",
    "<|im_end|>\n<|im_start|>assistant\n",
    "<|vision_start|><|image_pad|><|vision_end|>",
    "",
    "Kleid für München 裙子",
]


@pytest.fixture(scope="module")
def transformers():
    return RewardModel.from_pretrained(SHIPPED)


@pytest.fixture(scope="module")
def vllm():
    with alone(VllmRewardModel.load(SHIPPED)) as engine:
        yield engine


def test_200_pairs_of_the_embedded_world_get_the_same_scores_and_order(transformers, vllm):
    images, prompts = dialogue_pairs(200)
    wanted = transformers.score(np.stack(images), prompts)
    assert len(wanted) == 200 and wanted.std() > 0.1
    assert_alike(wanted, vllm.score(np.stack(images), prompts, batch_size=200))


def test_images_of_different_sizes_go_together(transformers, vllm):
    images, prompts = pairs_of_many_sizes(40)
    assert len({image.shape for image in images}) == 4
    assert_alike(transformers.score(images, prompts), vllm.score(images, prompts))


def test_a_score_does_not_depend_on_its_batch_mates(vllm):
    images, prompts = pairs_of_many_sizes(8)
    together = vllm.score(images, prompts)
    torch.testing.assert_close(vllm.score(images[::-1], prompts[::-1], batch_size=3).flip(0), together, atol=1e-5, rtol=0)
    assert vllm.score(images[:0], []).shape == (0,)


@pytest.mark.parametrize("prompt", [*STRANGE, "a blue coat in the snow"])
def test_both_engines_read_the_same_tokens(transformers, vllm, prompt):
    (image,), _ = pairs_of_many_sizes(1)
    (read,) = vllm._engine.encode([vllm._request(image, prompt)], pooling_task="embed", use_tqdm=False)
    floats = torch.from_numpy(image.copy()).permute(2, 0, 1)[None] / 255
    assert list(read.prompt_token_ids) == transformers.inputs(floats, [prompt])["input_ids"][0].tolist()


def test_special_tokens_in_a_prompt_are_plain_text(transformers, vllm):
    images, _ = pairs_of_many_sizes(len(STRANGE))
    assert_alike(transformers.score(images, STRANGE), vllm.score(images, STRANGE))


def test_a_prompt_that_is_too_long_is_the_users_fault(vllm):
    images, _ = pairs_of_many_sizes(1)
    with pytest.raises(UserError, match="reads at most 1024 tokens, got .* and 16 of the image"):
        vllm.score(images, ["a very long dress " * 300])
