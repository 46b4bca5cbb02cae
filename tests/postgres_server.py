"""A real PostgreSQL server on this machine, in a temporary directory, for the tests of the store and of the service."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

STARTS_WITHIN_S = 180.0


def binary(name: str) -> str:
    """Debian puts the server's programs beside the path."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    program = str(found[-1]) if found else shutil.which(name)
    assert program, f"no PostgreSQL here ({name}); install it: apt-get install postgresql"
    return program


class PostgresServer:
    """`url`: for SQLAlchemy, without a path: add the name of a database; "postgres" is there."""

    def __init__(self, directory: Path) -> None:
        # The server refuses to run as root.
        user = pwd.getpwnam("nobody") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
        drop = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if os.geteuid() == 0 else {}
        self._user = user
        self.own(directory)
        self._directory, self._data = directory, directory / "data"
        self._quiet = {"cwd": directory, "stdout": subprocess.DEVNULL, "env": {**os.environ, "LC_ALL": "C", "HOME": str(directory)}, **drop}
        initdb = [binary("initdb"), "-D", self._data, "-U", "omr", "-A", "trust", "-E", "UTF8"]
        subprocess.run(initdb, check=True, timeout=STARTS_WITHIN_S, **self._quiet)
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self._port = listener.getsockname()[1]
        self.url = f"postgresql+psycopg://omr@127.0.0.1:{self._port}"

    def own(self, directory: Path) -> None:
        shutil.chown(directory, self._user.pw_uid, self._user.pw_gid)

    def start(self) -> None:
        options = ["-D", self._data, "-h", "127.0.0.1", "-p", str(self._port), "-k", self._directory]
        self._server = subprocess.Popen([binary("postgres"), *map(str, options)], stderr=subprocess.DEVNULL, **self._quiet)
        deadline = time.monotonic() + STARTS_WITHIN_S
        while True:
            try:
                self._connect("postgres").close()
                return
            except psycopg.OperationalError:
                assert self._server.poll() is None and time.monotonic() < deadline, "PostgreSQL did not start"
                time.sleep(0.2)

    def stop(self) -> None:
        """Cuts all connections off."""
        if self._server.poll() is None:
            self._server.send_signal(signal.SIGINT)
        self._server.wait(timeout=60)

    def make(self, name: str) -> str:
        """The URL of a new, empty database."""
        self.run(f"CREATE DATABASE {name}")
        return f"{self.url}/{name}"

    def cut_off(self, name: str) -> int:
        """End every connection to a database; how many there were."""
        return len(self.run(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"))

    def run(self, statement: str, database: str = "postgres") -> list[tuple]:
        with self._connect(database) as connection:
            done = connection.execute(statement)
            return done.fetchall() if done.description else []

    def _connect(self, database: str) -> psycopg.Connection:
        return psycopg.connect(host="127.0.0.1", port=self._port, user="omr", dbname=database, connect_timeout=5, autocommit=True)


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """Running; it is gone afterwards."""
    directory = Path(tempfile.mkdtemp(prefix="omr-postgres-", dir="/tmp"))
    try:
        server = PostgresServer(directory)
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(directory, ignore_errors=True)
