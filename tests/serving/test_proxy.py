"""What Serve's HTTP server says itself has the one shape: its middlewares around applications that behave as it does."""

import asyncio
import json

from starlette.responses import JSONResponse, PlainTextResponse

from omr_ray.serving.proxy import DIED, middlewares

HTTP = {"type": "http", "method": "GET", "path": "/", "headers": []}


def answered(app, scope=HTTP):
    """(status, headers, body) that a client gets; None where nothing is sent."""
    sent = []

    async def send(message):
        sent.append(message)

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    for middleware in middlewares():  # the first one is the innermost, as Serve puts them
        app = middleware.cls(app, *middleware.args, **middleware.kwargs)
    asyncio.run(app(scope, receive, send))
    if not sent:
        return None
    start, *bodies = sent
    headers = {name.decode(): value.decode() for name, value in start["headers"]}
    return start["status"], headers, b"".join(body.get("body", b"") for body in bodies)


async def silent(scope, receive, send):
    """A request whose process has died."""


def test_a_request_whose_process_died_before_it_answered_is_told_so():
    status, headers, body = answered(silent)
    assert status == 503 and headers["retry-after"] == "2"
    assert json.loads(body) == {"error": {"message": DIED, "type": "server_error", "param": None, "code": "process_died"}}


def test_what_serve_writes_as_plain_text_gets_the_shape():
    for code, said, kind in ((503, "no replica", "server_error"), (404, "Path '/x' not found", "not_found_error")):
        status, _, body = answered(PlainTextResponse(said, status_code=code))
        assert (status, json.loads(body)["error"]) == (code, {"message": said, "type": kind, "param": None, "code": "http_error"})


def test_what_our_own_processes_answer_is_left_as_it_is():
    told = {"error": {"message": "m", "type": "t", "param": None, "code": "c"}}
    assert answered(JSONResponse(told, status_code=404))[2] == json.dumps(told, separators=(",", ":")).encode()
    assert answered(PlainTextResponse("figures"))[2] == b"figures"


def test_a_stream_that_is_cut_off_in_the_middle_is_not_begun_again():
    async def cut_off(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"event", "more_body": True})

    assert answered(cut_off) == (200, {}, b"event")


def test_what_is_no_request_is_left_alone():
    assert answered(silent, {"type": "lifespan"}) is None
