"""Multi-round sampling (OMR eq. 3): a chain of denoisings, in which each round starts from the last one's latent.

    round 1      z_S ~ N(0, I), denoised under P_1
    round r > 1  the same sibling's final latent of round r - 1, noised to tau_r, denoised under P_r

Dialogues x siblings go through the UNet together. Every sample draws from a stream of its own, so that what it becomes
does not depend on what else is in the batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from omr_ray.algorithm.gaussian import log_prob, per_row
from omr_ray.algorithm.multi_round import noised
from omr_ray.diffusion.ddim import executed_steps
from omr_ray.diffusion.features import features
from omr_ray.diffusion.generation import chunks, generate_guided
from omr_ray.diffusion.policy import Policy
from omr_ray.diffusion.text import Text
from omr_ray.types import Dialogue, Rollout, Trajectory, UserError

BeforeStep = Callable[[Tensor, int], Tensor]  # latents [n C H W] and the number of the step -> the latents it starts from
AfterStep = Callable[[int, int, Tensor], None]  # steps done and steps in all, and x0 [n C H W] as it looks now; may raise to stop


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """One sample of one round of one dialogue."""

    row: int  # of the dialogue in the request
    dialogue: Dialogue
    round: int  # from 1
    sibling: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSteps:
    """The steps that are kept of n samples."""

    latents: Tensor  # [n K C H W]
    next_latents: Tensor  # [n K C H W]
    log_probs: Tensor  # [n K]


class MultiRoundSampler:
    """Samples dialogues round by round, and keeps the few steps of each sample that will be trained.

    strength is tau_r of rounds 2, 3, ... as a share of the steps (the last value repeats); window [T1, T2] counts from
    the last step (1). Raises UserError where no step of some round can be trained.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        steps: int,
        eta: float,
        guidance_scale: float,
        strength: Sequence[float],
        siblings: int,
        window: tuple[int, int],
        train_steps_per_round: int,
        shared_window: bool,
        height: int | None = None,
        width: int | None = None,
        batch_size: int = 64,
    ) -> None:
        self.policy, self.steps, self.eta, self.guidance_scale = policy, steps, eta, guidance_scale
        self.strength, self.siblings, self.batch_size = tuple(strength), siblings, batch_size
        self._window, self._train_steps, self._shared_window = window, train_steps_per_round, shared_window
        self.timesteps, self.previous_timesteps = policy.schedule(steps)
        self.latent_shape = policy.latent_shape(height, width)
        for round_ in range(1, len(self.strength) + 2):
            self._trainable_steps(round_)

    def sample(self, dialogues: Sequence[Dialogue], *, seed: int, policy_version: int) -> list[Rollout]:
        """All rounds of all dialogues with `siblings` samples each; the rollouts come back in the order of the dialogues.

        The same (seed, dialogue id, round, sibling) gives the same sample in any batch.
        """
        found: dict[tuple[int, int, int], Trajectory] = {}
        last = torch.empty(len(dialogues), self.siblings, *self.latent_shape, device=self.policy.device)
        for round_ in range(1, max((len(dialogue.rounds) for dialogue in dialogues), default=0) + 1):
            jobs = [
                _Job(row=row, dialogue=dialogue, round=round_, sibling=sibling)
                for row, dialogue in enumerate(dialogues)
                if len(dialogue.rounds) >= round_
                for sibling in range(self.siblings)
            ]
            for part in chunks(jobs, self.batch_size):
                rows = torch.tensor([[job.row for job in part], [job.sibling for job in part]], device=last.device)
                final, trajectories = self._sample_round(part, last[rows[0], rows[1]], seed, policy_version)
                last[rows[0], rows[1]] = final
                found.update({(job.row, round_, job.sibling): made for job, made in zip(part, trajectories, strict=True)})
        return [
            Rollout(
                dialogue=dialogue,
                trajectories=tuple(
                    tuple(found[row, round_.index, sibling] for sibling in range(self.siblings)) for round_ in dialogue.rounds
                ),
            )
            for row, dialogue in enumerate(dialogues)
        ]

    def generate(
        self, prompts: Sequence[str], *, seeds: Sequence[int], from_latents: np.ndarray | None = None, strength: float | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """One round of N samples, images only: images u8 [N H W 3] and final latents f32 [N C H W].

        Without `from_latents` [N C H W] it is a first round; with them a later one, noised to `strength` (by default
        that of round 2). The sample of a (prompt, seed, latent) does not depend on the others.
        """
        made = generate_guided(self, prompts, seeds=seeds, from_latents=from_latents, strength=strength)
        return made.images, made.latents

    # -- one round -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _sample_round(self, jobs: Sequence[_Job], last: Tensor, seed: int, policy_version: int) -> tuple[Tensor, list[Trajectory]]:
        round_ = jobs[0].round
        seeds = [_seed(seed, job.dialogue.id, round_, job.sibling) for job in jobs]
        prompts = [job.dialogue.rounds[round_ - 1].prompt for job in jobs]
        prompt_ids = self.policy.tokenize(prompts)
        kept = np.stack([self._choose_steps(seed, job) for job in jobs])
        noise = self.noise(seeds, self._executed(round_))
        final, stored = self.denoise(self.policy.encode_text(prompt_ids), noise, None if round_ == 1 else last, kept)
        latents, next_latents = stored.latents.cpu().numpy(), stored.next_latents.cpu().numpy()
        log_probs, feature = stored.log_probs.cpu().numpy(), features(self.policy, final).cpu().numpy()
        images = self.policy.render(final)
        return final, [
            Trajectory(
                dialogue_id=job.dialogue.id,
                round=round_,
                sibling=job.sibling,
                seed=seeds[n],
                policy_version=policy_version,
                prompt=prompts[n],
                prompt_ids=prompt_ids[n],
                latents=latents[n],
                next_latents=next_latents[n],
                timesteps=self.timesteps[kept[n]],
                previous_timesteps=self.previous_timesteps[kept[n]],
                log_probs=log_probs[n],
                features=feature[n],
                image=images[n],
            )
            for n, job in enumerate(jobs)
        ]

    def denoise(
        self,
        text: Text,
        noise: Tensor,
        start: Tensor | None,
        kept: np.ndarray,
        heat_maps: Tensor | None = None,
        before_step: BeforeStep | None = None,
        after_step: AfterStep | None = None,
    ) -> tuple[Tensor, StoredSteps]:
        """Run the last `noise.shape[1] - 1` steps.

        noise [n, 1 + executed, C, H, W]: the starting noise, then one for each step; start [n C H W] or None for pure
        noise; kept i64 [n K]: numbers of the steps to store, ascending, counted from the schedule's first as 0. heat_maps
        [n K H W] where a pose leads; `before_step` may move the latents that a step starts from, `after_step` sees what it made.
        """
        count, begin, device = len(noise), self.steps - (noise.shape[1] - 1), noise.device
        timesteps = torch.tensor(self.timesteps, device=device).expand(count, -1)
        previous = torch.tensor(self.previous_timesteps, device=device).expand(count, -1)
        latents = noise[:, 0] if start is None else noised(start, timesteps[:, begin], noise[:, 0], self.policy.alphas_cumprod)
        places = {int(step): torch.tensor(np.array(np.nonzero(kept == step)), device=device) for step in np.unique(kept)}
        shape = (*kept.shape, *latents.shape[1:])
        stored = StoredSteps(
            latents=torch.empty(shape, device=device),
            next_latents=torch.empty(shape, device=device),
            log_probs=torch.empty(kept.shape, device=device),
        )
        for step in range(begin, self.steps):
            if before_step is not None:
                latents = before_step(latents, step)
            times = timesteps[:, step], previous[:, step]
            mean, sigma, x0 = self.policy.step(latents, *times, text, eta=self.eta, guidance_scale=self.guidance_scale, heat_maps=heat_maps)
            following = mean + per_row(sigma, mean) * noise[:, 1 + step - begin]
            if step in places:
                rows, slots = places[step]
                # Stored first; the log-prob is that of the stored value.
                stored.latents[rows, slots], stored.next_latents[rows, slots] = latents[rows], following[rows]
                stored.log_probs[rows, slots] = log_prob(following[rows], mean[rows], sigma[rows])
            latents = following
            if after_step is not None:
                after_step(1 + step - begin, self.steps - begin, x0)
        return latents, stored

    # -- which steps, and which noise ------------------------------------------------------------------------------------

    def _executed(self, round_: int) -> int:
        """Steps that round `round_` runs."""
        if round_ == 1:
            return self.steps
        return executed_steps(self.strength[min(round_ - 2, len(self.strength) - 1)], self.steps)

    def _trainable_steps(self, round_: int) -> np.ndarray:
        """Numbers (0 is the schedule's first) of the steps in the window that round `round_` runs and that have a variance."""
        low, high = self._window
        executed = self._executed(round_)
        numbers = np.arange(max(self.steps - high, self.steps - executed), self.steps - low + 1)
        numbers = numbers[self.previous_timesteps[numbers] < self.timesteps[numbers]]
        if not len(numbers):
            raise UserError(
                f"sampler.window {list(self._window)} holds no step that round {round_} runs (its last {executed}); "
                "lower T1 or raise sampler.strength"
            )
        return numbers

    def _choose_steps(self, seed: int, job: _Job) -> np.ndarray:
        """The steps of one sample that are trained, ascending; its siblings' too where the window is shared."""
        numbers = self._trainable_steps(job.round)
        stream = _seed(seed, job.dialogue.id, job.round, "shared" if self._shared_window else f"steps of {job.sibling}")
        chosen = np.random.Generator(np.random.Philox(stream)).choice(numbers, min(self._train_steps, len(numbers)), replace=False)
        return np.sort(chosen)

    def noise(self, seeds: Sequence[int], executed: int) -> Tensor:
        """Standard normal noise [n, 1 + executed, C, H, W], each row from the stream of its own seed."""
        noise = np.empty((len(seeds), 1 + executed, *self.latent_shape), np.float32)
        for row, seed in zip(noise, seeds, strict=True):
            np.random.Generator(np.random.Philox(seed)).standard_normal(dtype=np.float32, out=row)
        return torch.from_numpy(noise).to(self.policy.device)


def _seed(*parts: object) -> int:
    """A 63-bit seed from its parts, the same on every machine."""
    digest = hashlib.blake2b("\0".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
