"""Our loop against a plain DDPO loop (`tests/bench/ddpo.py`) on this machine, by alternating runs; prints ratios of images/s.

    .venv/bin/python -m tests.bench.against_ddpo configs/atelier.yaml --pairs 3 --steps 5

Both make the same images: single prompts (`dialogues.rounds=1`), as many a step as the config's dialogues have rounds, with
its denoising steps, guidance, batch and reward model. Variants of ours:

    config       as the config stands: its stored steps, its estimator
    ratio        its stored steps, by the importance ratio alone
    published    one step of every image, drawn from the config's window, as in OMR's Algorithm 1, by the importance ratio alone
    every_step   stores and trains every denoising step, by the importance ratio alone, as the yardstick does
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys

from omr_ray.config.run import RunConfig

LIMIT_S = 3600.0
VARIANTS = ["config", "ratio", "published", "every_step"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*", help="for both sides")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5, help="of each run, after one that is not counted")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS)
    options = parser.parse_args()
    overrides, variants = same_images(RunConfig.load(options.config, options.overrides), options.overrides)
    rates: dict[str, list[float]] = {name: [] for name in ("ddpo", *options.variants)}
    for pair in range(1, options.pairs + 1):
        ddpo = [sys.executable, "-m", "tests.bench.ddpo", options.config, *overrides, "--steps", str(options.steps)]
        rates["ddpo"].append(printed(ddpo)["images_per_s"])
        for name in options.variants:
            ours = [sys.executable, "-m", "omr_ray.cli", "bench", options.config, *overrides, *variants[name]]
            ours += ["--what", "end-to-end", "--repeats", str(options.steps), "--json"]
            rates[name].append(printed(ours)["end-to-end"]["images_per_s"])
        print(f"pair {pair}: " + ", ".join(f"{name} {rate[-1]:.2f} images/s" for name, rate in rates.items()), file=sys.stderr, flush=True)
    ratios = {name: [a / b for a, b in zip(rates[name], rates["ddpo"], strict=True)] for name in options.variants}
    medians = {name: statistics.median(found) for name, found in ratios.items()}
    print(json.dumps({"overrides": overrides, "images_per_s": rates, "ratio": ratios, "median_ratio": medians}))


def same_images(config: RunConfig, given: list[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Overrides of both sides, and of each variant of ours."""
    dialogues = config.dialogues_per_step * config.dialogues.rounds
    steps = config.sampler.steps
    both = [*given, "dialogues.rounds=1", f"dialogues_per_step={dialogues}", "noise_loss.weight=0"]
    ratio = ["algorithm.reward_gradient=0"]
    published = ["sampler.train_steps_per_round=1", *ratio]
    every = [f"sampler.window=[1,{steps}]", f"sampler.train_steps_per_round={steps}", *ratio]
    return both, dict(zip(VARIANTS, ([], ratio, published, every), strict=True))


def printed(command: list[str]) -> dict:
    """The JSON object that is a command's last line."""
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=LIMIT_S)
    return json.loads(run.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
