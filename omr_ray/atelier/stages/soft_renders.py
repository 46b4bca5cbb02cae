"""Renders as a policy's pictures look: what reward model and CLIP learn from. The oracle, which judges, sees sharp ones alone.

Some are shown as the autoencoder gives them back, some as the policy repaints them: noised a little and denoised under the prompt
that names all they show. So it is known what a picture shows without anybody having to read it. All are blurred a little.
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from omr_ray.atelier.stages.autoencoder import load_autoencoder
from omr_ray.atelier.stages.policy import RENDERS, encode_renders
from omr_ray.atelier.stages.renders import labels_of, make_renders
from omr_ray.atelier.world import Scene, prompt_of
from omr_ray.diffusion.policy import Policy
from omr_ray.diffusion.sampler import MultiRoundSampler

RECONSTRUCTED = 6000
REPAINTED = 12_000
REPAINT_STRENGTH = 0.4  # two of five steps: from higher up some of what the prompt names would be lost


class SoftRenders:
    """The renders of a seed, `scenes` and the seven class numbers `labels` (i64 [N 7]) of each, and pictures of them."""

    def __init__(self, out: Path, work: Path, seed: int, device: torch.device, *, repainted: bool) -> None:
        """`out` holds the autoencoder, and the policy where some are to be `repainted`."""
        self._images, self.scenes = make_renders(RENDERS, seed, work)
        self.labels = torch.tensor([labels_of(scene) for scene in self.scenes])
        self.vae = load_autoencoder(out, device)
        latents = encode_renders(self.vae, self._images, work / f"latents-{seed}.safetensors", device)
        self._soft, self._share = reconstruct(self.vae, latents[:RECONSTRUCTED], device), 0.5
        if repainted:
            rows = slice(RECONSTRUCTED, RECONSTRUCTED + REPAINTED)
            painted = repaint(out, latents[rows], self.scenes[rows], work / f"repainted-{seed}.safetensors", device)
            self._soft, self._share = torch.cat([self._soft, painted]), 0.75

    def pixels(self, rows: torch.Tensor, noise: torch.Generator) -> torch.Tensor:
        """Pictures of the scenes `rows` (i64 [N]), f32 [N 3 64 64] in 0..1."""
        picked = self._images[rows]
        soft = (rows < len(self._soft)) & (torch.rand(len(rows), generator=noise) < self._share)
        picked[soft] = self._soft[rows[soft]]
        return blur_some(picked.float() / 255, noise)


def repaint(out: Path, latents: torch.Tensor, scenes: list[Scene], path: Path, device: torch.device) -> torch.Tensor:
    """The policy's edits of scaled latents [N C 16 16] under the whole prompts of their scenes, u8 [N 3 64 64]; kept at `path`."""
    if path.exists():
        return load_file(path)["images"]
    policy = Policy.from_pretrained(str(out), device=str(device), rank=None)
    options: Any = {"siblings": 1, "window": (1, 1), "train_steps_per_round": 1, "shared_window": False}
    sampler = MultiRoundSampler(policy, steps=5, eta=1.0, guidance_scale=1.0, strength=[REPAINT_STRENGTH], **options)
    prompts = [prompt_of(scene.aspects()) for scene in scenes]
    images, _ = sampler.generate(prompts, seeds=list(range(len(prompts))), from_latents=latents.numpy())
    painted = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    save_file({"images": painted}, path)
    return painted


def blur_some(images: torch.Tensor, noise: torch.Generator) -> torch.Tensor:
    """Each image mixed with a 3x3 mean of itself, by up to 0.6: the policy's pictures are a little soft."""
    strength = 0.6 * torch.rand(len(images), 1, 1, 1, generator=noise)
    return torch.lerp(images, F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1), strength)


@torch.no_grad()
def reconstruct(vae: Any, latents: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Scaled latents as u8 [N 3 64 64] pictures."""
    parts = [vae.decode(part.to(device) / vae.config.scaling_factor).sample.cpu() for part in latents.split(64)]
    return ((torch.cat(parts) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
