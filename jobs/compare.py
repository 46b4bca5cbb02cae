"""What each estimator brings: the same config, several seeds, one variant after the other; prints a Markdown table.

    python jobs/compare.py configs/atelier_full.yaml --out runs/compare --seeds 0 1 2 --steps PPO=100 L_multi=200

"config" is the file as it stands; "supervised" is `omr-ray finetune` on the config of --finetune, and "supervised+config" goes on from
its adapter. A run that is finished is not repeated, one that was cut off is resumed. All are compared with one evaluation of the base.
The cool-down of the learning rate keeps its share of the steps.
Intervals: 95%, paired bootstrap over dialogues, each averaged over the seeds: all seeds are judged on the same ones.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from omr_ray.config.run import RunConfig
from omr_ray.evaluation import protocols
from omr_ray.evaluation.results import Evaluation
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
    "overlapped": ["overlap.max_staleness=1"],
    "ReFL": ["algorithm={type: refl, minibatches: 4}"],
    "PPO": RATIO,
    "PPO+L_multi": [*RATIO, PAIRS],
    "supervised": [],
    "supervised+config": [],
    "L_multi": [*RATIO, PAIRS, "algorithm.advantage_clip=1e-9", "sampler.siblings=2", "dialogues_per_step=16"],  # no advantage is left
}


def figures(base: Evaluation, results: Sequence[Evaluation], seconds: float) -> list[str]:
    """One row of the table: the base beside the mean over the seeds of what was trained."""
    trained = protocols.averaged(results)
    found = protocols.compare(base, trained)
    fewer, kept = found.rounds_to_intent_change_percent, found.diversity_ratio
    return [
        ", ".join(f"{100 * value:.1f}" for value in np.nanmean(trained.held_out.accuracy, axis=0)),
        ", ".join(f"{100 * gain.value:+.1f} [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]" for gain in found.accuracy_by_round),
        f"{trained.intent.rounds.mean():.2f}",
        f"{fewer.value:+.0f}% [{fewer.low:+.0f}, {fewer.high:+.0f}]",
        f"{100 * kept.value:.0f}% [{100 * kept.low:.0f}, {100 * kept.high:.0f}]",
        f"{seconds / 60:.1f} min",
    ]


def omr_ray(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "omr_ray.cli", *arguments], check=True, stdout=sys.stderr)


def lasting(config: Sequence[str], steps: int) -> list[str]:
    """Overrides for a run of so many steps."""
    asked = RunConfig.load(config[0], config[1:])
    return [f"steps={steps}", f"learner.cooldown_steps={asked.learner.cooldown_steps * steps // asked.steps}"]


def rlhf(config: Sequence[str], run: Path, base: Evaluation, overrides: Sequence[str]) -> tuple[Evaluation, float]:
    """Train, unless that is done; returns the evaluation after it and the seconds of all steps."""
    if not (run / "report.html").exists():
        if not any(override.startswith("lora.start=") for override in overrides):
            protocols.save(replace(base, phase="before"), run / "evaluation")
        omr_ray("train", *config, "--out", str(run), *(["--resume"] if (run / "config.yaml").exists() else []), *overrides)
    return protocols.load(run / "evaluation", "after"), sum(line["seconds/step"] for line in read_metrics(run / "timings.jsonl"))


def supervised(config: Sequence[str], finetune: str, run: Path, seed: int) -> tuple[Evaluation, float]:
    """Supervised training, unless that is done; returns the evaluation after it and its seconds."""
    seconds = run / "seconds"
    if not seconds.exists():
        began = time.monotonic()
        omr_ray("finetune", finetune, "--out", str(run), *(["--resume"] if (run / "config.yaml").exists() else []), f"seed={seed}")
        seconds.write_text(str(time.monotonic() - began))
    if not (run / "evaluation/after.json").exists():
        omr_ray("evaluate", *config, "--adapter", str(run / "adapter"), "--out", str(run / "evaluation"))
    return protocols.load(run / "evaluation", "after"), float(seconds.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*", help="of the config, for training and evaluation")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["config", "ReFL", "PPO", "PPO+L_multi", "L_multi"])
    parser.add_argument("--steps", nargs="*", default=[], metavar="VARIANT=STEPS", help="so that all take the same time")
    parser.add_argument("--finetune", default="configs/atelier_dialogue.yaml")
    options = parser.parse_args()
    config = [options.config, *options.overrides]
    steps = dict(item.split("=") for item in options.steps)
    if not (options.out / "base/after.json").exists():
        omr_ray("evaluate", *config, "--out", str(options.out / "base"))
    base = protocols.load(options.out / "base", "after")
    print("| variant | accuracy by round | gain by round | rounds to intent | change | diversity kept | training |")
    print("|---|---|---|---|---|---|---|")
    print(f"| base | {figures(base, [base], 0)[0]} | | {base.intent.rounds.mean():.2f} | | | |", flush=True)
    for variant in options.variants:
        outcomes = []
        for seed in options.seeds:
            run, start = options.out / f"{variant}-{seed}", options.out / f"supervised-{seed}"
            overrides = [f"seed={seed}", *VARIANTS[variant], *(lasting(config, int(steps[variant])) if variant in steps else [])]
            spent = 0.0
            if variant.startswith("supervised"):
                result, spent = supervised(config, options.finetune, start, seed)
                overrides.append(f"lora.start={start / 'adapter'}")
            if variant != "supervised":
                result, seconds = rlhf(config, run, base, overrides)
                spent += seconds
            outcomes.append((result, spent))
        row = figures(base, [result for result, _ in outcomes], float(np.mean([spent for _, spent in outcomes])))
        print(f"| {variant} | {' | '.join(row)} |", flush=True)
        (options.out / f"{variant}.json").write_text(json.dumps(row))


if __name__ == "__main__":
    main()
