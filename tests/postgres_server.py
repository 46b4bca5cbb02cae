"""A real PostgreSQL server on this machine, in a temporary directory, for the tests of the store."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STARTS_WITHIN_S = 180.0


def binary(name: str) -> str:
    """Debian puts the server's programs beside the path."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    program = str(found[-1]) if found else shutil.which(name)
    assert program, f"no PostgreSQL here ({name}); install it: apt-get install postgresql"
    return program


@contextmanager
def postgres_server() -> Iterator[str]:
    """Its URL for SQLAlchemy, without a path: add the name of a database; "postgres" is there. It is gone afterwards."""
    # The server refuses to run as root.
    user = pwd.getpwnam("nobody") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
    drop = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if os.geteuid() == 0 else {}
    directory = Path(tempfile.mkdtemp(prefix="omr-postgres-", dir="/tmp"))
    try:
        shutil.chown(directory, user.pw_uid, user.pw_gid)
        quiet = {"cwd": directory, "stdout": subprocess.DEVNULL, "env": {**os.environ, "LC_ALL": "C", "HOME": str(directory)}, **drop}
        data = directory / "data"
        subprocess.run(
            [binary("initdb"), "-D", data, "-U", "omr", "-A", "trust", "-E", "UTF8"], check=True, timeout=STARTS_WITHIN_S, **quiet
        )
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        options = ["-D", data, "-h", "127.0.0.1", "-p", str(port), "-k", directory]
        server = subprocess.Popen([binary("postgres"), *map(str, options)], stderr=subprocess.DEVNULL, **quiet)
        try:
            _wait(port, server)
            yield f"postgresql+psycopg://omr@127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(timeout=60)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _wait(port: int, server: subprocess.Popen) -> None:
    import psycopg

    deadline = time.monotonic() + STARTS_WITHIN_S
    while True:
        try:
            psycopg.connect(host="127.0.0.1", port=port, user="omr", dbname="postgres", connect_timeout=5).close()
            return
        except psycopg.OperationalError:
            assert server.poll() is None and time.monotonic() < deadline, "PostgreSQL did not start"
            time.sleep(0.2)
