"""How models are made to paint: a dialogue's own rounds, and sessions with a simulated user. Plain callables, no models, no Ray.

The seed of an image follows from its place alone, so all models paint from the same noise. Axis letters as in types.py, D dialogues.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from omr_ray.atelier import world
from omr_ray.dialogue.simulated_user import SimulatedUser
from omr_ray.evaluation.stored import MadeImage, png
from omr_ray.types import Dialogue, UserError


class Generate(Protocol):
    """One round for N samples: from noise, or by editing `from_latents` noised to `strength`."""

    def __call__(
        self, prompts: Sequence[str], *, seeds: Sequence[int], from_latents: Any = None, strength: float = 1.0
    ) -> tuple[np.ndarray, Any]:
        """Returns images u8 [N H W 3] and final latents [N C H W]."""


Read = Callable[[np.ndarray], list[dict[str, str]]]  # images u8 [N H W 3] to what each shows


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One round of one session."""

    session: int  # dialogue * siblings + sibling
    round: int  # from 1
    seed: int
    utterance: str
    prompt: str
    image: np.ndarray  # u8 [H W 3]
    satisfied: bool
    seconds: float  # its share of the call that made it


def sessions(
    generate: Generate,
    read: Read,
    dialogues: Sequence[Dialogue],
    max_rounds: int,
    seed: int,
    *,
    strength: Sequence[float],
    siblings: int = 1,
    edit: bool = True,
) -> Iterator[Turn]:
    """Sessions with a simulated user, until they are satisfied or `max_rounds` are over (OMR table 1, "Round"; TDRI fig. 10).

    Every dialogue is held `siblings` times with different noise. Round 1 starts from noise under the dialogue's first
    prompt; later rounds edit the last image (or, without `edit`, start from noise again: TDRI table 3) under a prompt that
    has grown by what the user found wrong. Raises UserError for an intent that names nothing.
    """
    users = [SimulatedUser.of(dialogue, world) for dialogue in dialogues for _ in range(siblings)]
    _refuse_empty_intents(dialogues, users[::siblings])
    names = [(dialogue.id, sibling) for dialogue in dialogues for sibling in range(siblings)]
    active, latents = list(range(len(users))), None
    for round_ in range(1, max_rounds + 1):
        seeds = [derived_seed(seed, *names[i], round_) for i in active]
        began = time.perf_counter()
        images, latents = generate(
            [users[i].prompt for i in active], seeds=seeds, from_latents=latents if edit else None, strength=_tau(strength, round_)
        )
        share = (time.perf_counter() - began) / len(active)
        going_on = []
        for row, (i, seen) in enumerate(zip(active, read(images), strict=True)):
            user, satisfied = users[i], users[i].satisfied(seen)
            yield Turn(
                session=i,
                round=round_,
                seed=seeds[row],
                utterance=user.utterance,
                prompt=user.prompt,
                image=images[row],
                satisfied=satisfied,
                seconds=share,
            )
            if not satisfied:
                users[i] = user.look(seen, np.random.default_rng(seeds[row]))
                going_on.append(row)
        if not going_on:
            return
        active, latents = [active[row] for row in going_on], latents[going_on]


def session_images(dialogues: Sequence[Dialogue], turns: Iterator[Turn], siblings: int) -> list[MadeImage]:
    """The turns of `sessions` as they are stored."""
    return [
        MadeImage(
            dialogue=dialogues[turn.session // siblings].id,
            round=turn.round,
            sibling=turn.session % siblings,
            seed=turn.seed,
            utterance=turn.utterance,
            prompt=turn.prompt,
            intent=dialogues[turn.session // siblings].intent,
            image=png(turn.image),
            seconds=turn.seconds,
        )
        for turn in turns
    ]


def dialogue_images(
    generate: Generate, dialogues: Sequence[Dialogue], seed: int, *, strength: Sequence[float], siblings: int, edit: bool = True
) -> list[MadeImage]:
    """Every round of the dialogues under its own prompt: by editing the round before, or each from noise of its own."""
    made: list[MadeImage] = []
    latents: Any = None
    rows = [(dialogue, sibling) for dialogue in dialogues for sibling in range(siblings)]
    for round_ in range(1, max((len(dialogue.rounds) for dialogue in dialogues), default=0) + 1):
        staying = [n for n, (dialogue, _) in enumerate(rows) if len(dialogue.rounds) >= round_]
        rows, latents = [rows[n] for n in staying], None if latents is None else latents[staying]
        seeds = [derived_seed(seed, dialogue.id, sibling, round_) for dialogue, sibling in rows]
        began = time.perf_counter()
        images, latents = generate(
            [dialogue.rounds[round_ - 1].prompt for dialogue, _ in rows],
            seeds=seeds,
            from_latents=latents if edit else None,
            strength=_tau(strength, round_),
        )
        share = (time.perf_counter() - began) / len(rows)
        made += [
            MadeImage(
                dialogue=dialogue.id,
                round=round_,
                sibling=sibling,
                seed=seeds[n],
                utterance=dialogue.rounds[round_ - 1].utterance,
                prompt=dialogue.rounds[round_ - 1].prompt,
                intent=dialogue.intent,
                image=png(images[n]),
                seconds=share,
            )
            for n, (dialogue, sibling) in enumerate(rows)
        ]
    return made


def many_of_one_prompt(
    generate: Callable[..., tuple[np.ndarray, np.ndarray | None]], dialogues: Sequence[Dialogue], seed: int, *, siblings: int
) -> list[MadeImage]:
    """`siblings` images from noise for the last prompt of each dialogue (OMR fig. 6; TDRI table 6), all as round 1.

    `generate` returns the images, and whether Attend-and-Excite acted (bool [N]) or None.
    """
    rows = [(dialogue, sibling) for dialogue in dialogues for sibling in range(siblings)]
    seeds = [derived_seed(seed, dialogue.id, sibling, 1) for dialogue, sibling in rows]
    began = time.perf_counter()
    images, excited = generate([dialogue.rounds[-1].prompt for dialogue, _ in rows], seeds=seeds)
    share = (time.perf_counter() - began) / len(rows)
    return [
        MadeImage(
            dialogue=dialogue.id,
            round=1,
            sibling=sibling,
            seed=seeds[n],
            utterance=dialogue.rounds[-1].utterance,
            prompt=dialogue.rounds[-1].prompt,
            intent=dialogue.intent,
            image=png(images[n]),
            seconds=share,
            excited=None if excited is None else float(excited[n]),
        )
        for n, (dialogue, sibling) in enumerate(rows)
    ]


def derived_seed(seed: int, dialogue: str, sibling: int, round_: int) -> int:
    """A 63-bit seed of one session and round, the same for every policy that is judged."""
    digest = hashlib.sha256(f"{seed}/{dialogue}/{sibling}/{round_}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _tau(strength: Sequence[float], round_: int) -> float:
    return 1.0 if round_ == 1 else strength[min(round_ - 2, len(strength) - 1)]


def _refuse_empty_intents(dialogues: Sequence[Dialogue], users: Sequence[SimulatedUser]) -> None:
    for dialogue, user in zip(dialogues, users, strict=True):
        if not user.target:
            said = f"dialogue {dialogue.id!r}: intent {dialogue.intent!r:.60} names no aspect that can be judged"
            raise UserError(f"{said}; name some, for example a color")
