"""A plain DDPO loop (arXiv:2305.13301), the yardstick of the speed of ours: one process, the denoising steps one at a time.

    .venv/bin/python -m tests.bench.ddpo configs/atelier.yaml dialogues.rounds=1 dialogues_per_step=24 --steps 3

Samples of every step: `dialogues_per_step` x `sampler.siblings` images of single prompts from pure noise, by DDIM with eta
(section 4.1), `sampler.batch_size` at a time; all denoising steps are stored, and trained one after the other with the
clipped importance ratio of section 4.3 (DDPO-IS) and advantages normalised by prompt (appendix D.3). The model, its LoRA,
the reward model, steps, guidance, batch, learning rate and number of optimizer updates are those of the config. The first
step is not counted. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from peft import LoraConfig
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from omr_ray.atelier import WEIGHTS
from omr_ray.config.run import RunConfig
from omr_ray.loading import reward_model_from
from omr_ray.workers.launch import source_from

ADVANTAGE_CLIP = 5.0
GRADIENT_CLIP = 1.0


@dataclass
class Samples:
    """One batch of n images and all T steps of each."""

    prompts: list[str]
    text: Tensor  # [n L D]
    latents: Tensor  # [n T+1 C H W]
    log_probs: Tensor  # [n T]
    images: Tensor  # u8 [n H W 3]


class Ddpo:
    def __init__(self, config: RunConfig) -> None:
        torch.set_num_threads(os.cpu_count() or 1)
        torch.manual_seed(config.seed)
        self.config = config
        self.tokenizer = CLIPTokenizer.from_pretrained(WEIGHTS / "tokenizer")
        self.text_encoder = CLIPTextModel.from_pretrained(WEIGHTS / "text_encoder", dtype=torch.float32).requires_grad_(False)
        self.vae = AutoencoderKL.from_pretrained(WEIGHTS / "vae", torch_dtype=torch.float32).requires_grad_(False)
        self.unet = UNet2DConditionModel.from_pretrained(WEIGHTS / "unet", torch_dtype=torch.float32).requires_grad_(False)
        self.unet.add_adapter(
            LoraConfig(r=config.lora.rank, lora_alpha=config.lora.alpha, target_modules=["to_q", "to_k", "to_v", "to_out.0"])
        )
        self.scheduler = DDIMScheduler.from_pretrained(WEIGHTS / "scheduler")
        self.scheduler.set_timesteps(config.sampler.steps)
        self.reward = reward_model_from(config.rewards.preference)
        self.parameters = [parameter for parameter in self.unet.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=config.learner.learning_rate)
        self.empty = self.encode([""])

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Tensor:
        ids = self.tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        return self.text_encoder(ids).last_hidden_state

    def denoised(self, latents: Tensor, t: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Mean [n C H W] and standard deviation of the next latent after timestep t (DDIM, arXiv:2010.02502, eq. 12, 16)."""
        output = self.unet(latents, t, text).sample
        if self.config.sampler.guidance_scale > 1:
            without = self.unet(latents, t, self.empty.expand(len(text), -1, -1)).sample
            output = without + self.config.sampler.guidance_scale * (output - without)
        alphas = self.scheduler.alphas_cumprod
        a, b = alphas[t], alphas[max(int(t) - self.scheduler.config.num_train_timesteps // self.config.sampler.steps, 0)]
        kind = self.scheduler.config.prediction_type
        if kind == "sample":
            x0 = output
        elif kind == "v_prediction":
            x0 = a.sqrt() * latents - (1 - a).sqrt() * output
        else:
            x0 = (latents - (1 - a).sqrt() * output) / a.sqrt()
        noise = (latents - a.sqrt() * x0) / (1 - a).sqrt()
        sigma = self.config.sampler.eta * ((1 - b) / (1 - a) * (1 - a / b)).sqrt()
        return b.sqrt() * x0 + (1 - b - sigma**2).clamp(min=0).sqrt() * noise, sigma

    @torch.no_grad()
    def sample(self, prompts: list[str]) -> Samples:
        text = self.encode(prompts)
        side = self.unet.config.sample_size
        latents = [torch.randn(len(prompts), self.unet.config.in_channels, side, side)]
        log_probs = []
        for t in self.scheduler.timesteps:
            mean, sigma = self.denoised(latents[-1], t, text)
            latents.append(mean + sigma * torch.randn_like(mean))
            log_probs.append(log_prob(latents[-1], mean, sigma))
        decoded = self.vae.decode(latents[-1] / self.vae.config.scaling_factor).sample
        images = ((decoded / 2 + 0.5).clamp(0, 1) * 255).round().byte().movedim(1, -1)
        return Samples(prompts, text, torch.stack(latents, 1), torch.stack(log_probs, 1), images)

    def train(self, batches: list[Samples], advantages: Tensor) -> int:
        """One pass: `algorithm.minibatches` updates, the steps of each one after the other. Returns the number of trained steps."""
        text, latents, old = (torch.cat([getattr(batch, name) for batch in batches]) for name in ("text", "latents", "log_probs"))
        advantages = advantages.clamp(-ADVANTAGE_CLIP, ADVANTAGE_CLIP)
        clip, timesteps = self.config.algorithm.clip_range, self.scheduler.timesteps
        for rows in torch.randperm(len(text)).chunk(self.config.algorithm.minibatches):
            for index, t in enumerate(timesteps):
                for part in rows.split(self.config.learner.micro_batch):
                    mean, sigma = self.denoised(latents[part, index], t, text[part])
                    ratio = (log_prob(latents[part, index + 1], mean, sigma) - old[part, index]).exp()
                    chosen = advantages[part]
                    loss = -torch.minimum(chosen * ratio, chosen * ratio.clamp(1 - clip, 1 + clip)).sum()
                    (loss / (len(rows) * len(timesteps))).backward()
            torch.nn.utils.clip_grad_norm_(self.parameters, GRADIENT_CLIP)
            self.optimizer.step()
            self.optimizer.zero_grad()
        return len(text) * len(timesteps)

    def step(self, prompts: list[str]) -> dict[str, float]:
        """Sample, score and train once; seconds of each, and counts."""
        marks = [time.perf_counter()]
        batches = [
            self.sample(prompts[i : i + self.config.sampler.batch_size]) for i in range(0, len(prompts), self.config.sampler.batch_size)
        ]
        marks.append(time.perf_counter())
        size = self.config.rewards.preference.batch_size
        rewards = torch.cat([self.reward.score(batch.images.numpy(), batch.prompts, batch_size=size) for batch in batches])
        marks.append(time.perf_counter())
        trained = self.train(batches, by_prompt(rewards, prompts))
        marks.append(time.perf_counter())
        names = ("rollout", "reward", "learner")
        seconds = dict(zip(names, (b - a for a, b in zip(marks, marks[1:], strict=False)), strict=True))
        return seconds | {
            "step": marks[-1] - marks[0],
            "images": len(prompts),
            "trained_steps": trained,
            "reward_mean": float(rewards.mean()),
        }


def log_prob(value: Tensor, mean: Tensor, sigma: Tensor) -> Tensor:
    """log N(value; mean, sigma^2), the mean over the dimensions of each row."""
    return (-0.5 * ((value - mean) / sigma) ** 2 - sigma.log() - 0.5 * math.log(2 * math.pi)).mean((1, 2, 3))


def by_prompt(rewards: Tensor, prompts: list[str]) -> Tensor:
    """(r - mean) / std over the samples of each prompt."""
    advantages = torch.empty_like(rewards)
    for prompt in set(prompts):
        rows = torch.tensor([i for i, other in enumerate(prompts) if other == prompt])
        advantages[rows] = (rewards[rows] - rewards[rows].mean()) / (rewards[rows].std(correction=0) + 1e-6)
    return advantages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--steps", type=int, default=3, help="after the first")
    options = parser.parse_args()
    config = RunConfig.load(options.config, options.overrides)
    source, loop, found = source_from(config), Ddpo(config), []
    for step in range(1, options.steps + 2):
        dialogues = source.next(step, config.dialogues_per_step)
        found.append(loop.step([dialogue.rounds[0].prompt for dialogue in dialogues for _ in range(config.sampler.siblings)]))
        print(json.dumps(found[-1]), file=sys.stderr, flush=True)
    medians = {name: statistics.median(step[name] for step in found[1:]) for name in found[0]}
    rates = {"images_per_s": medians["images"] / medians["step"], "trained_steps_per_s": medians["trained_steps"] / medians["step"]}
    print(json.dumps({**medians, **rates}))


if __name__ == "__main__":
    main()
