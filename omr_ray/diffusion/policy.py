"""The policy pi(z_{t-1} | z_t, P): a frozen Stable Diffusion UNet with a LoRA adapter (OMR eq. 2, 10-12)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch import Tensor

from omr_ray.algorithm.gaussian import ddim_mean_and_sigma
from omr_ray.diffusion import ddim
from omr_ray.diffusion.loading import Parts, load_controlnet, load_parts
from omr_ray.diffusion.text import Text, TextEncoders
from omr_ray.types import UserError

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
LORA_SEED = 0  # of the A matrices: every process starts from the same adapter
DECODED_PIXELS = 2**21  # of one VAE call outside training: 8 images of 512 x 512, about 3 GiB in bfloat16


def lora_config(rank: int, alpha: float) -> LoraConfig:
    """LoRA on attention q, k, v and out (OMR eq. 10), as PEFT describes it."""
    number: Any = alpha  # PEFT annotates an int and takes any number
    return LoraConfig(r=rank, lora_alpha=number, target_modules=list(TARGETS))


class Policy:
    """UNet + LoRA, text encoders, VAE and noise schedule of one model, and a ControlNet for poses where one is given.

    `network` is the UNet itself. `unet` is what `predict` calls: the same object, until a learner puts a wrapper
    (a DeepSpeed engine) around it there. LoRA parameters are float32 whatever the base is, and latents, model outputs
    and all the scheduler's arithmetic are float32.
    """

    def __init__(self, parts: Parts, *, path: str, rank: int | None, alpha: float, controlnet: Any = None) -> None:
        self.path, self.rank, self.alpha = path, rank, alpha
        self.network, self.vae, self.controlnet = parts.unet, parts.vae, controlnet
        self.text = TextEncoders(parts.tokenizers, parts.text_encoders, parts.zero_empty_prompt)
        self.alphas_cumprod: Tensor = parts.scheduler.alphas_cumprod.float()
        self.prediction_type: str = parts.scheduler.config.prediction_type
        self.num_train_timesteps: int = parts.scheduler.config.num_train_timesteps
        self._spacing = (parts.scheduler.config.timestep_spacing, parts.scheduler.config.steps_offset)
        self.vae_factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        size = self.network.config.sample_size
        self.height, self.width = (side * self.vae_factor for side in ((size, size) if isinstance(size, int) else size))
        self._memory_format = self._vae_format = torch.contiguous_format
        self._layers: list[LoraLayer] = []
        if rank is not None:
            self._add_lora(rank)
        self.unet: Any = self.network

    @classmethod
    def from_pretrained(
        cls,
        path: str,
        *,
        dtype: str = "float32",
        device: str = "cpu",
        rank: int | None = 4,
        alpha: float = 4.0,
        channels_last: bool = False,
        compile: bool = False,
        controlnet: str | None = None,
    ) -> Policy:
        """Load a model directory in the diffusers format, or a hub id. Raises UserError for one that cannot be used.

        rank None adds no adapter: there is nothing to turn off, and the UNet itself is what learns, if anything does.
        controlnet: directory or hub id of a ControlNet made for this UNet; it takes no part unless heat maps are given.
        """
        parts = load_parts(str(path), getattr(torch, dtype))
        control = None if controlnet is None else load_controlnet(controlnet, parts)
        policy = cls(parts, path=str(path), rank=rank, alpha=alpha, controlnet=control)
        return policy._prepared(device, channels_last, compile)

    def _prepared(self, device: str, channels_last: bool, compile: bool) -> Policy:
        if channels_last:
            self._memory_format = torch.channels_last
        if channels_last or device == "cpu":
            self._vae_format = torch.channels_last  # on a CPU an image takes a third less time to decode, the UNet no less
        guides = [] if self.controlnet is None else [self.controlnet]
        for module in (self.network, self.vae, *guides, *self.text.encoders):
            module.to(device)
        for module in (self.network, *guides):
            module.to(memory_format=self._memory_format)
        self.vae.to(memory_format=self._vae_format)
        self.alphas_cumprod = self.alphas_cumprod.to(device)
        if compile:
            self.network.compile()
        return self

    def _add_lora(self, rank: int) -> None:
        """LoRA on attention q, k, v and out (OMR eq. 10): W + (alpha / rank) B A, with B zero and A seeded."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(LORA_SEED)
            self.network.add_adapter(lora_config(rank, self.alpha))
        self._layers = [module for module in self.network.modules() if isinstance(module, LoraLayer)]
        for parameter in self.lora_parameters().values():
            parameter.data = parameter.data.float()

    # -- text ----------------------------------------------------------------------------------------------------------

    def tokenize(self, prompts: Sequence[str]) -> np.ndarray:
        """Token ids i64 [N E L]."""
        return self.text.tokenize(prompts)

    def encode_text(self, prompt_ids: np.ndarray | Tensor) -> Text:
        """The conditioning of token ids i64 [N E L]; distinct prompts are encoded once and kept."""
        return self.text.encode(prompt_ids)

    # -- the network ---------------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        return self.alphas_cumprod.device

    def unet_inputs(self, latents: Tensor, timesteps: Tensor, text: Text, heat_maps: Tensor | None = None) -> dict[str, Any]:
        """Keyword arguments of the UNet for latents [N C H W], timesteps i64 [N] and N rows of text.

        With heat_maps [N K 8h 8w] (or whatever the VAE's factor is) they hold what the ControlNet adds to the UNet's own
        activations (arXiv:2302.05543).
        """
        added = dict(text.added) if text.added is not None else None
        if added is not None and "time_ids" not in added:
            height, width = (side * self.vae_factor for side in latents.shape[-2:])
            # SDXL's micro-conditioning: original size, crop, target size (arXiv:2307.01952, section 2.2).
            added["time_ids"] = torch.tensor([[height, width, 0, 0, height, width]], device=self.device).expand(len(latents), -1)
        inputs = {
            "sample": latents.to(self.device, self.network.dtype, memory_format=self._memory_format),
            "timestep": timesteps.to(self.device),
            "encoder_hidden_states": text.hidden,
            "added_cond_kwargs": added,
            "return_dict": False,
        }
        return inputs if heat_maps is None else inputs | self._pose_residuals(inputs, heat_maps)

    def _pose_residuals(self, inputs: dict[str, Any], heat_maps: Tensor) -> dict[str, Any]:
        if self.controlnet is None:
            raise UserError(f"a pose was given, but {self.path} has no ControlNet beside it; set model.controlnet, or give no pose")
        wanted, found = self.controlnet.config.conditioning_channels, heat_maps.shape[1]
        if wanted != found:
            raise UserError(f"the ControlNet reads {wanted} keypoints, the pose has {found}; take the pose estimator it was trained with")
        down, middle = self.controlnet(controlnet_cond=heat_maps.to(self.device, self.controlnet.dtype), **inputs)
        return {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}

    def predict(
        self, latents: Tensor, timesteps: Tensor, text: Text, guidance_scale: float = 1.0, heat_maps: Tensor | None = None
    ) -> Tensor:
        """The model output for latents [N C H W], timesteps i64 [N], text and, where a pose leads, heat maps; float32 [N C H W].

        guidance_scale w > 1 is classifier-free guidance, o(empty) + w (o(P) - o(empty)) (arXiv:2207.12598, eq. 6), with
        both branches in one call of the UNet. Both get the pose.
        """
        if guidance_scale <= 1.0:
            return self.unet(**self.unet_inputs(latents, timesteps, text, heat_maps))[0].float()
        both = text.join(self.text.empty(len(text)))
        poses = None if heat_maps is None else torch.cat([heat_maps, heat_maps])
        doubled = self.unet_inputs(torch.cat([latents, latents]), torch.cat([timesteps, timesteps]), both, poses)
        prompted, empty = self.unet(**doubled)[0].float().chunk(2)
        return empty + guidance_scale * (prompted - empty)

    def step(
        self,
        latents: Tensor,
        timesteps: Tensor,
        previous_timesteps: Tensor,
        text: Text,
        *,
        eta: float,
        guidance_scale: float = 1.0,
        heat_maps: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One denoising step as a Gaussian (OMR eq. 2): mean [N C H W], sigma [N] and x0 [N C H W] of z_{t-1}."""
        output = self.predict(latents, timesteps, text, guidance_scale, heat_maps)
        latents = latents.to(self.device)
        return ddim_mean_and_sigma(output, latents, timesteps, previous_timesteps, self.alphas_cumprod, self.prediction_type, eta)

    def schedule(self, steps: int) -> tuple[np.ndarray, np.ndarray]:
        """Timesteps and previous timesteps, i64 [S] each, descending, in the spacing of the model's own scheduler."""
        return ddim.schedule(self.num_train_timesteps, steps, *self._spacing)

    # -- the adapter ---------------------------------------------------------------------------------------------------

    @contextmanager
    def adapter_off(self) -> Iterator[None]:
        """Inside, the policy is its own reference: the base, bit for bit."""
        turned_off = [layer for layer in self._layers if not layer.disable_adapters]
        for layer in turned_off:
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in turned_off:
                layer.enable_adapters(True)

    def lora_parameters(self) -> dict[str, torch.nn.Parameter]:
        """The only parameters that learn: "<module>.lora_A.weight" [rank, in] and "<module>.lora_B.weight" [out, rank]."""
        named = self.network.named_parameters()
        return {name.replace(".default.", "."): parameter for name, parameter in named if ".lora_A." in name or ".lora_B." in name}

    def lora_weights(self) -> dict[str, np.ndarray]:
        """Copies of the adapter's weights, float32."""
        return {name: parameter.detach().float().cpu().numpy().copy() for name, parameter in self.lora_parameters().items()}

    def load_lora(self, weights: Mapping[str, np.ndarray]) -> None:
        """Take over the adapter `weights`, all of them. Raises UserError when names or shapes are not this model's."""
        parameters = self.lora_parameters()
        strange = sorted(parameters.keys() ^ weights.keys())
        if strange:
            raise UserError(f"the adapter does not fit {self.path}: {len(strange)} names differ, first {strange[0]}; take this model's")
        for name, parameter in parameters.items():
            if parameter.shape != weights[name].shape:
                found, expected = list(weights[name].shape), list(parameter.shape)
                raise UserError(f"the adapter does not fit: {name} is {found}, here {expected}; set lora.rank to that adapter's")
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(torch.tensor(weights[name]))

    # -- images --------------------------------------------------------------------------------------------------------

    def latent_shape(self, height: int | None = None, width: int | None = None) -> tuple[int, int, int]:
        """(C, H, W) of the latent of an image of `height` x `width` pixels; None is the model's own size."""
        sides = (height or self.height, width or self.width)
        if any(side % self.vae_factor for side in sides):
            raise UserError(f"sampler.height and width must be multiples of {self.vae_factor}, got {sides[0]} x {sides[1]}; round them")
        return (self.vae.config.latent_channels, sides[0] // self.vae_factor, sides[1] // self.vae_factor)

    @torch.no_grad()
    def encode_images(self, images: np.ndarray | Tensor) -> Tensor:
        """Images u8 [N H W 3] to latents float32 [N C h w]: the posterior's mean, scaled; a bounded number at a time."""
        images = torch.as_tensor(images)
        latents = []
        for part in images.split(max(1, DECODED_PIXELS // (images.shape[1] * images.shape[2]))):
            pixels = part.to(self.device).movedim(-1, 1).float() / 127.5 - 1
            latents.append(self.vae.encode(pixels.to(self.vae.dtype, memory_format=self._vae_format)).latent_dist.mean.float())
        return torch.cat(latents) * self.vae.config.scaling_factor

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [N C h w] to images float32 [N 3 H W] in [0, 1], differentiable."""
        scaled = latents.to(self.device) / self.vae.config.scaling_factor
        decoded = self.vae.decode(scaled.to(self.vae.dtype, memory_format=self._vae_format), return_dict=False)[0]
        return (decoded.float() / 2 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def render(self, latents: Tensor) -> np.ndarray:
        """Latents [N C h w] to images u8 [N H W 3], a bounded number at a time."""
        rows = max(1, DECODED_PIXELS // (latents.shape[-1] * latents.shape[-2] * self.vae_factor**2))
        return np.concatenate([self.to_uint8(self.decode(part)) for part in latents.split(rows)])

    @staticmethod
    def to_uint8(images: Tensor) -> np.ndarray:
        """Images float [N 3 H W] in [0, 1] to u8 [N H W 3]."""
        return (images.detach() * 255).round().to(torch.uint8).movedim(1, -1).contiguous().cpu().numpy()
