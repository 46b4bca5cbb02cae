"""The policy's text encoder, taught to read before there is anything to draw.

Learning what words mean from a diffusion loss is slow: the signal is faint and noisy. Here the state of the last
token, which has seen the whole prompt, has to tell the value of each aspect, or that it was not named. After a
minute of this the UNet finds the aspects laid out plainly in what it attends to.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from omr_ray.atelier.stages.loop import Budget, Trainer
from omr_ray.atelier.stages.tokenizers import PROMPT_TOKENS
from omr_ray.atelier.world import ASPECTS, VALUES, Scene, parse, phrase, prompt_of, random_part, random_scene

BUDGET = Budget(steps=400, batch=64, learning_rate=1e-3, warmup=50)
WIDTH = 128


def build_text_encoder(tokenizer: CLIPTokenizer) -> Any:
    """The untrained text encoder: three layers of width 128."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=PROMPT_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def random_prompt(scene: Scene, rng: np.random.Generator) -> str:
    """A prompt for a picture of the scene: empty in a twentieth of cases, otherwise in words of either kind.

    Four in ten name all seven aspects: these leave the least open, and are learned from fastest.
    """
    draw = rng.random()
    if draw < 0.05:
        return ""
    aspects = scene.aspects() if draw < 0.45 else random_part(scene, rng)
    return prompt_of(aspects) if rng.random() < 0.6 else phrase(aspects, rng)


def tokenize(tokenizer: CLIPTokenizer, prompts: list[str]) -> torch.Tensor:
    """Token ids i64 [N 32], padded and cut as the pipeline does."""
    return tokenizer(prompts, padding="max_length", max_length=PROMPT_TOKENS, truncation=True, return_tensors="pt").input_ids


def aspect_classes(prompt: str) -> list[int]:
    """For each aspect the number of its named value, or the number behind the last value where it is not named."""
    named = parse(prompt)
    return [VALUES[aspect].index(named[aspect]) if aspect in named else len(VALUES[aspect]) for aspect in ASPECTS]


def warm_up_text_encoder(tokenizer: CLIPTokenizer, out: Path, work: Path, *, seed: int, device: torch.device) -> Any:
    """Train a text encoder to tell the named aspects; returns it, frozen."""
    torch.manual_seed(seed)
    encoder = build_text_encoder(tokenizer).to(device)
    heads = nn.ModuleDict({aspect: nn.Linear(WIDTH, len(VALUES[aspect]) + 1) for aspect in ASPECTS}).to(device)
    modules = {"text_encoder": encoder, "heads": heads}
    trainer = Trainer("text_encoder", modules, BUDGET, work=work, log=out / "logs" / "text_encoder.jsonl")

    def loss_at(numbers, noise):
        prompts = [random_prompt(random_scene(numbers), numbers) for _ in range(BUDGET.batch)]
        told = encoder(tokenize(tokenizer, prompts).to(device)).last_hidden_state[:, -1]
        truth = torch.tensor([aspect_classes(prompt) for prompt in prompts], device=device)
        losses = [F.cross_entropy(heads[aspect](told), truth[:, i]) for i, aspect in enumerate(ASPECTS)]
        return {"loss": torch.stack(losses).sum()}

    trainer.run(loss_at, seed=seed)
    return encoder.eval().requires_grad_(False)
