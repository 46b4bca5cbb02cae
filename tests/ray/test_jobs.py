"""jobs/train.py on a cluster of three nodes with token authentication, by `ray job submit`, as a user would.

The nodes are `ray start` processes on this machine: a head without CPUs and two workers with labels. They have their own ports,
token and temporary directory, and are ended by their process ids: `ray stop` would end every Ray of the machine.
"""

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.ray.test_train import SMALL

ROOT = Path(__file__).parents[2]
LIMIT = 600.0
pytestmark = pytest.mark.timeout(1800)


@dataclass(frozen=True, kw_only=True)
class Nodes:
    dashboard: str
    token: str
    metrics_port: int  # of the head, where drivers run
    environment: dict[str, str]

    def cli(self, *words: str, token: str | None = "") -> subprocess.CompletedProcess:
        """`ray job WORDS` with the cluster's token, another one, or None."""
        environment = {**self.environment, "RAY_AUTH_TOKEN": self.token if token == "" else token or ""}
        if token is None:
            environment |= {"RAY_AUTH_MODE": "disabled"}
        command = [sys.executable, "-m", "ray.scripts.scripts", "job", words[0], "--address", self.dashboard, *words[1:]]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT)

    def submit(self, name: str, *words: str) -> None:
        runtime = {"excludes": [".venv", ".git", "tests", "runs"], "env_vars": {"OMP_NUM_THREADS": "1"}}
        options = ["--submission-id", name, "--working-dir", str(ROOT), "--runtime-env-json", json.dumps(runtime), "--no-wait"]
        done = self.cli("submit", *options, "--", "python", "jobs/train.py", "configs/atelier.yaml", *words)
        assert done.returncode == 0, done.stdout + done.stderr

    def status(self, name: str) -> str:
        answer = httpx2.get(f"{self.dashboard}/api/jobs/{name}", headers={"Authorization": f"Bearer {self.token}"}, timeout=60)
        answer.raise_for_status()
        return answer.json()["status"]

    def logs(self, name: str) -> str:
        return self.cli("logs", name).stdout

    def metrics(self) -> set[str]:
        """Names of our samples at the head's Prometheus endpoint."""
        text = httpx2.get(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=60).text
        return {s.name for family in text_string_to_metric_families(text) for s in family.samples if s.name.startswith("ray_omr_")}


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in listeners:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in listeners]


@pytest.fixture(scope="session", autouse=True)
def local_ray():
    """Not for these tests: they start their own."""


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    token, place = secrets.token_hex(32), Path(tempfile.mkdtemp(prefix="omr"))  # short: sockets have paths of at most 107 bytes
    gcs, dashboard, client, *rest = free_ports(12)
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "RAY_ADDRESS")}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "HOME": str(place), "RAY_TMPDIR": str(place)}
    # On a busy machine Ray's agents start slowly (its raylet gives up on them after 30 s), and nicer workers starve.
    environment |= {"RAY_agent_register_timeout_ms": "300000", "RAY_raylet_start_wait_time_s": "300", "RAY_worker_niceness": "0"}
    environment |= {"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    processes: list[subprocess.Popen] = []

    def start(index: int, *words: str) -> None:
        agent, agent_grpc, export = rest[3 * index : 3 * index + 3]
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--node-ip-address=127.0.0.1", "--disable-usage-stats"]
        command += [f"--dashboard-agent-listen-port={agent}", f"--dashboard-agent-grpc-port={agent_grpc}"]
        command += [f"--metrics-export-port={export}", f"--object-store-memory={100 * 2**20}", *words]
        log = (place / f"node{index}.log").open("w")
        processes.append(subprocess.Popen(command, cwd=place, env=environment, stdout=log, stderr=log, start_new_session=True))

    result = Nodes(dashboard=f"http://127.0.0.1:{dashboard}", token=token, metrics_port=rest[2], environment=environment)
    try:
        start(
            0,
            "--head",
            f"--port={gcs}",
            f"--dashboard-port={dashboard}",
            f"--ray-client-server-port={client}",
            f"--temp-dir={place}",
            "--num-cpus=0",
        )
        wait_for(lambda: answers(result), "the dashboard", processes, place)
        for index, pool in ((1, "rollout"), (2, "learner")):  # one by one: two that start at once on a machine take the same socket
            start(index, f"--address=127.0.0.1:{gcs}", "--num-cpus=2", f"--labels=pool={pool}")
            wait_for(lambda wanted=index + 1: alive(result) == wanted, f"{index + 1} nodes", processes, place)
        yield result
    finally:
        for process in reversed(processes):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(60)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        shutil.rmtree(place, ignore_errors=True)


def wait_for(condition, what: str, processes=(), place: Path | None = None) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        logs = [path.read_text()[-2000:] for path in place.glob("node*.log")] if place else []
        assert all(process.poll() is None for process in processes), logs
        assert time.monotonic() < deadline, f"no {what} within {LIMIT:g} s: {logs}"
        time.sleep(1)


def asked(nodes: Nodes, path: str) -> httpx2.Response | None:
    try:
        return httpx2.get(nodes.dashboard + path, headers={"Authorization": f"Bearer {nodes.token}"}, timeout=60)
    except httpx2.HTTPError:
        return None


def answers(nodes: Nodes) -> bool:
    answer = asked(nodes, "/api/jobs/")
    return answer is not None and answer.status_code == 200


def alive(nodes: Nodes) -> int:
    answer = asked(nodes, "/nodes?view=summary")
    if answer is None or answer.status_code != 200:
        return 0
    return sum(node["raylet"].get("state") == "ALIVE" for node in answer.json()["data"]["summary"])


def test_without_the_token_nobody_runs_anything(nodes):
    for token, status in ((None, 401), ("f" * 64, 403)):
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        job = {"entrypoint": "touch /tmp/omr_intruder"}
        assert httpx2.post(f"{nodes.dashboard}/api/jobs/", json=job, headers=headers, timeout=60).status_code == status
        refused = nodes.cli("submit", "--no-wait", "--", "touch", "/tmp/omr_intruder", token=token)
        assert refused.returncode != 0, refused.stdout
    assert asked(nodes, "/api/jobs/").json() == []


def test_a_stopped_job_leaves_a_run_that_another_job_finishes(nodes, tmp_path):
    """The first job is stopped behind its first checkpoint; the second resumes and ends with a report."""
    out = tmp_path / "run"
    nodes.submit("first", "--out", str(out), *SMALL)
    try:
        wait_for(lambda: (out / "checkpoints/step-000001").exists() or nodes.status("first") == "FAILED", "checkpoint of the first job")
    except AssertionError as error:
        raise AssertionError(nodes.logs("first")) from error
    assert nodes.status("first") == "RUNNING", nodes.logs("first")
    stopped = nodes.cli("stop", "first")
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert nodes.status("first") == "STOPPED"
    assert not (out / "report.html").exists()

    nodes.submit("second", "--out", str(out), "--resume", *SMALL)
    seen: set[str] = set()

    def over() -> bool:
        seen.update(nodes.metrics())
        return nodes.status("second") in ("SUCCEEDED", "FAILED", "STOPPED")

    wait_for(over, "end of the second job")
    assert nodes.status("second") == "SUCCEEDED", nodes.logs("second")
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert (out / "report.html").exists() and (out / "adapter/adapter_model.safetensors").exists()
    assert {"ray_omr_step", "ray_omr_phase_seconds", "ray_omr_worker_idle_share"} <= seen
