"""Memory and speed of `omr-ray data build` by the number of rows, each build a process of its own:

    .venv/bin/python -m tests.bench.build_memory --rows 10000 200000

Rows are preference pairs of the embedded world, drawn in the build. Memory is sampled, in MiB: for the driver, the workers
(all together, and the largest), and Ray's own processes what no other process shares (USS); for the object store the pages
that are in use. Rows/s are counted from the first file of a build to its last, without the start of Ray.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
SAMPLE_EVERY_S = 0.25
LIMIT_S = 4 * 3600.0


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 200_000])
    parser.add_argument("--records-per-part", type=int, default=2000)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the build ends too
    builds = {str(rows): measured(rows, options.records_per_part) for rows in options.rows}
    first, last = (builds[str(rows)]["peak_mib"] for rows in (options.rows[0], options.rows[-1]))
    ratio = {kind: round(last[kind] / first[kind], 3) for kind in first if first[kind]}
    print(json.dumps({**vars(options), "builds": builds, "ratio_of_last_to_first": ratio}))


def measured(rows: int, records_per_part: int) -> dict:
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "omr_ray.cli", "data", "build", "configs/data_atelier.yaml", "--out", out, "--json"]
        command += [f"sources=[{{kind: atelier, pairs: {rows}}}]", f"records_per_part={records_per_part}"]
        build = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
        peak: dict[str, float] = defaultdict(float)
        deadline = time.monotonic() + LIMIT_S
        try:
            while build.poll() is None and time.monotonic() < deadline:
                for kind, size in sampled(psutil.Process(build.pid)).items():
                    peak[kind] = max(peak[kind], round(size / 2**20, 1))
                time.sleep(SAMPLE_EVERY_S)
        finally:
            build.terminate()
            status = build.wait(timeout=60)
        assert status == 0, f"the build of {rows} rows ended with status {status}"
        manifest = json.loads(Path(out, "manifest.json").read_text())
        assert sum(manifest["rows"].values()) == rows
        seconds = Path(out, "manifest.json").stat().st_mtime - Path(out, "config.yaml").stat().st_mtime
    return {"seconds": round(seconds, 1), "rows_per_s": round(rows / seconds, 1), "parts": manifest["parts"], "peak_mib": dict(peak)}


def sampled(driver: psutil.Process) -> dict[str, float]:
    """Bytes by kind of process, now."""
    found = {"driver": 0.0, "workers": 0.0, "largest_worker": 0.0, "object_store": 0.0, "ray": 0.0}
    try:
        processes = [driver, *driver.children(recursive=True)]
    except psutil.NoSuchProcess:
        return found
    for process in processes:
        try:
            own, name = process.memory_full_info().uss, (process.cmdline() or [""])[0]
            if process.name() == "raylet":
                found["object_store"] += object_store(process.pid)
        except (psutil.NoSuchProcess, psutil.AccessDenied, FileNotFoundError):
            continue
        if process == driver:
            found["driver"] += own
        elif name.startswith("ray::") and not name.endswith("Agent"):
            found["workers"] += own
            found["largest_worker"] = max(found["largest_worker"], own)
        else:
            found["ray"] += own
    return found


def object_store(raylet: int) -> int:
    """Bytes of the shared memory that objects lie in: a file that only its open descriptors lead to."""
    files = [file for file in Path(f"/proc/{raylet}/fd").iterdir() if os.readlink(file).startswith("/dev/shm/plasma")]
    return sum({(stat.st_dev, stat.st_ino): 512 * stat.st_blocks for stat in map(os.stat, files)}.values())


if __name__ == "__main__":
    main()
