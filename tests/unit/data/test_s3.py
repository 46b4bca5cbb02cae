"""Buckets, on a real S3-compatible server: files are whole or not there, and what cannot be reached is one line."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from omr_ray.config.data import DataConfig
from omr_ray.data.rows import importer_of, write_part
from omr_ray.data.splits import Shares
from omr_ray.data.store import Folder, Replacing, Shard, StoredTable
from omr_ray.types import UserError
from tests.s3_server import CREDENTIALS, s3_server

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module", autouse=True)
def address():
    with s3_server("bucket") as started, pytest.MonkeyPatch.context() as patch:
        for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL_S3": f"http://{started}"}.items():
            patch.setenv(name, value)
        yield started


def omr_ray(*arguments, **environment) -> tuple[int, str, list[str]]:
    """Exit status, last line of output, and the lines that name a fault."""
    command = [sys.executable, "-m", "omr_ray.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300, env={**os.environ, **environment})
    lines = done.stdout.splitlines()
    return done.returncode, lines[-1] if lines else "", [line for line in done.stderr.splitlines() if line.startswith("omr-ray: ")]


def test_a_bucket_is_a_folder_by_the_environment_or_by_the_address(address):
    here = Folder("s3://bucket/files")
    assert not here.exists("a/b.json")
    here.write("a/b.json", b"old")
    here.write("a/b.json", b"new")
    there = Folder(f"s3://test:test@bucket/files?endpoint_override={address}&scheme=http&region=us-east-1")
    assert there.read("a/b.json") == b"new" and there.exists("a/b.json") and there.files((".json",)) == [("a/b.json", 3)]
    assert there.shown("a/b.json") == "s3://bucket/files/a/b.json"
    there.delete("a/b.json")
    there.delete("a/b.json")
    assert not here.exists("a/b.json") and here.files((".json",)) == []


def test_what_is_given_up_leaves_the_old_file_and_nothing_beside_it():
    folder = Folder("s3://bucket/whole")
    folder.write("x.bin", b"old")
    with pytest.raises(RuntimeError), Replacing(folder, "x.bin") as opened:
        opened.write(bytes(6 * 2**20))  # more than a part of an upload, so that some of it was sent
        raise RuntimeError("killed here")
    assert folder.read("x.bin") == b"old"
    with pytest.raises(RuntimeError), Shard(folder, "rejects/x.parquet", "rejects") as shard:
        shard.add({"source": "s", "id": "i", "reason": "r", "detail": "d"}, 0)
        raise RuntimeError("killed here")
    assert folder.files(("",)) == [("x.bin", 3)]


def test_a_table_in_a_bucket_is_read_back_and_looked_at(tmp_path):
    config = DataConfig(name="test", sources=[{"kind": "atelier", "dialogues": 5, "pairs": 8}], filters={"min_side": 16})
    written = {}
    for number, part in enumerate(importer_of(config.sources[0], Shares()).parts(100)):
        for out in ("s3://bucket/atelier", str(tmp_path / "local")):
            written[out, number] = write_part(config, 0, number, part, out)
    assert [written["s3://bucket/atelier", n] for n in (0, 1)] == [written[str(tmp_path / "local"), n] for n in (0, 1)]
    for table in ("dialogues", "preferences"):
        here, there = StoredTable(str(tmp_path / "local"), table), StoredTable("s3://bucket/atelier", table)
        assert there.files == here.files and list(there.rows()) == list(here.rows()) and there[len(here) - 1] == here[len(here) - 1]
    status, line, faults = omr_ray("data", "look", "s3://bucket/atelier", "--out", str(tmp_path / "look.html"), "--json")
    assert status == 0 and not faults
    assert {table: sum(counts.values()) for table, counts in json.loads(line)["rows"].items()} == {"dialogues": 5, "preferences": 8}
    assert (tmp_path / "look.html").read_text().count("data:image/jpeg;base64,") > 8


def test_a_bucket_that_is_not_there_is_one_line():
    with pytest.raises(UserError, match=r"s3://absent/x/config.yaml: cannot be written \(.*absent.*\)"):
        Folder("s3://absent/x").write("config.yaml", b"")
    with pytest.raises(UserError, match=r"s3://absent/x: cannot be listed \(.*bucket does not exist.*\); see that it can be reached"):
        importer_of(DataConfig(name="x", sources=[{"kind": "hpdv3", "path": "s3://absent/x"}]).sources[0], Shares()).parts(9)
    status, _, faults = omr_ray("data", "look", "s3://absent/x")
    assert status == 2 and len(faults) == 1 and "s3://absent/x: neither dialogues nor preferences in it" in faults[0]


def test_a_server_that_only_fails_is_one_line():
    with failing_server() as url:
        status, _, faults = omr_ray("data", "look", "s3://bucket/atelier", AWS_ENDPOINT_URL_S3=url)
    assert status == 2 and len(faults) == 1
    assert "s3://bucket/atelier/dialogues: cannot be looked up (" in faults[0] and "HTTP status 500" in faults[0]


@contextmanager
def failing_server() -> Iterator[str]:
    class Failing(BaseHTTPRequestHandler):
        def fail(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(500)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_HEAD = do_PUT = do_POST = fail

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Failing) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join(timeout=10)
