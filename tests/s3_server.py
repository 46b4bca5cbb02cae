"""An S3-compatible server (moto) in a process of its own, for the tests of buckets."""

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

STARTS_WITHIN_S = 180.0
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true"}


@contextmanager
def s3_server(bucket: str) -> Iterator[str]:
    """Its address, "127.0.0.1:PORT", with an empty bucket. The process is gone afterwards."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    host, port = address.split(":")
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", host, "-p", port], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        _make(bucket, address, server)
        yield address
    finally:
        server.kill()
        server.wait(timeout=30)


def _make(bucket: str, address: str, server: subprocess.Popen) -> None:
    request = urllib.request.Request(f"http://{address}/{bucket}", method="PUT")
    deadline = time.monotonic() + STARTS_WITHIN_S
    while True:
        try:
            urllib.request.urlopen(request, timeout=30).close()
            return
        except OSError:
            assert server.poll() is None and time.monotonic() < deadline, "moto did not start"
            time.sleep(0.2)
