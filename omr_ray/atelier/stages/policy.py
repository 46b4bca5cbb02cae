"""Stage 4: the policy, a text-conditioned UNet on the autoencoder's latents, and its CLIP text encoder.

The encoder learns to read first and is then frozen, as Stable Diffusion's is: trained on with the UNet it forgot half
of what it could tell apart before the UNet had found a use for it. The network predicts the clean latent: with few
parameters and few steps that is much easier than noise or velocity, which it would have to carry through from its
input (as JiT found for pixels, arXiv:2511.13720). Prompts are drawn anew at every step. Two phases:

    layout    the UNet without attention at 16x16, mostly at the noisy end, where it is settled what a picture shows
    details   with attention at 16x16, mostly at the middle, where pattern, color and accessories are settled

What is shipped is the moving average of the weights, in the layout `StableDiffusionPipeline.from_pretrained` reads.
"""

import copy
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

from omr_ray.algorithm.multi_scale import multi_scale_square
from omr_ray.atelier.oracle import Oracle
from omr_ray.atelier.stages.autoencoder import load_autoencoder
from omr_ray.atelier.stages.loop import Budget, Trainer
from omr_ray.atelier.stages.renders import make_renders, to_float
from omr_ray.atelier.stages.text_encoder import WIDTH, random_prompt, tokenize, warm_up_text_encoder
from omr_ray.atelier.stages.tokenizers import make_clip_tokenizer, save_tokenizer
from omr_ray.atelier.world import Scene, prompt_of, random_part, random_scene

BUDGET = Budget(steps=5000, batch=32, learning_rate=1.2e-3, ema_decay=0.999)
DETAILS = Budget(steps=2500, batch=32, learning_rate=8e-4, ema_decay=0.99)
RENDERS = 24_000
TIMESTEPS = 1000
LARGEST_WEIGHT, LARGEST_DETAIL_WEIGHT = 2.5, 4.0
DETAIL_TIMESTEPS, DETAIL_SHARE = 650, 0.8  # so many of the details' rows stand below that timestep
SCALE_WEIGHTS = {1: 1.0, 2: 3.0, 4: 6.0}  # cells that are averaged, weight


def build_unet(channels: int, fine: bool = True) -> Any:  # diffusers' classes carry no types that a checker can follow
    """The untrained UNet on `channels` channels of 16x16; `fine` is attention at that level, beside 8x8 and 4x4.

    The prompt also enters pooled, through the time embedding that scales and shifts every block.
    """
    outer = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D") if fine else ("DownBlock2D", "UpBlock2D")
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(32, 64, 128),
        down_block_types=(outer[0], "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", outer[1]),
        layers_per_block=1,
        only_cross_attention=(fine, False, False),
        cross_attention_dim=WIDTH,
        attention_head_dim=4,  # for this class of diffusers the number of heads, not their width
        norm_num_groups=16,
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
        resnet_time_scale_shift="scale_shift",
    )


def with_fine_attention(coarse: Any) -> Any:
    """The same function as a UNet that has attention at 16x16 too: what is added starts by adding nothing.

    Where it settles what to draw it is not needed and costs a third of the time; an edit needs it. Without it the prompt
    has no say at the level that copies the old picture, and an adapter on attention has no hold there.
    """
    unet = build_unet(coarse.config.in_channels)
    missing = unet.load_state_dict(coarse.state_dict(), strict=False).missing_keys
    for name, parameter in unet.named_parameters():
        if name in missing and ".proj_out." in name:
            torch.nn.init.zeros_(parameter)
    return unet


def build_scheduler() -> Any:
    """DDIM over 1000 steps; the network predicts the clean latent. With `set_alpha_to_one` off the last step keeps a positive sigma."""
    return DDIMScheduler(
        num_train_timesteps=TIMESTEPS,
        beta_start=0.00085,
        beta_end=0.02,  # above Stable Diffusion's 0.012: the last step is then nearly pure noise
        beta_schedule="scaled_linear",
        prediction_type="sample",
        set_alpha_to_one=False,
        clip_sample=False,
        timestep_spacing="trailing",
    )


def encode_renders(vae: Any, images: torch.Tensor, path: Path, device: torch.device) -> torch.Tensor:
    """Scaled latents f32 [N C 16 16] of u8 [N 3 64 64]; kept at `path`."""
    if path.exists():
        return load_file(path)["latents"]
    with torch.no_grad():
        parts = [vae.encode(to_float(part, device)).latent_dist.mean.cpu() for part in images.split(64)]
    latents = torch.cat(parts).contiguous() * vae.config.scaling_factor
    save_file({"latents": latents}, path)
    return latents


def publish_policy(trainer: Trainer, text_encoder: Any, tokenizer: CLIPTokenizer, out: Path) -> None:
    """Put the moving average into `out` as a float16 pipeline directory, file by file, each whole at any time."""
    trainer.swap_ema()
    unet: Any = copy.deepcopy(trainer.module["unet"]).half().eval()
    trainer.swap_ema()
    pipeline: Any = StableDiffusionPipeline(
        vae=load_autoencoder(out, torch.device("cpu")).half(),
        text_encoder=copy.deepcopy(text_encoder).half(),
        tokenizer=tokenizer,
        unet=unet,
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


class NoisedRows(NamedTuple):
    rows: torch.Tensor  # i64 [N], of the renders
    clean: torch.Tensor  # f32 [N C 16 16]
    noisy: torch.Tensor  # f32 [N C 16 16]
    text: torch.Tensor  # f32 [N 32 D], encoded prompts
    weight: torch.Tensor  # f32 [N 1 1 1], of each row's error


class NoisedRenders:
    """Draws rows of encoded renders, with prompts made anew and noise on top."""

    def __init__(
        self, latents: torch.Tensor, scenes: list[Scene], tokenizer: CLIPTokenizer, text_encoder: Any, device: torch.device
    ) -> None:
        self.latents, self.scenes, self.tokenizer, self.text_encoder = latents, scenes, tokenizer, text_encoder
        self.alphas = build_scheduler().alphas_cumprod.to(device)

    def draw(self, numbers: np.random.Generator, noise: torch.Generator, timesteps: torch.Tensor, largest_weight: float) -> NoisedRows:
        """One row for each of timesteps i64 [N]."""
        device, rows = self.alphas.device, numbers.integers(0, len(self.latents), len(timesteps))
        ids = tokenize(self.tokenizer, [random_prompt(self.scenes[row], numbers) for row in rows]).to(device)
        clean = self.latents[torch.from_numpy(rows)].to(device)
        alpha = self.alphas[timesteps].view(-1, 1, 1, 1)
        noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * torch.randn(clean.shape, generator=noise).to(device)
        with torch.no_grad():
            text = self.text_encoder(ids).last_hidden_state
        # Up to the limit, 1 / (1 - alpha) is the weight that v-prediction gives to the same error.
        weight = (1 / (1 - alpha)).clamp(max=largest_weight)
        return NoisedRows(rows=torch.from_numpy(rows), clean=clean, noisy=noisy, text=text, weight=weight)


def train_policy(out: Path, work: Path, *, budget: Budget, seed: int, device: torch.device) -> dict[str, float]:
    """Train the text encoder, then the UNet on `out/vae`'s latents, save to `out`; returns seconds and the base's accuracy."""
    torch.manual_seed(seed)
    images, scenes = make_renders(RENDERS, seed, work)
    latents = encode_renders(load_autoencoder(out, device), images, work / f"latents-{seed}.safetensors", device)
    tokenizer = make_clip_tokenizer(out / "tokenizer", seed)
    text_encoder = warm_up_text_encoder(tokenizer, out, work, seed=seed, device=device)
    renders = NoisedRenders(latents, scenes, tokenizer, text_encoder, device)

    def layout_loss(unet, numbers, noise):
        timesteps = noisy_timesteps(budget.batch, noise).to(device)
        drawn = renders.draw(numbers, noise, timesteps, LARGEST_WEIGHT)
        error = unet(drawn.noisy, timesteps, drawn.text).sample - drawn.clean
        return {"loss": multi_scale_square(drawn.weight.sqrt() * error, SCALE_WEIGHTS).mean(), "error": error.detach().square().mean()}

    def details_loss(unet, numbers, noise):
        timesteps = detail_timesteps(budget.batch, noise).to(device)
        drawn = renders.draw(numbers, noise, timesteps, LARGEST_DETAIL_WEIGHT)
        error = unet(drawn.noisy, timesteps, drawn.text).sample - drawn.clean
        return {"loss": (drawn.weight * error.square()).mean(), "error": error.detach().square().mean()}

    def run(phase, unet, phase_budget, loss):
        """Train `unet` in place to the moving average of its weights; returns the seconds spent."""
        trainer = Trainer(phase, {"unet": unet}, phase_budget, work=work, log=out / "logs" / f"{phase}.jsonl")
        publish = partial(publish_policy, trainer, text_encoder, tokenizer, out)
        seconds = trainer.run(partial(loss, unet), seed=seed, on_checkpoint=publish)
        trainer.swap_ema()
        return seconds

    unet = build_unet(latents.shape[1], fine=False).to(device)
    seconds = run("policy", unet, budget, layout_loss)
    unet = with_fine_attention(unet).to(device)
    seconds += run("policy_details", unet, DETAILS, details_loss)
    accuracy = base_accuracy(out, device, count=512)
    return {"seconds": seconds} | {f"accuracy_{aspect}": value for aspect, value in accuracy.items()}


def noisy_timesteps(count: int, noise: torch.Generator) -> torch.Tensor:
    """i64 [count], one from each of `count` equal shares of a distribution that leans to the noisy end.

    What a picture shows is settled at the noisy end. Equal shares make the loss less noisy than free draws.
    """
    return (TIMESTEPS * _even_shares(count, noise) ** 0.8).long()


def detail_timesteps(count: int, noise: torch.Generator) -> torch.Tensor:
    """i64 [count] in equal shares: `DETAIL_SHARE` of them below `DETAIL_TIMESTEPS`, the others above, lest it forgets."""
    share = _even_shares(count, noise)
    below = share / DETAIL_SHARE * DETAIL_TIMESTEPS
    above = TIMESTEPS - (1 - share) / (1 - DETAIL_SHARE) * (TIMESTEPS - DETAIL_TIMESTEPS)
    return torch.where(share < DETAIL_SHARE, below, above).long()


def _even_shares(count: int, noise: torch.Generator) -> torch.Tensor:
    """f32 [count] in 0..1, one from each of `count` equal parts."""
    return (torch.rand(count, generator=noise) + torch.arange(count)) / count


@torch.no_grad()
def sample_images(pipeline: Any, prompts: list[str], seed: int, steps: int = 10) -> np.ndarray:
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
    pipeline: Any = StableDiffusionPipeline.from_pretrained(out, torch_dtype=torch.float32)
    images = sample_images(pipeline.to(device), prompts, seed)
    oracle = Oracle.from_pretrained(out / "oracle", device)
    mean = float(np.nanmean(oracle.accuracy(images, prompts)))
    return oracle.accuracy_by_aspect(images, prompts) | {"mean": mean}
