"""A real server of the OpenAI Images API that draws what a prompt names, in the embedded world: generations and edits."""

import base64
import json
import threading
import time
from contextlib import contextmanager
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

from omr_ray.atelier.render import render
from omr_ray.atelier.world import parse, random_scene
from omr_ray.evaluation.stored import png

KEY = "sk-test"


def drawn(prompt, size):
    """The same picture for the same prompt, in png."""
    rng = np.random.default_rng(list(prompt.encode()))
    return png(render(random_scene(rng).with_aspects(parse(prompt)), rng, size))


@contextmanager
def image_endpoint():
    """Yields the url up to /v1, and the requests: (path, fields), with the bytes of the image that an edit sent."""
    requests = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            fields = json.loads(body) if self.path == "/v1/images/generations" else self.parts(body)
            requests.append((self.path, fields))
            if self.headers["Authorization"] != f"Bearer {KEY}":
                error = {"message": "Incorrect API key", "type": "invalid_request_error", "param": None, "code": "invalid_api_key"}
                return self.send(401, {"error": error})
            width, _, height = fields["size"].partition("x")
            assert width == height and str(fields["n"]) == "1"
            data = [{"b64_json": base64.b64encode(drawn(fields["prompt"], int(width))).decode()}]
            return self.send(200, {"created": int(time.time()), "data": data})

        def parts(self, body):
            """Of a multipart form."""
            head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
            found = {}
            for part in BytesParser().parsebytes(head + body).get_payload():
                content = part.get_payload(decode=True)
                found[part.get_param("name", header="content-disposition")] = content if part.get_filename() else content.decode()
            return found

        def send(self, status, answer):
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args): ...

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.server_port}/v1", requests
    finally:
        listening.shutdown()
        thread.join(10)
        listening.server_close()
