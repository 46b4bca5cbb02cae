"""Everything that crosses a process: frozen dataclasses of NumPy arrays, shapes beside the fields.

Axis letters: R dialogue rounds, G sibling samples of one round, S stored denoising steps, C H W latent,
E text encoders, L prompt tokens, F features, N flattened batch. Rounds are numbered from 1 (OMR eq. 7).
Arrays that arrive through the object store are read-only views of shared memory: copy before writing.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np


class UserError(Exception):
    """A fault the user can mend. The message names the rule, the value and the remedy, in one line (exit status 2)."""


FULL = (errno.ENOSPC, errno.EDQUOT)  # OSError.errno where there is no space


class Unavailable(UserError):
    """Something outside of the program is away for now, and may be back when it is asked again."""


class NoSpace(Unavailable):
    """A disk, or what may be written on it, is full."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One turn of a dialogue and the prompt it leads to (OMR eq. 1).

    Example: Round(index=2, utterance="make it blue", prompt="a blue dress in a meadow")
    """

    index: int  # from 1
    utterance: str
    prompt: str  # P_t, already refined
    target: np.ndarray | None = None  # u8 [H W 3], what the user wants to see after this round, where it is known
    reflection: str | None = None  # a clarification question and its answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialogue:
    """R rounds that lead to one hidden intent.

    Example: Dialogue(id="train-000001", intent="a blue dress with a belt ...", rounds=(Round(...), Round(...)))
    """

    id: str
    intent: str
    rounds: tuple[Round, ...]

    def __post_init__(self) -> None:
        indices = [round_.index for round_ in self.rounds]
        if not indices or indices != list(range(1, len(indices) + 1)):
            raise UserError(f"dialogue {self.id!r}: rounds must be numbered 1..R without gaps, got {indices}; renumber them")
        empty = [round_.index for round_ in self.rounds if not round_.prompt.strip()]
        if empty:
            raise UserError(f"dialogue {self.id!r}: every round needs a prompt, rounds {empty} have none; fill them in")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """One sample of one round: the denoising steps that will be trained, and what the rewards need.

    `next_latents` holds the values that were stored, and `log_probs` was computed from them, never the other way
    round: a log-prob of a latent that is rounded afterwards biases the importance ratio.
    """

    dialogue_id: str
    round: int  # from 1
    sibling: int  # from 0
    seed: int
    policy_version: int
    prompt: str
    prompt_ids: np.ndarray  # i64 [E L]
    latents: np.ndarray  # f32 [S C H W], z_t
    next_latents: np.ndarray  # f32 [S C H W], z_{t-1}
    timesteps: np.ndarray  # i64 [S], t of the training schedule
    previous_timesteps: np.ndarray  # i64 [S], clamped to >= 0
    log_probs: np.ndarray  # f32 [S], mean over C H W
    features: np.ndarray  # f32 [F], f(z) of OMR eq. 6 and 7
    image: np.ndarray  # u8 [H W 3]

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays: what one trajectory costs to send."""
        values = (getattr(self, name) for name in self.__slots__)
        return sum(value.nbytes for value in values if isinstance(value, np.ndarray))

    # The generated ones look the fields up each time: a fifth of what the controller spends on a trajectory.

    def __getstate__(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in self.__slots__)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        for name, value in zip(self.__slots__, state, strict=True):
            object.__setattr__(self, name, value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """All samples of one dialogue: trajectories[r][g] for round r + 1 and sibling g."""

    dialogue: Dialogue
    trajectories: tuple[tuple[Trajectory, ...], ...]  # [R][G]


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardBreakdown:
    """The reward of one sample, term by term (OMR eq. 9). A term whose scorer failed is None, and so is the total.

    Example: RewardBreakdown(terms={"diversity": 0.2, "consistency": 0.9, "mutual_information": 1.1},
                             weights={"diversity": 0.86, "consistency": 0.1, "mutual_information": 0.46}, total=0.77)
    """

    terms: Mapping[str, float | None]  # raw, before standardisation
    weights: Mapping[str, float]  # lambda of the round
    total: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredRollout:
    """A rollout and one RewardBreakdown a trajectory."""

    rollout: Rollout
    rewards: tuple[tuple[RewardBreakdown, ...], ...]  # [R][G]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Stored steps of many trajectories, flattened to N rows: what a learner update is made from."""

    latents: np.ndarray  # f32 [N C H W]
    next_latents: np.ndarray  # f32 [N C H W]
    timesteps: np.ndarray  # i64 [N]
    previous_timesteps: np.ndarray  # i64 [N]
    log_probs: np.ndarray  # f32 [N]
    advantages: np.ndarray  # f32 [N]
    prompt_ids: np.ndarray  # i64 [N E L]
    rounds: np.ndarray  # i64 [N]
    prompts: np.ndarray  # str [N]
    siblings: np.ndarray  # f32 [N F], the mean direction of the features of the other samples of the round (OMR eq. 6)
    oldest_version: int

    def __post_init__(self) -> None:
        sizes = {f.name: len(getattr(self, f.name)) for f in fields(self) if f.name != "oldest_version"}
        if len(set(sizes.values())) != 1:
            raise ValueError(f"every field of a Batch needs the same leading size, got {sizes}")

    def __len__(self) -> int:
        return len(self.timesteps)

    def take(self, rows: np.ndarray) -> Batch:
        """The rows `rows` (i64 [M]) as a batch of its own."""
        names = (f.name for f in fields(self) if f.name != "oldest_version")
        return replace(self, **{name: getattr(self, name)[rows] for name in names})

    def minibatches(self, count: int, rng: np.random.Generator) -> Iterator[Batch]:
        """`count` batches of nearly equal size that together hold every row once, in random order."""
        for rows in np.array_split(rng.permutation(len(self)), count):
            yield self.take(rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundPairs:
    """Data pairs for the multi-round loss: image x of round r and image y of round r + 1 (OMR eq. 4, 5)."""

    images_x: np.ndarray  # u8 [N H W 3]
    images_y: np.ndarray  # u8 [N H W 3]
    prompts_x: tuple[str, ...]
    prompts_y: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.prompts_x)


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """What a learner step gives back: adapter weights for the sampler, and its metrics."""

    policy_version: int
    weights: Mapping[str, np.ndarray]  # PEFT names -> f32
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerState:
    """Everything a learner group needs to continue: full tensors by parameter name, whatever the sharding was."""

    policy_version: int
    weights: Mapping[str, np.ndarray]
    ema: Mapping[str, np.ndarray] = field(default_factory=dict)
    optimizer: Mapping[str, np.ndarray] = field(default_factory=dict)  # "<name>.exp_avg", "<name>.exp_avg_sq", "step"
