"""Examples for the embedded language model: a request of each template as the dialogue makes it, and the right answer.

Three kinds of batches hold conversations of like length: `descriptions` of pictures, `prompts` that are split or asked about, and
`dialogues`, which are routed, summed up or answered in words. A text that is an order stays data: it is in no answer.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from omr_ray.atelier.answers import clarify, described, in_words, split
from omr_ray.atelier.dialogues import Split, split_of
from omr_ray.atelier.stages.talk import ORDERS, draw_question, draw_talk, noisy, wording
from omr_ray.atelier.world import ASPECTS, VALUES, Scene, phrase, prompt_of, random_part, random_scene
from omr_ray.vlm.templates import CLARIFY, DESCRIBE, IN_WORDS, ROUTE, SPLIT, TO_PROMPT, Request

Draw: TypeAlias = Callable[[np.random.Generator], tuple[np.ndarray, Scene]]  # a picture u8 [H W 3] and what it shows

PREFERENCES = {"history": 0.25, "even": 0.5, "latest": 0.25}  # "even" is what the default config asks for
ROUNDS = {1: 0.25, 2: 0.35, 3: 0.2, 4: 0.1, 6: 0.07, 9: 0.03}  # of a dialogue, the latest wish included


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A request, and the text that answers it.

    Example: Example(name="describe_color", request=DESCRIBE["color"](images=(image,)), answer='{"description":"red"}')
    """

    name: str  # of the template, and of the aspect where there are several
    request: Request[Any]
    answer: str


def _example(name: str, request: Request[Any], **answer: Any) -> Example:
    return Example(name=name, request=request, answer=json.dumps(answer, ensure_ascii=False, separators=(",", ":")))


class Conversations:
    """Draws the examples of one split; `picture` draws a picture of that split."""

    def __init__(self, split: Split, picture: Draw) -> None:
        self.split: Split = split
        self.picture = picture

    # -- batches -------------------------------------------------------------------------------------------------------------

    def descriptions(self, count: int, rng: np.random.Generator) -> list[Example]:
        return [self.describe(ASPECTS[i % len(ASPECTS)], rng) for i in range(count)]

    def prompts(self, count: int, rng: np.random.Generator) -> list[Example]:
        return [self.split_prompt(rng) if rng.random() < 0.4 else self.clarify(rng) for _ in range(count)]

    def dialogues(self, count: int, rng: np.random.Generator) -> list[Example]:
        """`count` conversations of two rounds, or fewer of more rounds with as many tokens in all."""
        rounds = int(rng.choice(list(ROUNDS), p=list(ROUNDS.values())))
        makers = (self.to_prompt, self.route, self.in_words)
        kinds = rng.choice(len(makers), max(2, count * 3 // (rounds + 1)), p=(0.65, 0.1, 0.25))
        return [makers[kind](rounds, rng) for kind in kinds]

    # -- one example -----------------------------------------------------------------------------------------------------------

    def describe(self, aspect: str, rng: np.random.Generator) -> Example:
        image, scene = self.picture(rng)
        return _example(f"describe_{aspect}", DESCRIBE[aspect](images=(image,)), description=described(aspect, scene))

    def split_prompt(self, rng: np.random.Generator) -> Example:
        part = random_part(self._scene(rng), rng, low=1)
        prompt = prompt_of(part) if rng.random() < 0.6 else noisy(phrase(part, rng), self.split, rng)
        return _example("split", SPLIT(prompt=prompt), **split(prompt_of(part)))

    def clarify(self, rng: np.random.Generator) -> Example:
        scene = self._scene(rng)
        part, aspect = random_part(scene, rng), str(rng.choice(ASPECTS))
        wanted = described(aspect, scene) if aspect in part else ""
        shown = wording(aspect, str(rng.choice(VALUES[aspect])), rng, first=True)
        question, suggestions = clarify(aspect, wanted, shown)
        request = CLARIFY(prompt=prompt_of(part), aspect=aspect, wanted=wanted, shown=shown)
        return _example("clarify", request, question=question, suggestions=suggestions)

    def to_prompt(self, rounds: int, rng: np.random.Generator) -> Example:
        talk = draw_talk(self.split, rounds, rng)
        preferred = str(rng.choice(list(PREFERENCES), p=list(PREFERENCES.values())))
        request = TO_PROMPT[preferred](history=talk.history, latest=talk.latest)
        return _example("to_prompt", request, prompt=prompt_of(talk.named))

    def route(self, rounds: int, rng: np.random.Generator) -> Example:
        talk = draw_talk(self.split, rounds, rng)
        asks = rng.random() < 0.5
        latest = noisy(draw_question(talk.scene, rng), self.split, rng, mark="?") if asks else talk.latest
        return _example("route", ROUTE(history=talk.history, latest=latest), reply="words" if asks else "picture")

    def in_words(self, rounds: int, rng: np.random.Generator) -> Example:
        """The picture does not follow from the dialogue: the answer must be read from it. One round has no history, and no picture."""
        history = draw_talk(self.split, rounds, rng).history
        image, scene = self.picture(rng) if history else (None, None)
        question = draw_question(scene or self._scene(rng), rng)
        request = IN_WORDS(images=() if image is None else (image,), history=history, latest=noisy(question, self.split, rng, mark="?"))
        return _example("in_words", request, answer=in_words(history, question, scene))

    def ordered(self, rounds: int, rng: np.random.Generator) -> Example:
        """A wish that goes into the prompt, or is routed, although an order to the model stands beside it."""
        talk = draw_talk(self.split, rounds, rng)
        order = str(rng.choice(ORDERS[self.split]))
        latest = f"{order}. {talk.latest}" if rng.random() < 0.5 else f"{talk.latest}. {order}"
        if rng.random() < 0.5:
            return _example("route", ROUTE(history=talk.history, latest=latest), reply="picture")
        return _example("to_prompt", TO_PROMPT["even"](history=talk.history, latest=latest), prompt=prompt_of(talk.named))

    def _scene(self, rng: np.random.Generator) -> Scene:
        while split_of(scene := random_scene(rng)) != self.split:
            pass
        return scene


def conversation_text(seed: int, count: int = 200) -> Iterator[str]:
    """The texts of about 20 times `count` conversations, for a tokenizer that is to spell every word of them in one token."""
    blank = np.zeros((64, 64, 3), np.uint8)
    conversations, rng = Conversations("train", lambda rng: (blank, random_scene(rng))), np.random.default_rng([seed, count])
    for _ in range(count):
        for example in conversations.descriptions(7, rng) + conversations.prompts(8, rng) + conversations.dialogues(8, rng):
            for message in example.request.messages:
                yield from (message.text, message.role)
            yield from (example.answer, "assistant")
