"""Pairs/s of both engines on the shipped reward model, side by side in one process: `.venv-vllm/bin/python -m tests.vllm.bench`."""

import argparse
import json
import statistics
import time

import numpy as np
import torch

from omr_ray.loading import reward_model_path
from omr_ray.vlm.reward_model import RewardModel
from omr_ray.vlm.vllm_engine import VllmRewardModel
from tests.vllm.pairs import dialogue_pairs


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5, help="after one that is not counted; the engines take turns")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    path = reward_model_path("atelier")
    engines = {"transformers": RewardModel.from_pretrained(path), "vllm": VllmRewardModel.load(path, batch_size=options.batch_size)}
    images, prompts = dialogue_pairs(options.pairs)
    stacked = np.stack(images)
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in engines}
    scores = {}
    for _ in range(options.repeats + 1):
        for name, engine in engines.items():
            start, cpu_start = time.perf_counter(), time.process_time()
            scores[name] = engine.score(stacked, prompts, batch_size=options.batch_size)
            seconds[name].append(time.perf_counter() - start)
            cpu_seconds[name].append(time.process_time() - cpu_start)
    rates = {f"{name}_pairs_per_s": options.pairs / statistics.median(times[1:]) for name, times in seconds.items()}
    # On a machine with other work, seconds of processor time are the steadier measure.
    rates |= {f"{name}_pairs_per_cpu_s": options.pairs / statistics.median(times[1:]) for name, times in cpu_seconds.items()}
    print(json.dumps({**vars(options), **rates, "largest_difference": (scores["vllm"] - scores["transformers"]).abs().max().item()}))


if __name__ == "__main__":
    main()
