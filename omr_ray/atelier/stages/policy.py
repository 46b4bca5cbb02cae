"""Stage 4: the policy, a text-conditioned UNet on the autoencoder's latents with its CLIP text encoder.

Both are trained together from scratch with v-prediction. Prompts are drawn anew at every step: any two to
seven aspects of the pictured scene, half of them paraphrased, one in ten empty. What is shipped is the
moving average of the weights, in the layout `StableDiffusionPipeline.from_pretrained` reads.
"""

import copy
import os
import shutil
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from omr_ray.atelier.oracle import Oracle
from omr_ray.atelier.stages.loop import Budget, Trainer
from omr_ray.atelier.stages.renders import make_renders, to_float
from omr_ray.atelier.stages.tokenizers import PROMPT_TOKENS, make_clip_tokenizer, save_tokenizer
from omr_ray.atelier.world import Scene, phrase, prompt_of, random_part, random_scene

BUDGET = Budget(steps=2900, batch=64, learning_rate=1.2e-3, warmup=150, weight_decay=0.01, ema_decay=0.998)
RENDERS = 24_000
WIDTH = 128


def build_unet() -> UNet2DConditionModel:
    """The untrained UNet on 8 channels of 16x16.

    The 16x16 level is thin and without attention: it only carries detail past the 8x8 and 4x4 levels, where prompt and
    picture meet. That keeps a forward almost as cheap as that of a UNet on 8x8 latents.
    """
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=8,
        out_channels=8,
        block_out_channels=(32, 96, 128),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,  # for this class of diffusers the number of heads, not their width
        norm_num_groups=16,
    )


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
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


def build_scheduler() -> DDIMScheduler:
    """DDIM over 1000 steps, v-prediction. With `set_alpha_to_one` off the last step keeps a positive sigma."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.02,  # above Stable Diffusion's 0.012: the last step is then nearly pure noise
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        set_alpha_to_one=False,
        clip_sample=False,
        timestep_spacing="trailing",
    )


def random_prompt(scene: Scene, rng: np.random.Generator) -> str:
    """A training prompt: empty in a tenth of cases, otherwise some aspects, canonical or paraphrased."""
    if rng.random() < 0.1:
        return ""
    part = random_part(scene, rng)
    return prompt_of(part) if rng.random() < 0.5 else phrase(part, rng)


def encode_renders(vae: AutoencoderKL, images: torch.Tensor, path: Path, device: torch.device) -> torch.Tensor:
    """Scaled latents f32 [N 8 16 16] of u8 [N 3 64 64]; kept at `path`."""
    if path.exists():
        return load_file(path)["latents"]
    with torch.no_grad():
        parts = [vae.encode(to_float(part, device)).latent_dist.mean.cpu() for part in images.split(64)]
    latents = torch.cat(parts).contiguous() * vae.config.scaling_factor
    save_file({"latents": latents}, path)
    return latents


def tokenize(tokenizer: CLIPTokenizer, prompts: list[str]) -> torch.Tensor:
    """Token ids i64 [N 32], padded and cut as the pipeline does."""
    return tokenizer(
        prompts, padding="max_length", max_length=PROMPT_TOKENS, truncation=True, return_tensors="pt"
    ).input_ids


def publish_policy(trainer: Trainer, tokenizer: CLIPTokenizer, out: Path) -> None:
    """Put the moving average into `out` as a float16 pipeline directory, file by file, each whole at any time."""
    trainer.swap_ema()
    modules = {name: copy.deepcopy(module).half().eval() for name, module in trainer.module.items()}
    trainer.swap_ema()
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(out / "vae", torch_dtype=torch.float16),
        text_encoder=modules["text_encoder"],
        tokenizer=tokenizer,
        unet=modules["unet"],
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    staging = out / ".policy"
    pipeline.save_pretrained(staging)
    save_tokenizer(tokenizer, staging / "tokenizer")
    for file in sorted(path for path in staging.rglob("*") if path.is_file()):
        target = out / file.relative_to(staging)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(file, target)
    shutil.rmtree(staging)


def train_policy(out: Path, work: Path, *, budget: Budget, seed: int, device: torch.device) -> dict[str, float]:
    """Train UNet and text encoder on `out/vae`'s latents, save to `out`; returns seconds and the base's accuracy."""
    torch.manual_seed(seed)
    images, scenes = make_renders(RENDERS, seed, work)
    vae = AutoencoderKL.from_pretrained(out / "vae", torch_dtype=torch.float32).to(device)
    latents = encode_renders(vae, images, work / f"latents-{seed}.safetensors", device)
    tokenizer = make_clip_tokenizer(out / "tokenizer", seed)
    modules = {"unet": build_unet().to(device), "text_encoder": build_text_encoder(tokenizer).to(device)}
    trainer = Trainer("policy", modules, budget, work=work, log=out / "logs" / "policy.jsonl")
    alphas = build_scheduler().alphas_cumprod.to(device)

    def loss_at(numbers, noise):
        rows = numbers.integers(0, len(latents), budget.batch)
        ids = tokenize(tokenizer, [random_prompt(scenes[row], numbers) for row in rows]).to(device)
        clean = latents[torch.from_numpy(rows)].to(device)
        # One timestep from each of `batch` equal parts of the schedule: less noise in the loss than free draws.
        spread = torch.rand(budget.batch, generator=noise) + torch.arange(budget.batch)
        timesteps = (spread * len(alphas) / budget.batch).long().to(device)
        epsilon = torch.randn(clean.shape, generator=noise).to(device)
        alpha = alphas[timesteps].view(-1, 1, 1, 1)
        noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * epsilon
        velocity = alpha.sqrt() * epsilon - (1 - alpha).sqrt() * clean
        text = modules["text_encoder"](ids).last_hidden_state
        return {"loss": (modules["unet"](noisy, timesteps, text).sample - velocity).square().mean()}

    seconds = trainer.run(loss_at, seed=seed, on_checkpoint=lambda: publish_policy(trainer, tokenizer, out))
    accuracy = base_accuracy(out, device, count=512)
    return {"seconds": seconds} | {f"accuracy_{aspect}": value for aspect, value in accuracy.items()}


@torch.no_grad()
def sample_images(pipeline: StableDiffusionPipeline, prompts: list[str], seed: int, steps: int = 10) -> np.ndarray:
    """One image a prompt, u8 [N 64 64 3]: DDIM with eta 1 and without guidance, as the policy samples."""
    pipeline.set_progress_bar_config(disable=True)
    images = []
    for start in range(0, len(prompts), 64):
        generator = torch.Generator().manual_seed(seed + start)
        part = pipeline(
            prompts[start : start + 64],
            num_inference_steps=steps,
            guidance_scale=1.0,
            eta=1.0,
            generator=generator,
            output_type="np",
        ).images
        images.append(np.rint(part * 255).astype(np.uint8))
    return np.concatenate(images)


def base_accuracy(out: Path, device: torch.device, *, count: int, seed: int = 30_000) -> dict[str, float]:
    """What the oracle sees of fresh prompts in the base's samples: accuracy per aspect, and "mean" over prompts."""
    rng = np.random.default_rng(seed)
    prompts = [prompt_of(random_part(random_scene(rng), rng)) for _ in range(count)]
    pipeline = StableDiffusionPipeline.from_pretrained(out, torch_dtype=torch.float32).to(device)
    images = sample_images(pipeline, prompts, seed)
    oracle = Oracle.from_pretrained(out / "oracle", device)
    mean = float(np.nanmean(oracle.accuracy(images, prompts)))
    return oracle.accuracy_by_aspect(images, prompts) | {"mean": mean}
