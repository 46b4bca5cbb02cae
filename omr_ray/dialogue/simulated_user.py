"""A user with a hidden target who looks at an image and says what is wrong with it (TDRI section 4, evaluation protocol).

The user never sees latents, scores or weights: only what the image shows, aspect by aspect.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from omr_ray.types import Dialogue

ASPECTS_A_TURN = 2


class Language(Protocol):
    """How aspects become words and back. Example: the module omr_ray.atelier.world"""

    def parse(self, text: str) -> dict[str, str]: ...

    def prompt_of(self, aspects: Mapping[str, str]) -> str: ...

    def utterance(self, aspects: Mapping[str, str], rng: np.random.Generator) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedUser:
    """What the user wants, what was said so far, and the prompt that it adds up to.

    Example: SimulatedUser(language=world, target={"content": "dress", "color": "blue"}, named={"content": "dress"},
                           utterance="i want a dress", prompt="a dress")
    """

    language: Language
    target: Mapping[str, str]  # aspect -> wanted value; hidden from the policy
    named: Mapping[str, str]  # aspect -> value of the accumulated prompt
    utterance: str
    prompt: str

    @classmethod
    def of(cls, dialogue: Dialogue, language: Language) -> SimulatedUser:
        """The user of a dialogue, who has just said its first round."""
        first = dialogue.rounds[0]
        target, named = language.parse(dialogue.intent), language.parse(first.prompt)
        return cls(language=language, target=target, named=named, utterance=first.utterance, prompt=first.prompt)

    def satisfied(self, seen: Mapping[str, str]) -> bool:
        """Whether the image shows every aspect of the target."""
        return not wrong_aspects(self.target, seen)

    def look(self, seen: Mapping[str, str], rng: np.random.Generator, *, answered: str | None = None) -> SimulatedUser:
        """The same user one utterance later, having looked at an image that shows `seen` and found it wrong.

        States up to two aspects that are wrong: first those asked for already and still wrong (a user who is not
        heard repeats), then those not asked for yet. What a question was `answered` about in the same breath is not said
        twice; where nothing else is wrong, the utterance is empty. The prompt accumulates.
        """
        wrong = [aspect for aspect in wrong_aspects(self.target, seen) if aspect != answered]
        again = [aspect for aspect in wrong if self.named.get(aspect) == self.target[aspect]]
        fresh = [aspect for aspect in wrong if aspect not in again]
        stated = {aspect: self.target[aspect] for aspect in (again + fresh)[:ASPECTS_A_TURN]}
        named = {**self.named, **stated}
        opening = "that is still not right, " if again else ""
        said = opening + self.language.utterance(stated, rng) if stated else ""
        return replace(self, named=named, utterance=said, prompt=self.language.prompt_of(named))

    def again(self, rng: np.random.Generator) -> SimulatedUser:
        """The same user one utterance later, who was shown no image: everything that was asked for so far, in other words."""
        return replace(self, utterance=self.language.utterance(self.named, rng))

    def answer(self, aspect: str, rng: np.random.Generator, *, skip_probability: float = 0.0) -> tuple[SimulatedUser, str | None]:
        """The same user having been asked about one aspect, and what they say: None where they skip it, or do not care."""
        if aspect not in self.target or rng.random() < skip_probability:
            return self, None
        stated = {aspect: self.target[aspect]}
        named = {**self.named, **stated}
        return replace(self, named=named, prompt=self.language.prompt_of(named)), self.language.utterance(stated, rng)


def wrong_aspects(asked: Mapping[str, str], seen: Mapping[str, str]) -> tuple[str, ...]:
    """The asked aspects that the image does not show, in the order they were asked."""
    return tuple(aspect for aspect, value in asked.items() if seen.get(aspect) != value)
