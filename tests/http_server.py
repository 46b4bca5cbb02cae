"""A real HTTP server on this machine that answers as it is told."""

import json
import threading
import time
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple


class Request(NamedTuple):
    at: float  # seconds
    path: str
    headers: Any
    body: Any  # parsed JSON


def answer(status=200, body="{}", **headers):
    def send(handler):
        content = body.encode()
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(content)

    return send


def hang(handler):
    handler.server.over.wait(30)


def drip(handler):
    """A byte now and then: no pause between two of them is long."""
    handler.send_response(200)
    handler.end_headers()
    while not handler.server.over.wait(0.05):
        handler.wfile.write(b" ")


def hang_up(handler):
    handler.connection.close()


def endless(handler):
    handler.send_response(200)
    handler.end_headers()
    for _ in range(10_000):
        handler.wfile.write(b" " * 2**16)


@contextmanager
def server(*answers):
    """Gives `answers` one after the other, the last one for ever; yields its url and the requests it got."""
    requests: list[Request] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            requests.append(Request(time.monotonic(), self.path, self.headers, self.body))
            with suppress(OSError):  # the client has had enough
                answers[min(len(requests), len(answers)) - 1](self)
            self.close_connection = True

        def log_message(self, *args): ...

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listening.over = threading.Event()
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.server_port}", requests
    finally:
        listening.over.set()
        listening.shutdown()
        thread.join(10)
        listening.server_close()
