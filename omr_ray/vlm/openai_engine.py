"""Language from a server of the OpenAI chat API."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from typing import Any

import httpx2
from pydantic import BaseModel, Field, ValidationError

from omr_ray.config.dialogue import OpenAiLanguage
from omr_ray.types import UserError
from omr_ray.vlm.engine import Conversation, Message, NoAnswer
from omr_ray.vlm.http import Refused, Unanswered, png_base64, post_json, readable_url

MAX_ANSWER_BYTES = 2**20


class OpenAiEngine:
    """The model that the config names, as `LanguageModel`. The conversations of a call are separate requests.

    Raises UserError for a url that cannot be read and where the variable that should hold the key is empty or holds none.
    """

    def __init__(self, config: OpenAiLanguage) -> None:
        self._url = config.url.rstrip("/") + "/chat/completions"
        if not readable_url(self._url):
            raise UserError(f"language.url {config.url!r} cannot be read; write http://host:port/v1")
        self._key = os.environ.get(config.api_key_env, "").strip() if config.api_key_env else ""
        if config.api_key_env and not self._key:
            raise UserError(f"language.api_key_env: the environment variable {config.api_key_env} is empty; put the server's key into it")
        if not (self._key.isascii() and self._key.isprintable()):
            raise UserError(
                f"language.api_key_env: the key in {config.api_key_env} is no line of plain ASCII; put the server's key into it"
            )
        self._config = config

    def complete(self, conversations: Sequence[Conversation], *, max_tokens: int) -> list[str]:
        """As `LanguageModel.complete`; the first request that fails ends the others."""
        bodies = [json.dumps(self._body(conversation, max_tokens)).encode() for conversation in conversations]
        try:
            return asyncio.run(self._post_all(bodies))
        except Unanswered as error:
            raise NoAnswer(f"{self._url}: {error}") from None
        except Refused as error:
            raise NoAnswer(f"{self._url} {self._without_key(error)}; mend the config or the server") from None

    async def _post_all(self, bodies: Sequence[bytes]) -> list[str]:
        limit = asyncio.Semaphore(self._config.concurrency)
        async with httpx2.AsyncClient() as client:
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(self._post(client, limit, body)) for body in bodies]
            except ExceptionGroup as failed:
                raise failed.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _post(self, client: httpx2.AsyncClient, limit: asyncio.Semaphore, body: bytes) -> str:
        headers = {"authorization": f"Bearer {self._key}"} if self._key else {}
        async with limit:
            content = await post_json(
                client,
                self._url,
                body,
                headers=headers,
                timeout_s=self._config.timeout_s,
                attempts=self._config.attempts,
                answer_bytes=MAX_ANSWER_BYTES,
            )
        return text_in(content)

    def _body(self, conversation: Conversation, max_tokens: int) -> dict[str, Any]:
        messages = [{"role": message.role, "content": _content(message)} for message in conversation]
        return {"model": self._config.model, "messages": messages, "max_tokens": max_tokens, "temperature": 0}

    def _without_key(self, error: Exception) -> str:
        """Servers may repeat a key that they refuse."""
        return str(error).replace(self._key, "***") if self._key else str(error)


def _content(message: Message) -> str | list[dict[str, Any]]:
    if not message.images:
        return message.text
    urls = (f"data:image/png;base64,{png_base64(image)}" for image in message.images)
    return [*({"type": "image_url", "image_url": {"url": url}} for url in urls), {"type": "text", "text": message.text}]


class _Said(BaseModel):
    content: str


class _Choice(BaseModel):
    message: _Said


class _Completion(BaseModel):
    choices: list[_Choice] = Field(min_length=1)


def text_in(content: bytes) -> str:
    """What the model said in an answer of the API. Raises Unanswered for another form, as for a refusal."""
    try:
        return _Completion.model_validate_json(content).choices[0].message.content
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"])) or "body"
        raise Unanswered(f"the answer is no chat completion with text ({place}: {error.errors()[0]['msg']})") from None
