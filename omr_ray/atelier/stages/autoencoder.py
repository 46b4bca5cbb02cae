"""Stage 1: AutoencoderKL, 64x64 RGB to 5 channels of 16x16.

The decoder is the ceiling of everything the policy can show, so almost nothing of the KL term is kept:
it exists to hold the latent's scale, not to make it Gaussian. Noise on the latent in training makes the
decoder forgive what a diffusion model gets slightly wrong. The gradient term keeps thin stripes and edges.
Afterwards the latents are turned to their principal axes, of which the five that carry anything are kept;
the diffusion model then sees zero mean and unit deviation, and `scaling_factor` is 1.
"""

import math
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL

from omr_ray.atelier.stages.loop import Budget, Trainer
from omr_ray.atelier.stages.renders import make_renders, to_float

BUDGET = Budget(steps=4200, batch=8, learning_rate=1.5e-3, warmup=200, weight_decay=0.0, ema_decay=0.999)
RENDERS = 12_000
TRAINED_CHANNELS, KEPT_CHANNELS = 8, 5
SCALE_WEIGHT = 1e-4  # on the squared mean, the only part of the KL term that is kept
LATENT_NOISE = 0.1  # of the latent's own deviation


def build_autoencoder(latent_channels: int) -> Any:  # diffusers' classes carry no types that a checker can follow
    """The untrained AutoencoderKL."""
    return AutoencoderKL(
        block_out_channels=(16, 32, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=64,
        scaling_factor=1.0,
    )


def reconstruction_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean absolute plus squared error, of the pixels and of their differences to both neighbours."""
    error = output - target
    down, across = error.diff(dim=2), error.diff(dim=3)
    return error.abs().mean() + error.square().mean() + 0.5 * (down.abs().mean() + across.abs().mean())


def load_autoencoder(out: Path, device: torch.device) -> Any:
    """The trained autoencoder in `out/vae`, in float32."""
    autoencoder: Any = AutoencoderKL.from_pretrained(out / "vae", torch_dtype=torch.float32)
    return autoencoder.to(device).eval().requires_grad_(False)


@torch.no_grad()
def to_principal_axes(vae: Any, latents: torch.Tensor, kept: int) -> Any:
    """A new autoencoder whose `kept` channels are the principal axes of `latents` [N C H W], of unit variance on average.

    Axes that carry less than the noise the decoder was trained with are of no use to it, and would only be noise for
    the diffusion model to predict. Nothing else changes, and nothing at all where every axis is kept. The relative
    sizes of the axes stay: what matters most for the image then also stands out most from the noise.
    """
    axes, mean, scale = principal_axes(latents, kept)
    channels = len(mean)
    new = build_autoencoder(kept)
    taken = {"encoder.conv_out", "quant_conv", "post_quant_conv", "decoder.conv_in"}
    rest = {name: value for name, value in vae.state_dict().items() if name.rpartition(".")[0] not in taken}
    new.load_state_dict(rest, strict=False)

    # Encoder: z = axes^T (Q h + q - mean) / scale, all of it inside the convolution that gives h.
    into = axes.T @ vae.quant_conv.weight[:channels, :, 0, 0] / scale
    out = vae.encoder.conv_out
    new.encoder.conv_out.weight[:kept] = torch.einsum("kc,cihw->kihw", into, out.weight)
    new.encoder.conv_out.bias[:kept] = into @ out.bias + axes.T @ (vae.quant_conv.bias[:channels] - mean) / scale
    # The posterior's deviation is a tenth of the noise the decoder was trained to forgive.
    new.encoder.conv_out.weight[kept:] = 0
    new.encoder.conv_out.bias[kept:] = 2 * math.log(0.1 * LATENT_NOISE)
    _set_identity(new.quant_conv)

    # Decoder: A (mean + scale axes z) + a = M z + n = M (z + d) + r. Only d may stand before the zero padding.
    first, weight = vae.decoder.conv_in, vae.post_quant_conv.weight[:, :, 0, 0]
    mix, offset = scale * weight @ axes, weight @ mean + vae.post_quant_conv.bias
    shift = torch.linalg.lstsq(mix, offset[:, None]).solution[:, 0]
    _set_identity(new.post_quant_conv)
    new.post_quant_conv.bias.copy_(shift)
    new.decoder.conv_in.weight.copy_(torch.einsum("oihw,ik->okhw", first.weight, mix))
    new.decoder.conv_in.bias.copy_(first.bias + first.weight.sum((2, 3)) @ (offset - mix @ shift))
    return new.eval().to(latents.device)


def principal_axes(latents: torch.Tensor, kept: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Axes [C kept] by falling variance, the mean [C], and the root of the mean variance along the axes."""
    values = latents.movedim(1, -1).flatten(0, -2)
    mean = values.mean(0)
    variances, axes = torch.linalg.eigh((values - mean).T @ (values - mean) / len(values))
    return axes.flip(1)[:, :kept], mean, variances.flip(0)[:kept].mean().sqrt()


def _set_identity(conv: Any) -> None:
    conv.weight.copy_(torch.eye(len(conv.weight))[:, :, None, None])
    assert conv.bias is not None
    conv.bias.zero_()


def train_autoencoder(out: Path, work: Path, *, budget: Budget, seed: int, device: torch.device) -> dict[str, float]:
    """Train, turn the latents to their principal axes, save to `out/vae`; returns seconds and the error on fresh renders."""
    torch.manual_seed(seed)
    images, _ = make_renders(RENDERS, seed, work)
    vae = build_autoencoder(TRAINED_CHANNELS).to(device, memory_format=torch.channels_last)
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
    vae.eval().to(memory_format=torch.contiguous_format)
    with torch.no_grad():
        latents = torch.cat([vae.encode(to_float(part, device)).latent_dist.mean for part in images[:2048].split(64)])
        vae = to_principal_axes(vae, latents, KEPT_CHANNELS)
        test = to_float(make_renders(512, seed + 1, work)[0], device)
        error = torch.cat([vae.decode(vae.encode(x).latent_dist.mean).sample - x for x in test.split(64)])
    vae.half().save_pretrained(out / "vae")
    return {"seconds": seconds, "mean_absolute_error": float(error.abs().mean())}
