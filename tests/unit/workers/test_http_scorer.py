"""The HTTP scorer against a real server on this machine."""

import base64
import io
import time
from email.utils import formatdate

import numpy as np
import pytest
from PIL import Image

from omr_ray.config.rewards import HttpScorer
from omr_ray.types import UserError
from omr_ray.workers.http_scorer import MAX_ANSWER_BYTES, HttpClient
from tests import http_server
from tests.http_server import drip, endless, hang, hang_up, server

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 6, 5, 3), dtype=np.uint8)
PROMPTS = ["a hat", "ein Hut \u00fc"]


def answer(status=200, body='{"scores": [0.5, -1]}', **headers):
    return http_server.answer(status, body, **headers)


def scores(url, **settings):
    return HttpClient(HttpScorer(url=url, **{"timeout_s": 5, "attempts": 3} | settings))(IMAGES, PROMPTS)


def test_png_and_prompts_go_out_and_numbers_come_back():
    with server(answer()) as (url, requests):
        assert scores(url) == [0.5, -1.0]
    (request,) = requests
    body = request.body
    assert body["prompts"] == PROMPTS
    sent = [np.array(Image.open(io.BytesIO(base64.b64decode(image)))) for image in body["images"]]
    np.testing.assert_array_equal(sent, IMAGES)


@pytest.mark.parametrize("fault", [answer(500), answer(503), hang_up])
def test_a_fault_is_tried_again(fault):
    with server(fault, fault, answer()) as (url, requests):
        assert scores(url) == [0.5, -1.0]
    times = [request.at for request in requests]
    assert len(times) == 3
    assert times[1] - times[0] >= 0.5 and times[2] - times[1] >= 1.0  # twice as long each time


@pytest.mark.parametrize("fault", [hang, drip])
def test_a_request_has_a_time_limit_however_the_answer_comes(fault):
    start = time.monotonic()
    with server(fault) as (url, requests):
        assert scores(url, timeout_s=0.4, attempts=2) == [None, None]
        assert time.monotonic() - start < 4
    assert len(requests) == 2


def test_scores_are_missing_after_the_last_attempt_and_it_is_logged(caplog):
    with server(answer(500)) as (url, requests):
        assert scores(url, attempts=2) == [None, None]
    assert len(requests) == 2
    assert "status 500; the scores of 2 images are missing" in caplog.text


def test_nobody_listens(caplog):
    with server(answer()) as (url, _):
        pass
    assert scores(url, attempts=2) == [None, None]
    assert "ConnectError" in caplog.text


@pytest.mark.parametrize("asked", [lambda: "2", lambda: formatdate(time.time() + 3, usegmt=True)])
def test_retry_after_is_honoured_as_seconds_and_as_a_date(asked):
    with server(answer(429, Retry_After=asked()), answer()) as (url, requests):
        assert scores(url) == [0.5, -1.0]
    assert requests[1].at - requests[0].at >= 1.9  # a date has whole seconds


def test_nobody_waits_for_a_server_that_wants_minutes(caplog):
    with server(answer(429, Retry_After="600"), answer()) as (url, requests):
        assert scores(url) == [None, None]
    assert len(requests) == 1 and "not to be asked again for 600 s" in caplog.text


@pytest.mark.parametrize("status", [400, 404, 301])
def test_a_request_that_is_wrong_stops_the_run_with_the_servers_words(status):
    with server(answer(status, "too many\nimages")) as (url, requests), pytest.raises(UserError) as caught:
        scores(url)
    assert f"answered with status {status} (too many images)" in str(caught.value)
    assert len(requests) == 1


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ('{"scores": [1]}', "with 2 scores, got 1 of them"),
        ('{"scores": "11"}', "with 2 scores, got none"),
        ("[1, 2]", "got none"),
        ("<html>", "not JSON"),
        ("[" * 200_000, "not JSON"),
        ("", "not JSON"),
        ('{"scores": [1, 2], "x": "' + "x" * MAX_ANSWER_BYTES + '"}', f"more than {MAX_ANSWER_BYTES} bytes"),
    ],
)
def test_an_answer_of_another_form_is_missing_scores_and_not_asked_for_again(body, reason, caplog):
    with server(answer(body=body)) as (url, requests):
        assert scores(url) == [None, None]
    assert len(requests) == 1 and reason in caplog.text


def test_an_answer_without_end_is_cut_off():
    start = time.monotonic()
    with server(endless) as (url, _):
        assert scores(url) == [None, None]
    assert time.monotonic() - start < 4


@pytest.mark.parametrize("entry", ["NaN", "Infinity", '"7"', "null", "true", "[1]", "9" * 400])
def test_what_is_no_finite_number_is_one_missing_score(entry):
    with server(answer(body=f'{{"scores": [{entry}, 2]}}')) as (url, _):
        assert scores(url) == [None, 2.0]


def test_a_url_that_cannot_be_read_is_reported_before_anything_is_sent():
    with pytest.raises(UserError, match="write http://host:port/path"):
        HttpClient(HttpScorer(url="http://host:port/score"))
