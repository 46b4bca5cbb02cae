"""Stage 5: the reward model, a small Qwen2.5-VL read without its last linear layer (OMR section 3.2, eq. 8).

One pass over a pair of images under one prompt gives four losses: the preference loss on the answer position;
the same reward read after every word, against whether what was said so far is true; the caption of the image
that fits; and the seven aspects from the token behind the image, through heads that are thrown away afterwards.
The last three say where the eye has to look, which a single bit a pair would take far longer to teach.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from omr_ray.algorithm.preference import preference_loss
from omr_ray.atelier.render import render
from omr_ray.atelier.stages.autoencoder import load_autoencoder
from omr_ray.atelier.stages.loop import Budget, Trainer
from omr_ray.atelier.stages.pairs import Pair, PairMaker, other_value
from omr_ray.atelier.stages.policy import RENDERS, encode_renders
from omr_ray.atelier.stages.renders import labels_of, make_renders
from omr_ray.atelier.stages.tokenizers import make_qwen_tokenizer
from omr_ray.atelier.world import ASPECTS, VALUES, named_at, prompt_of, random_part, random_scene
from omr_ray.vlm.reward_model import RewardModel

BUDGET = Budget(steps=1700, batch=32, learning_rate=2e-3, warmup=100, weight_decay=0.02, ema_decay=0.995)
RECONSTRUCTED = 6000  # renders that are also shown as the autoencoder gives them back
SHARPNESS = 5.0  # margin of the reward, which is a mean of normalised activations, to log-odds
PIXELS = 64 * 64


def build_reward_model(tokenizer: Qwen2Tokenizer) -> RewardModel:
    """The untrained model: 8-pixel patches merged 2x2, so 16 image tokens for 64x64 pixels."""
    ids: Any = tokenizer.convert_tokens_to_ids
    width = 128
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": width,
            "intermediate_size": 320,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": 1024,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
            "tie_word_embeddings": True,
            "bos_token_id": ids("<|endoftext|>"),
            "eos_token_id": ids("<|im_end|>"),
        },
        vision_config={
            "depth": 3,
            "hidden_size": 96,
            "num_heads": 4,
            "intermediate_size": 256,
            "patch_size": 8,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "out_hidden_size": width,
            "fullatt_block_indexes": [0, 1, 2],
        },
        tie_word_embeddings=True,
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
    )
    size = {"shortest_edge": PIXELS, "longest_edge": PIXELS}
    processor = Qwen2VLImageProcessorPil(patch_size=8, merge_size=2, temporal_patch_size=2, size=size)
    return RewardModel(Qwen2_5_VLForConditionalGeneration(config), tokenizer, processor)


def truth_so_far(prompt: str, changed: frozenset[str], tokenizer: Qwen2Tokenizer) -> list[float]:
    """For each token of the prompt, 1 while nothing said up to its end is among the changed aspects, then 0."""
    ends = [end for _, end in tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]]
    first_lie = min((at for aspect, at in named_at(prompt).items() if aspect in changed), default=len(prompt) + 1)
    return [float(end < first_lie) for end in ends]


class Losses:
    """The four losses of a batch of pairs; rows 0..n-1 are the chosen images, n..2n-1 the rejected ones."""

    def __init__(self, model: RewardModel, heads: nn.ModuleDict) -> None:
        self.model, self.heads, self.tokenizer = model, heads, model.inputs.tokenizer
        self.image_end = self.tokenizer.convert_tokens_to_ids("<|vision_end|>")

    def __call__(self, images: torch.Tensor, pairs: Sequence[Pair], labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """images f32 [2n 3 64 64] in 0..1, labels i64 [2n 7]."""
        prompts, count = [pair.prompt for pair in pairs], len(pairs)
        inputs = self.model.inputs(images, prompts * 2)
        hidden = self.model.network.base_model(**inputs, use_cache=False).last_hidden_state
        rewards, answer = hidden.mean(2), inputs["attention_mask"].sum(1) - 1
        score = rewards[torch.arange(2 * count, device=images.device), answer]
        preference = preference_loss(score[:count], score[count:], beta=SHARPNESS).mean()
        # The difference alone would let scores drift apart between prompts; fitting and not has one zero for all.
        fits = torch.arange(2 * count, device=images.device) < count
        preference = preference + F.binary_cross_entropy_with_logits(SHARPNESS * score, fits.float())

        begin = int((inputs["input_ids"][0] == self.image_end).nonzero()[0]) + 1
        truth = [truth_so_far(pair.prompt, frozenset(), self.tokenizer) for pair in pairs]
        truth += [truth_so_far(pair.prompt, pair.changed, self.tokenizer) for pair in pairs]
        said = nn.utils.rnn.pad_sequence([torch.tensor(row) for row in truth], batch_first=True, padding_value=-1)
        said = said.to(images.device)
        words = rewards[:, begin : begin + said.shape[1]]
        running = F.binary_cross_entropy_with_logits(SHARPNESS * words[said >= 0], said[said >= 0])

        # One more position than words: what ends the prompt is told by the last word.
        told = said[:count] >= 0
        before = hidden[:count, begin - 1 : begin - 1 + said.shape[1]][told]
        caption = F.cross_entropy(self.model.network.lm_head(before), inputs["input_ids"][:count, begin : begin + said.shape[1]][told])

        seen = hidden[:, begin - 1]
        aspects = sum(F.cross_entropy(self.heads[aspect](seen), labels[:, i]) for i, aspect in enumerate(ASPECTS))
        loss = preference + running + 0.3 * caption + 0.3 * aspects
        right = (score[:count] > score[count:]).float().mean()
        parts = {"preference": preference, "running": running, "caption": caption, "aspects": aspects, "right": right}
        return {"loss": loss} | {name: value.detach() for name, value in parts.items()}


def blur_some(images: torch.Tensor, noise: torch.Generator) -> torch.Tensor:
    """Each image mixed with a 3x3 mean of itself, by up to 0.6: the policy's pictures are a little soft."""
    strength = 0.6 * torch.rand(len(images), 1, 1, 1, generator=noise)
    return torch.lerp(images, F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1), strength)


@torch.no_grad()
def reconstruct(vae: Any, latents: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Scaled latents as u8 [N 3 64 64] pictures."""
    parts = [vae.decode(part.to(device) / vae.config.scaling_factor).sample.cpu() for part in latents.split(64)]
    return ((torch.cat(parts) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def train_reward_model(out: Path, work: Path, *, budget: Budget, seed: int, device: torch.device) -> dict[str, float]:
    """Train, save to `out/reward_model`; returns seconds and the accuracy on fresh pairs, by the one aspect changed."""
    torch.manual_seed(seed)
    images, scenes = make_renders(RENDERS, seed, work)
    vae = load_autoencoder(out, device)
    latents = encode_renders(vae, images, work / f"latents-{seed}.safetensors", device)
    rebuilt = reconstruct(vae, latents[:RECONSTRUCTED], device)
    labels, pairs = torch.tensor([labels_of(scene) for scene in scenes]), PairMaker(scenes)
    model = build_reward_model(make_qwen_tokenizer(work / "qwen_tokenizer", seed)).to(device).train()
    heads = nn.ModuleDict({aspect: nn.Linear(128, len(VALUES[aspect])) for aspect in ASPECTS}).to(device)
    losses = Losses(model, heads)
    trainer = Trainer("reward_model", {"model": model, "heads": heads}, budget, work=work, log=out / "logs" / "reward_model.jsonl")

    def loss_at(numbers, noise):
        batch = [pairs.draw(numbers) for _ in range(budget.batch)]
        rows = torch.tensor([pair.chosen for pair in batch] + [pair.rejected for pair in batch])
        picked = images[rows]
        soft = (rows < RECONSTRUCTED) & (torch.rand(len(rows), generator=noise) < 0.5)
        picked[soft] = rebuilt[rows[soft]]
        pixels = blur_some(picked.float() / 255, noise)
        return losses(pixels.to(device), batch, labels[rows].to(device))

    def publish():
        trainer.swap_ema()
        copy.deepcopy(model).half().save_pretrained(out / "reward_model")
        trainer.swap_ema()

    seconds = trainer.run(loss_at, seed=seed, on_checkpoint=publish)
    return {"seconds": seconds} | pairwise_accuracy(RewardModel.from_pretrained(out / "reward_model", device=str(device)), vae, device)


def pairwise_accuracy(model: RewardModel, vae: Any, device: torch.device, *, count: int = 200, seed: int = 40_000) -> dict[str, float]:
    """Share of fresh pairs in which the fitting image scores higher, for each aspect as the one thing wrong.

    `pairs_*` are renders, `rebuilt_mean` the same pairs as the autoencoder gives them back.
    """
    rng, accuracy, soft = np.random.default_rng(seed), {}, []
    for aspect in ASPECTS:
        prompts, chosen, rejected = [], [], []
        for _ in range(count):
            scene = random_scene(rng)
            named = random_part(scene, rng) | {aspect: getattr(scene, aspect)}
            prompts.append(prompt_of(named))
            chosen.append(render(scene, rng))
            rejected.append(render(scene.with_aspects({aspect: other_value(aspect, named[aspect], rng)}), rng))
        pictures = np.stack(chosen + rejected)
        score = model.score(pictures, prompts * 2)
        accuracy[f"pairs_{aspect}"] = float((score[:count] > score[count:]).float().mean())
        pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).float().to(device) / 127.5 - 1
        with torch.no_grad():
            codes = torch.cat([vae.encode(part).latent_dist.mean for part in pixels.split(64)])
        rebuilt = reconstruct(vae, codes * vae.config.scaling_factor, device).permute(0, 2, 3, 1).numpy()
        score = model.score(rebuilt, prompts * 2)
        soft.append(float((score[:count] > score[count:]).float().mean()))
    return accuracy | {"pairs_mean": float(np.mean(list(accuracy.values()))), "rebuilt_mean": float(np.mean(soft))}
