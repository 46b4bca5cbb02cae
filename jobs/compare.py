"""What each estimator brings: the same config, several seeds, one variant after the other; prints a Markdown table.

    python jobs/compare.py configs/atelier_full.yaml --out runs/compare --seeds 0 1 2 --steps PPO=100 L_multi=200

"config" is the file as it stands. A run that is finished is not repeated, one that was cut off is resumed.
Intervals: 95%, paired bootstrap over dialogues, each averaged over the seeds: all seeds are judged on the same ones.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from omr_ray.evaluation import metrics, protocols
from omr_ray.tracking import read_metrics

PAIRS = "noise_loss={weight: 1.0, pairs_per_step: 96, tau1: [0.0, 0.2], tau2: [0.2, 0.62]}"  # down from the edits' own first step
# The ratio compares samples: it gets more of them, none of the last step, whose sigma is so small that its log-probability
# would drown the others, and a rate at which its noisy gradient does not destroy the policy.
RATIO = [
    "algorithm.reward_gradient=0",
    "sampler.siblings=6",
    "dialogues_per_step=12",
    "sampler.window=[2, 5]",
    "learner.learning_rate=1e-3",
]
VARIANTS = {
    "config": [],
    "ReFL": ["algorithm={type: refl, minibatches: 4}"],
    "PPO": RATIO,
    "PPO+L_multi": [*RATIO, PAIRS],
    "L_multi": [*RATIO, PAIRS, "algorithm.advantage_clip=1e-9", "sampler.siblings=2", "dialogues_per_step=16"],  # no advantage is left
}


def figures(runs: list[Path]) -> list[str]:
    pairs = [[protocols.load(run / "evaluation", phase) for phase in ("before", "after")] for run in runs]
    last = [np.mean([protocols.last_round(pair[side].held_out.accuracy) for pair in pairs], axis=0) for side in (0, 1)]
    spread = [np.mean([protocols.over_rounds(pair[side].held_out.diversity) for pair in pairs], axis=0) for side in (0, 1)]
    rounds = [np.mean([pair[side].intent.rounds.mean(axis=1) for pair in pairs], axis=0) for side in (0, 1)]
    gain, low, high = metrics.paired_bootstrap(*last, 10_000, 0)
    fewer, few_low, few_high = (100 * (value - 1) for value in metrics.paired_ratio(*rounds, 10_000, 0))
    seconds = np.mean([sum(line["seconds/step"] for line in read_metrics(run / "timings.jsonl")) for run in runs])
    return [
        f"{100 * last[0].mean():.1f} -> {100 * last[1].mean():.1f}",
        f"{100 * gain:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]",
        f"{rounds[0].mean():.2f} -> {rounds[1].mean():.2f}",
        f"{fewer:+.0f}% [{few_low:+.0f}, {few_high:+.0f}]",
        f"{100 * metrics.paired_ratio(*spread, 10_000, 0)[0]:.0f}%",
        f"{seconds / 60:.1f} min",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--steps", nargs="*", default=[], metavar="VARIANT=STEPS", help="so that all take the same time")
    options = parser.parse_args()
    steps = dict(item.split("=") for item in options.steps)
    print("| variant | last-round accuracy | gain | rounds to intent | change | diversity kept | training |\n|---|---|---|---|---|---|---|")
    for variant in options.variants:
        runs = [options.out / f"{variant}-{seed}" for seed in options.seeds]
        for seed, run in zip(options.seeds, runs, strict=True):
            if not (run / "report.html").exists():
                overrides = [f"seed={seed}", *VARIANTS[variant], *([f"steps={steps[variant]}"] if variant in steps else [])]
                resume = ["--resume"] if (run / "config.yaml").exists() else []
                command = [sys.executable, "-m", "omr_ray.cli", "train", options.config, "--out", str(run), *resume, *overrides]
                subprocess.run(command, check=True, stdout=sys.stderr)
        row = figures(runs)
        print(f"| {variant} | {' | '.join(row)} |", flush=True)
        (options.out / f"{variant}.json").write_text(json.dumps(row))


if __name__ == "__main__":
    main()
