"""The OpenAI engine against a real server on this machine."""

import base64
import io
import json
import threading
import time

import numpy as np
import pytest
from PIL import Image

from omr_ray.config.dialogue import DialogueConfig, OpenAiLanguage
from omr_ray.config.reading import with_overrides
from omr_ray.types import UserError
from omr_ray.vlm.engine import Message, NoAnswer
from omr_ray.vlm.openai_engine import MAX_ANSWER_BYTES, OpenAiEngine
from tests.http_server import answer, drip, endless, hang, hang_up, server

IMAGE = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
SYSTEM = Message(role="system", text="Describe the picture.")
TALK = (SYSTEM, Message(role="user", text='{"latest":"gr\u00fcn"}'))
LOOK = (SYSTEM, Message(role="user", text="{}", images=(IMAGE,)))


def said(text="a dress"):
    return answer(body=json.dumps({"id": "x", "choices": [{"index": 0, "message": {"role": "assistant", "content": text}}], "usage": {}}))


def engine(url, **settings):
    return OpenAiEngine(OpenAiLanguage(url=f"{url}/v1", model="qwen", **{"timeout_s": 60, "attempts": 3} | settings))


def complete(url, conversations=(TALK,), **settings):
    return engine(url, **settings).complete(conversations, max_tokens=40)


def test_a_conversation_goes_out_as_a_chat_completion():
    with server(said()) as (url, requests):
        assert complete(url) == ["a dress"]
    (request,) = requests
    assert request.path == "/v1/chat/completions"
    assert request.body == {
        "model": "qwen",
        "messages": [{"role": "system", "content": SYSTEM.text}, {"role": "user", "content": '{"latest":"gr\u00fcn"}'}],
        "max_tokens": 40,
        "temperature": 0,
    }
    assert "Authorization" not in request.headers


def test_images_go_out_as_png_before_the_text():
    with server(said()) as (url, requests):
        complete(url, [LOOK])
    picture, text = requests[0].body["messages"][1]["content"]
    assert text == {"type": "text", "text": "{}"}
    kind, _, content = picture["image_url"]["url"].partition(",")
    assert kind == "data:image/png;base64"
    np.testing.assert_array_equal(np.array(Image.open(io.BytesIO(base64.b64decode(content)))), IMAGE)


def test_answers_come_back_in_the_order_of_the_conversations_and_few_requests_run_at_a_time():
    running, most, lock = set(), [], threading.Lock()

    def echo(handler):
        digits = len(handler.headers["Content-Length"])
        with lock:
            running.add(handler)
            most.append(len(running))
        time.sleep(0.5 / digits)  # the first takes the shortest
        with lock:
            running.discard(handler)
        said(str(digits))(handler)

    conversations = [(SYSTEM, Message(role="user", text="x" * 10**size)) for size in (4, 1, 3, 2, 1)]
    with server(echo) as (url, requests):
        assert complete(url, conversations, concurrency=2) == ["5", "3", "4", "3", "3"]
    assert len(requests) == 5 and max(most) == 2
    assert complete("http://127.0.0.1:9", []) == []


def test_the_key_comes_from_the_environment_variable_that_is_named(monkeypatch):
    monkeypatch.setenv("TEST_LANGUAGE_KEY", " secret-key\n")
    with server(said()) as (url, requests):
        complete(url, api_key_env="TEST_LANGUAGE_KEY")
    assert requests[0].headers["Authorization"] == "Bearer secret-key"
    monkeypatch.setenv("TEST_LANGUAGE_KEY", "")
    with pytest.raises(UserError, match="variable TEST_LANGUAGE_KEY is empty; put the server's key into it"):
        engine("http://host", api_key_env="TEST_LANGUAGE_KEY")
    monkeypatch.setenv("TEST_LANGUAGE_KEY", "secret\nkey")
    with pytest.raises(UserError, match="the key in TEST_LANGUAGE_KEY is no line of plain ASCII"):
        engine("http://host", api_key_env="TEST_LANGUAGE_KEY")


def test_a_key_that_a_server_repeats_is_not_passed_on(monkeypatch):
    monkeypatch.setenv("TEST_LANGUAGE_KEY", "secret-key")
    with server(answer(401, "wrong key: secret-key")) as (url, _), pytest.raises(NoAnswer) as caught:
        complete(url, api_key_env="TEST_LANGUAGE_KEY")
    assert "status 401 (wrong key: ***)" in str(caught.value)


@pytest.mark.parametrize("fault", [answer(500), answer(429), hang_up])
def test_a_fault_is_tried_again(fault):
    with server(fault, said()) as (url, requests):
        assert complete(url) == ["a dress"]
    assert len(requests) == 2 and requests[1].at - requests[0].at >= 0.5


def test_retry_after_is_honoured():
    with server(answer(429, Retry_After="2"), said()) as (url, requests):
        assert complete(url) == ["a dress"]
    assert requests[1].at - requests[0].at >= 1.9


@pytest.mark.parametrize("fault", [hang, drip])
def test_a_request_has_a_time_limit_however_the_answer_comes(fault):
    start = time.monotonic()
    with server(fault) as (url, requests):
        with pytest.raises(NoAnswer, match=r"/v1/chat/completions: no answer within 2 s"):
            complete(url, timeout_s=2, attempts=2)
        assert time.monotonic() - start < 25
    assert len(requests) == 2


def test_the_first_request_that_fails_ends_the_others():
    start = time.monotonic()
    with server(answer(400, "no images"), hang) as (url, _):
        with pytest.raises(NoAnswer, match="status 400"):
            complete(url, [TALK] * 4, timeout_s=30)
        assert time.monotonic() - start < 10


@pytest.mark.parametrize("status", [400, 401, 404, 301])
def test_a_request_that_is_wrong_is_not_tried_again_and_has_the_servers_words(status):
    with server(answer(status, "this model\nreads no images")) as (url, requests), pytest.raises(NoAnswer) as caught:
        complete(url)
    assert f"answered with status {status} (this model reads no images); mend the config or the server" in str(caught.value)
    assert len(requests) == 1


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("<html>", "Invalid JSON"),
        ("{}", "choices: Field required"),
        ('{"choices": []}', "choices: List should have at least 1 item"),
        ('{"choices": [{"message": {"content": null, "refusal": "no"}}]}', "choices.0.message.content"),
        ('{"choices": [{"message": {"content": "' + "x" * MAX_ANSWER_BYTES + '"}}]}', f"more than {MAX_ANSWER_BYTES} bytes"),
    ],
)
def test_an_answer_of_another_form_is_no_answer(body, reason):
    with server(answer(body=body)) as (url, requests), pytest.raises(NoAnswer) as caught:
        complete(url)
    assert reason in str(caught.value) and len(requests) == 1


def test_an_answer_without_end_is_cut_off():
    with server(endless) as (url, _), pytest.raises(NoAnswer, match="more than"):
        complete(url)


def test_the_config_says_what_cannot_be():
    chosen = with_overrides(DialogueConfig(), ["language={type: openai, url: 'http://host/v1', model: qwen, timeout_s: 10}"])
    assert chosen.language.longest_s == 4 * 10 + 3 * 30
    for override, word in [
        ("url=ftp://host", "url"),
        ("api_key_env=sk-12 34", "api_key_env"),
        ("modell=x", "nearest known one is 'model'"),
    ]:
        with pytest.raises(UserError, match=word):
            with_overrides(chosen, [f"language.{override}"])
    with pytest.raises(UserError, match="write http://host:port/v1"):
        OpenAiEngine(OpenAiLanguage(url="http://host:port/v1", model="qwen"))
