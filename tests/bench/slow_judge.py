"""What the overlapped loop saves where scores come from another machine: a server that takes its time, by alternating runs.

    .venv/bin/python -m tests.bench.slow_judge configs/atelier.yaml --seconds 6 --pairs 2 --steps 8

The judge is a second term of the reward, at a real HTTP server here that answers `--seconds` after it was asked and uses no
processor meanwhile, as a model elsewhere would. Prints seconds a step (median, without the first two) of both loops.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from omr_ray.tracking import read_metrics

LIMIT_S = 3600.0
FEW = ["evaluation.dialogues=2", "evaluation.siblings=2", "evaluation.max_rounds=1", "evaluation.contact_sheet=1"]
LOOPS = {"synchronous": [], "overlapped": ["overlap.max_staleness=1"]}


def judge(seconds: float) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            prompts = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["prompts"]
            time.sleep(seconds)
            content = json.dumps({"scores": [0.0] * len(prompts)}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None: ...

    return ThreadingHTTPServer(("127.0.0.1", 0), Handler)


def seconds_a_step(config: str, overrides: list[str]) -> float:
    with tempfile.TemporaryDirectory(prefix="omr") as place:
        command = [sys.executable, "-m", "omr_ray.cli", "train", config, "--out", f"{place}/run", *overrides]
        subprocess.run(command, check=True, stdout=sys.stderr, timeout=LIMIT_S)
        return statistics.median(line["seconds/step"] for line in read_metrics(Path(place) / "run/timings.jsonl")[2:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--steps", type=int, default=8)
    options = parser.parse_args()
    server = judge(options.seconds)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    term = f"{{name: elsewhere, weight: 0.1, scorer: {{type: http, url: '{url}', timeout_s: {5 * options.seconds}, batch_size: 1024}}}}"
    given = [f"steps={options.steps}", *FEW, f"rewards.terms=[{term}]", *options.overrides]
    found: dict[str, list[float]] = {name: [] for name in LOOPS}
    for _ in range(options.pairs):
        for name, overrides in LOOPS.items():
            found[name].append(seconds_a_step(options.config, [*given, *overrides]))
        print(json.dumps(found), file=sys.stderr, flush=True)
    ratios = [a / b for a, b in zip(found["overlapped"], found["synchronous"], strict=True)]
    print(json.dumps({"judge_s": options.seconds, "seconds_a_step": found, "ratio": ratios}))
    server.shutdown()


if __name__ == "__main__":
    main()
