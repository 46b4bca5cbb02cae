"""Answers of a language model as checked objects: what a model wrote can be nothing but a value of the form asked for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TypeVar

from pydantic import ValidationError

from omr_ray.vlm.engine import Conversation, LanguageModel, Message, NoAnswer
from omr_ray.vlm.templates import Answer, Request, as_data, clean

MAX_CHARACTERS = 8000  # of one answer
FENCE = re.compile(r"```(?:json)?\s*(.*?)\s*```", re.DOTALL)  # many models put one around any JSON

Form = TypeVar("Form", bound=Answer)


def ask(model: LanguageModel, requests: Sequence[Request[Form]]) -> list[Form]:
    """The answers to N requests. Raises NoAnswer if one of them has not the form asked for, and what the model raises."""
    answers = []
    for request, answer in zip(requests, ask_each(model, requests), strict=True):
        if isinstance(answer, str):
            raise NoAnswer(f"the language model gave no valid {request.form.__name__}, asked twice: {answer}")
        answers.append(answer)
    return answers


def ask_each(model: LanguageModel, requests: Sequence[Request[Form]]) -> list[Form | str]:
    """The answers to N requests, which go to the model together; for one that has not the form asked for, what is wrong with it.

    Such an answer has been shown to the model with what is wrong, once. Raises what the model raises.
    """
    said = _complete(model, [request.messages for request in requests], requests)
    parsed = [_parsed(request.form, text) for request, text in zip(requests, said, strict=True)]
    wrong = [i for i, answer in enumerate(parsed) if isinstance(answer, str)]
    if wrong:
        again = [requests[i] for i in wrong]
        said = _complete(model, [_repair(requests[i], said[i], str(parsed[i])) for i in wrong], again)
        for i, text in zip(wrong, said, strict=True):
            parsed[i] = _parsed(requests[i].form, text)
    return parsed


def ask_one(model: LanguageModel, request: Request[Form]) -> Form:
    """`ask` with a single request."""
    return ask(model, [request])[0]


def _complete(model: LanguageModel, conversations: Sequence[Conversation], requests: Sequence[Request[Form]]) -> list[str]:
    return model.complete(conversations, max_tokens=max(request.max_tokens for request in requests)) if requests else []


def _parsed(form: type[Form], text: str) -> Form | str:
    """The answer, or what is wrong with it."""
    if len(text) > MAX_CHARACTERS:
        return f"more than {MAX_CHARACTERS} characters"
    fenced = FENCE.fullmatch(text.strip())
    try:
        return form.model_validate_json(fenced[1] if fenced else text)
    except ValidationError as error:
        faults = (f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}".removeprefix(": ") for fault in error.errors()[:3])
        return clean("; ".join(faults))[:300]


def _repair(request: Request[Form], said: str, fault: str) -> Conversation:
    """What the model said is data too: it may repeat anything."""
    return (
        *request.messages,
        Message(role="assistant", text=clean(said)[:MAX_CHARACTERS]),
        Message(role="user", text=as_data({"error": fault})),
    )
