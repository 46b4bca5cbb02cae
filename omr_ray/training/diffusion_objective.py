"""What supervised diffusion training descends: the denoising loss of single rounds and their distance from the frozen model,
and L_multi of consecutive ones."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from omr_ray.algorithm.denoising import denoising_loss
from omr_ray.algorithm.multi_round import noised
from omr_ray.config.finetune import FinetuneRun
from omr_ray.config.run import DiffusersModel
from omr_ray.data.latent_cache import Encoded, Frame
from omr_ray.diffusion.policy import Policy
from omr_ray.diffusion.rounds import policy_round_losses
from omr_ray.diffusion.text import Text


@dataclass(frozen=True, slots=True, kw_only=True)
class DialoguePart:
    """Dialogues of one forward on one rank, all of one bucket. The loss is `scale` times the sum of their losses."""

    dialogues: Sequence[Encoded]
    seeds: Sequence[Sequence[int]]  # of each dialogue's draws
    scale: float


class SupervisedObjective(nn.Module):
    """The loss of a DialoguePart. The UNet is its only submodule: that is what DeepSpeed sees and shards."""

    def __init__(self, policy: Policy, config: FinetuneRun) -> None:
        super().__init__()
        self.network = policy.network
        self.policy, self.config = policy, config

    def forward(self, part: DialoguePart) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and for each dialogue [n] its losses; NaN where it has no two consecutive rounds.

        Which round is taken, its noise and its timestep are drawn from the dialogue's seeds alone.
        """
        config, rngs = self.config, [np.random.default_rng(seed) for seed in part.seeds]
        values: dict[str, Tensor] = {}
        total = torch.zeros(len(rngs), device=self.policy.device)
        with self._precision():
            if config.text_image.weight > 0 or config.reference.weight > 0:
                values |= self._single_rounds(part.dialogues, rngs)
                total = total + config.text_image.weight * values["denoising_loss"]
            if config.reference.weight > 0:
                total = total + config.reference.weight * values["reference_loss"]
            if config.multi_round.weight > 0:
                losses, present = self._multi_round(part.dialogues, rngs)
                total = total + config.multi_round.weight * torch.where(present, losses, 0.0)
                values["multi_round_loss"] = torch.where(present, losses, torch.nan)
        return part.scale * total.sum(), {name: value.detach() for name, value in values.items()} | {"loss": total.detach()}

    def _precision(self) -> Any:
        """A UNet that learns whole is held in float32 and computes in the model's precision."""
        model = self.config.model
        half = self.config.lora is None and isinstance(model, DiffusersModel) and model.dtype == "bfloat16"
        return torch.autocast(self.policy.device.type, torch.bfloat16) if half else nullcontext()

    def _single_rounds(self, dialogues: Sequence[Encoded], rngs: Sequence[np.random.Generator]) -> dict[str, Tensor]:
        """One round of each dialogue, noised to one timestep: its losses [n] against the data, and against the frozen model."""
        policy, settings = self.policy, self.config.text_image
        frames = [dialogue.rounds[rng.integers(len(dialogue.rounds))] for dialogue, rng in zip(dialogues, rngs, strict=True)]
        z0 = self._latents(frames)
        timesteps = torch.tensor([rng.integers(policy.num_train_timesteps) for rng in rngs], device=policy.device)
        noise = torch.from_numpy(np.stack([rng.standard_normal(z0.shape[1:], dtype=np.float32) for rng in rngs])).to(policy.device)
        text = self._text(frames, dropped=[rng.random() < settings.drop_prompt for rng in rngs])
        latents = noised(z0, timesteps, noise, policy.alphas_cumprod)
        output = policy.predict(latents, timesteps, text)
        kind = policy.prediction_type, settings.min_snr_gamma
        losses = {"denoising_loss": denoising_loss(output, z0, noise, timesteps, policy.alphas_cumprod, *kind)}
        if self.config.reference.weight > 0:
            with torch.no_grad(), policy.adapter_off():
                reference = policy.predict(latents, timesteps, text)
            losses["reference_loss"] = (output - reference).square().flatten(1).mean(1)
        return losses

    def _multi_round(self, dialogues: Sequence[Encoded], rngs: Sequence[np.random.Generator]) -> tuple[Tensor, Tensor]:
        """L_multi (OMR eq. 4, 5, 13) of two consecutive rounds of each dialogue [n], and which dialogues have such [n]."""
        pairs = [_pair(dialogue, rng) for dialogue, rng in zip(dialogues, rngs, strict=True)]
        x, y = [before for before, _ in pairs], [after for _, after in pairs]
        settings = self.config.multi_round.model_dump(exclude={"weight"})
        losses = policy_round_losses(self.policy, self._latents(x), self._latents(y), self._text(x), self._text(y), rngs, **settings)
        return losses, torch.tensor([any(dialogue.consecutive) for dialogue in dialogues], device=self.policy.device)

    def _latents(self, frames: Sequence[Frame]) -> Tensor:
        return torch.from_numpy(np.stack([frame.latent for frame in frames])).to(self.policy.device)

    def _text(self, frames: Sequence[Frame], dropped: Sequence[bool] = ()) -> Text:
        """The conditioning of the frames; that of the empty prompt where `dropped` says so."""
        device, dtype = self.policy.device, self.policy.text.encoders[0].dtype
        hidden = torch.from_numpy(np.stack([frame.hidden for frame in frames])).to(device, dtype)
        added = None
        empty = self.policy.text.empty(len(frames))
        drop = torch.tensor(list(dropped) or [False] * len(frames), device=device)
        pooled_rows = [frame.pooled for frame in frames if frame.pooled is not None]
        if pooled_rows:
            assert empty.added is not None
            pooled = torch.from_numpy(np.stack(pooled_rows)).to(device, dtype)
            pooled = torch.where(drop[:, None], empty.added["text_embeds"], pooled)
            added = {"text_embeds": pooled, "time_ids": torch.tensor([list(frame.conditioning) for frame in frames], device=device)}
        return Text(hidden=torch.where(drop[:, None, None], empty.hidden, hidden), added=added)


def _pair(dialogue: Encoded, rng: np.random.Generator) -> tuple[Frame, Frame]:
    """Two consecutive rounds; of a dialogue that has none, one round twice, which fills the shape and does not count."""
    places = np.flatnonzero(dialogue.consecutive)
    if len(places) == 0:
        return dialogue.rounds[0], dialogue.rounds[0]
    place = int(rng.choice(places))
    return dialogue.rounds[place], dialogue.rounds[place + 1]
