"""What a language model that knows the embedded world answers to each template: the right answers to learn and to judge by.

All values are named in their first wording, so that what is wanted and what is shown are equal texts where they mean the same.
"""

import re
from collections.abc import Sequence

from omr_ray.atelier.world import ASPECTS, VALUES, WORDINGS, Scene, mentions, parse, prompt_of

History = Sequence[Sequence[str]]  # [user, system] of each turn before the latest, in order

NOUNS = {
    "content": "garment",
    "style": "pattern",
    "background": "background",
    "size": "size",
    "color": "color",
    "perspective": "view",
    "others": "extra",
}
# What can be asked about a picture or a dialogue, in several wordings; none of them names a value.
QUESTIONS: dict[str, tuple[str, ...]] = {
    "content": ("which garment is it", "what piece of clothing is it", "what garment do you see"),
    "style": ("which pattern does it have", "what is the pattern", "what pattern do you see"),
    "background": ("where is it", "what is behind it", "what is the background"),
    "size": ("what size is it", "which size does it have", "what is its size"),
    "color": ("what color is it", "which color does it have", "what is its color"),
    "perspective": ("from where is it seen", "from which side do we see it", "what is the view"),
    "others": ("which extras does it have", "what else is on it", "are there any extras"),
    "all": ("what does it show", "describe the picture", "what do you see", "tell me about the picture", "what is in the picture"),
    "asked": ("what did i ask for", "what have i asked for so far", "sum up my wishes", "what do i want"),
}
CHOICES = {aspect: f"which {noun}s can you draw" for aspect, noun in NOUNS.items()}
NO_PICTURE = "there is no picture yet"

_KINDS = {wording: kind for kind, wordings in QUESTIONS.items() for wording in wordings}
_CHOICES = {question: aspect for aspect, question in CHOICES.items()}
_WHETHER = re.compile(r"(is|does) it\b")
_ASKING = re.compile(r"(?!how about|what about)(what|which|where|from wh\w+|how|why|are there|(is|does) it|describe|tell me|sum up)\b")
_MOST_SUGGESTIONS = 4
_YES_NO = re.compile(r"\b(?:yes|no)\b")


def described(aspect: str, scene: Scene) -> str:
    """DESCRIBE (TDRI eq. 4): the value that a scene shows. Example: "on a beach"."""
    return _wording(aspect, getattr(scene, aspect))


def split(prompt: str) -> dict[str, str]:
    """SPLIT (TDRI eq. 5): the value of each aspect that a prompt names. Example: {"content": "dress", "color": "red"}."""
    return {aspect: _wording(aspect, value) for aspect, value in parse(prompt).items()}


def to_prompt(history: History, latest: str) -> str:
    """TO_PROMPT (TDRI eq. 2): what the turns add up to, a later wish before an earlier one.

    A picture's turn is answered with its prompt, which begins with "a", and perhaps ". " and a question.
    """
    return prompt_of(_asked(history) | parse(latest))


def route(latest: str) -> str:
    """ROUTE (OMR table 2): "words" for a question about a picture, the dialogue or the world, else "picture"."""
    return "words" if _ASKING.match(_plain(latest)) else "picture"


def clarify(aspect: str, wanted: str, shown: str) -> tuple[str, list[str]]:
    """CLARIFY (TDRI eq. 6): a question about an aspect and up to four answers, what is wanted and what is shown first.

    Texts that are no wording of the aspect are passed over: they may say anything.
    """
    named = [text for text in (wanted, shown) if any(text in wordings for wordings in WORDINGS[aspect].values())]
    question = f"Which {NOUNS[aspect]} would you like"
    if len(set(named)) == 2:
        question += f", {wanted} or {shown}"
    known = [_wording(aspect, value) for value in VALUES[aspect]]
    return f"{question}?", list(dict.fromkeys([*named, *known]))[:_MOST_SUGGESTIONS]


def in_words(history: History, latest: str, scene: Scene | None) -> str:
    """IN_WORDS (OMR table 2): the answer to a question about the last picture, which shows `scene`, or about the dialogue."""
    text = _plain(latest)
    if text in _CHOICES:
        aspect = _CHOICES[text]
        return ", ".join(_wording(aspect, value) for value in VALUES[aspect])
    if _KINDS.get(text) == "asked":
        asked = _asked(history)
        return f"you asked for {prompt_of(asked)}" if asked else "you have not asked for anything yet"
    if scene is None:
        return NO_PICTURE
    if _WHETHER.match(text) and (about := parse(text)):
        aspect, value = next(iter(about.items()))
        return f"{'yes' if getattr(scene, aspect) == value else 'no'}, {_stated(aspect, scene)}"
    kind = _KINDS.get(text, "all")
    return _stated(kind, scene) if kind in ASPECTS else f"it shows {prompt_of(scene.aspects())}"


def agrees(said: str, wanted: str) -> bool:
    """Whether an answer in words says what `in_words` wants: the same values in any wording, and yes or no alike.

    What mentions no value must be the same text.
    """
    named = mentions(wanted)
    if not named:
        return _plain(said) == _plain(wanted)
    return mentions(said) == named and _YES_NO.findall(said.lower()) == _YES_NO.findall(wanted.lower())


def whether(aspect: str, wording: str) -> str:
    """The question whether a picture shows a value. Example: "is it a dress"."""
    if aspect == "others":
        return f"does it come {wording}"
    return f"is it a {wording}" if aspect == "content" else f"is it {wording}"


def _stated(aspect: str, scene: Scene) -> str:
    shown = described(aspect, scene)
    if aspect == "others":
        return f"it comes {shown}"
    return f"it is a {shown}" if aspect == "content" else f"it is {shown}"


def _asked(history: History) -> dict[str, str]:
    """What the last prompt of a history names: each prompt holds all that was asked for until then."""
    prompts = [system.split(". ")[0] for _, system in history if system.startswith("a ")]
    return parse(prompts[-1]) if prompts else {}


def _wording(aspect: str, value: str) -> str:
    return WORDINGS[aspect][value][0]


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).rstrip("?!. ")
