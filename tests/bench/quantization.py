"""QLoRA in 4 bit beside LoRA on full weights: held-out accuracy, memory and time of two trainings of the reward model.

    .venv/bin/python -m tests.bench.quantization configs/reward_atelier.yaml data/atelier --limit 2000

Each is `omr-ray reward train` and `omr-ray reward evaluate` on the same pairs, one after the other. Prints one JSON object: bytes of the
network's weights, adapter left out; the largest worker's own memory (USS) at its peak; seconds of all updates after the first; accuracy
on the test split, with its interval, and by kind of negative. "before" is the network without an adapter.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from omr_ray.config.reward_model import RewardRun
from omr_ray.loading import reward_model_path
from omr_ray.tracking import METRICS, read_metrics
from omr_ray.vlm.trainable import TrainableRewardModel
from tests.bench.build_memory import SAMPLE_EVERY_S, sampled

KINDS = {"full": "model.quantization=null", "nf4": "model.quantization=nf4"}
LIMIT_S = 7200.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("data")
    parser.add_argument("overrides", nargs="*", help="for both")
    parser.add_argument("--limit", type=int, default=2000, help="held-out pairs")
    options = parser.parse_args()
    path = RewardRun.load(options.config, options.overrides).model.path
    with tempfile.TemporaryDirectory() as out:
        found = {"before": judged(path, options, Path(out, "before"))}
        for name, kind in KINDS.items():
            overrides = [f"data.path={options.data}", *options.overrides, kind]
            found[name] = trained(options.config, overrides, Path(out, name))
            found[name] |= judged(str(Path(out, name, "model")), options, Path(out, name, "judged"))
    print(json.dumps(found))


def trained(config: str, overrides: list[str], out: Path) -> dict:
    command = [sys.executable, "-m", "omr_ray.cli", "reward", "train", config, "--out", str(out), *overrides]
    run, peak, deadline = subprocess.Popen(command, stdout=subprocess.DEVNULL), 0.0, time.monotonic() + LIMIT_S
    seen: dict[int, float] = {}  # updates -> when they were first seen
    try:
        while run.poll() is None and time.monotonic() < deadline:
            peak = max(peak, sampled(psutil.Process(run.pid))["largest_worker"])
            seen.setdefault(len(read_metrics(out / METRICS)) if (out / METRICS).exists() else 0, time.monotonic())
            time.sleep(SAMPLE_EVERY_S)
    finally:
        run.terminate()
        status = run.wait(timeout=60)
    assert status == 0, f"the training ended with status {status}"
    seen.pop(0, None)
    first, last = min(seen), max(seen)
    return {
        "weights_mib": round(weights(RewardRun.load(config, overrides)) / 2**20, 2),
        "peak_worker_mib": round(peak / 2**20, 1),
        "updates": last,
        "seconds_an_update": round((seen[last] - seen[first]) / (last - first), 3),
    }


def weights(config: RewardRun) -> int:
    """Bytes of the network's parameters without those of the adapter, and with what 4-bit ones keep beside them."""
    assert config.lora is not None
    options = config.model.model_dump(exclude={"path"})
    sizes = (config.lora.rank, config.lora.alpha)
    model = TrainableRewardModel.load(reward_model_path(config.model.path), lora=sizes, seed=0, device="cpu", **options)
    size = 0
    for parameter in model.network.parameters():
        if not parameter.requires_grad:
            size += parameter.numel() * parameter.element_size()
            state = getattr(parameter, "quant_state", None)
            size += 0 if state is None else sum(tensor.numel() * tensor.element_size() for tensor in state.as_dict(packed=True).values())
    return size


def judged(model: str, options: argparse.Namespace, out: Path) -> dict:
    command = [sys.executable, "-m", "omr_ray.cli", "reward", "evaluate", model, "--data", options.data, "--out", str(out)]
    command += ["--limit", str(options.limit), "--json"]
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=LIMIT_S)
    found = json.loads(run.stdout.splitlines()[-1])
    return {name: found[name] for name in ("accuracy", "interval", "by_negative")}


if __name__ == "__main__":
    main()
