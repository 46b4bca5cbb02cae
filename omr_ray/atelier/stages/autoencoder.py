"""Stage 1: AutoencoderKL, 64x64 RGB to 8 channels of 16x16.

The decoder is the ceiling of everything the policy can show, so almost nothing of the KL term is kept:
it exists to hold the latent's scale, not to make it Gaussian. Noise on the latent in training makes the
decoder forgive what a diffusion model gets slightly wrong. The gradient term keeps thin stripes and edges.
Afterwards the latents are standardised channel by channel, exactly, inside the two 1x1 convolutions that
border them: the diffusion model then sees zero mean and unit deviation, and `scaling_factor` is 1.
"""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from omr_ray.atelier.stages.loop import Budget, Trainer
from omr_ray.atelier.stages.renders import make_renders, to_float

BUDGET = Budget(steps=4200, batch=8, learning_rate=1.5e-3, warmup=200, weight_decay=0.0, ema_decay=0.999)
RENDERS = 12_000
SCALE_WEIGHT = 1e-4  # on the squared mean, the only part of the KL term that is kept
LATENT_NOISE = 0.1  # of the latent's own deviation


def build_autoencoder() -> AutoencoderKL:
    """The untrained autoencoder."""
    return AutoencoderKL(
        block_out_channels=(16, 32, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=64,
    )


def reconstruction_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean absolute plus squared error, of the pixels and of their differences to both neighbours."""
    error = output - target
    down, across = error.diff(dim=2), error.diff(dim=3)
    return error.abs().mean() + error.square().mean() + 0.5 * (down.abs().mean() + across.abs().mean())


@torch.no_grad()
def standardise_latents(vae: AutoencoderKL, latents: torch.Tensor) -> None:
    """Make each latent channel zero mean and unit deviation over `latents` [N 8 16 16], without changing any image.

    The posterior's deviation is fixed at a tenth of the noise the decoder was trained to forgive.
    """
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    channels = len(mean)
    encode, decode = vae.quant_conv, vae.post_quant_conv
    encode.weight[:channels] /= deviation[:, None, None, None]
    encode.bias[:channels] = (encode.bias[:channels] - mean) / deviation
    encode.weight[channels:] = 0
    encode.bias[channels:] = 2 * math.log(0.1 * LATENT_NOISE)
    decode.bias += decode.weight[:, :, 0, 0] @ mean
    decode.weight *= deviation[None, :, None, None]
    vae.register_to_config(scaling_factor=1.0)


def train_autoencoder(out: Path, work: Path, *, budget: Budget, seed: int, device: torch.device) -> dict[str, float]:
    """Train, standardise the latents, save to `out/vae`; returns seconds and the error on fresh renders."""
    torch.manual_seed(seed)
    images, _ = make_renders(RENDERS, seed, work)
    vae = build_autoencoder().to(device, memory_format=torch.channels_last)
    trainer = Trainer("autoencoder", {"vae": vae}, budget, work=work, log=out / "logs" / "autoencoder.jsonl")

    def loss_at(numbers, noise):
        rows = torch.from_numpy(numbers.integers(0, len(images), budget.batch))
        target = to_float(images[rows], device)
        mean = vae.encode(target).latent_dist.mean
        level = LATENT_NOISE * mean.detach().std()
        output = vae.decode(mean + level * torch.randn(mean.shape, generator=noise).to(device)).sample
        rebuilt, scale = reconstruction_loss(output, target), mean.square().mean()
        return {"loss": rebuilt + SCALE_WEIGHT * scale, "rebuilt": rebuilt.detach(), "scale": scale.detach()}

    seconds = trainer.run(loss_at, seed=seed)
    trainer.swap_ema()
    vae.eval()
    with torch.no_grad():
        standardise_latents(vae, torch.cat([vae.encode(to_float(x, device)).latent_dist.mean for x in images[:2048].split(64)]))
        test = to_float(make_renders(512, seed + 1, work)[0], device)
        error = torch.cat([vae.decode(vae.encode(x).latent_dist.mean).sample - x for x in test.split(64)])
    vae.to(memory_format=torch.contiguous_format).half().save_pretrained(out / "vae")
    return {"seconds": seconds, "mean_absolute_error": float(error.abs().mean())}
