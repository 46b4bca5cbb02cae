"""A user with a fixed taste votes, and their adapter learns: how often its images are preferred to the base's (TDRI section 3.2.3).

    .venv/bin/python -m tests.bench.fixed_taste configs/serve_atelier.yaml updates.learning_rate=1e-3 --seeds 0 1 2

The taste: of two pictures the warmer one, by mean red minus mean blue. Every 40 votes are an update, as the service makes it
(`omr_ray/training/adaptive_optimization.py`): the images of a pair are two seeds of one prompt under the adapter so far, a
fifth of the votes is held out, eq. 7 takes its passes over the rest. The win rate is over prompts and seeds that nobody
voted on, adapter against base with the same seed, and with it go what the oracle reads of the prompt, before and after.
Prints one JSON object. `--save DIR` keeps each user's last adapter in DIR/user-SEED, for `users` and `personal` of a comparison.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

from omr_ray.atelier import WEIGHTS
from omr_ray.atelier.dialogues import make_dialogues
from omr_ray.atelier.oracle import Oracle
from omr_ray.config.serve import ServeConfig
from omr_ray.diffusion.adapters import Adapter, export_adapter, model_card
from omr_ray.diffusion.generation import generate_guided
from omr_ray.diffusion.sampler import MultiRoundSampler
from omr_ray.loading import policy_from, sampler_from
from omr_ray.training.adaptive_optimization import Drawing, DrawnPair, held_out, judge, learn, redraw

BATCH = 32


def warmth(images: np.ndarray) -> np.ndarray:
    """Mean red minus mean blue of u8 [N H W 3]."""
    return images[..., 0].mean((1, 2)) - images[..., 2].mean((1, 2))


def one_user(
    sampler: MultiRoundSampler, config: ServeConfig, seed: int, updates: int, judged: int
) -> tuple[list[dict[str, float]], Adapter]:
    """What is known after each update, and the adapter of the last one."""
    assert config.updates is not None
    policy, oracle = sampler.policy, Oracle.from_pretrained(WEIGHTS / "oracle")
    base = policy.lora_weights()
    rng = np.random.default_rng(seed)
    voted = [dialogue.rounds[0].prompt for dialogue in make_dialogues("train", updates * config.updates.votes, rounds=1)]
    fresh = [dialogue.rounds[0].prompt for dialogue in make_dialogues("heldout", judged, rounds=1)]
    seeds = [int(value) for value in rng.integers(2**31, 2**32, judged)]

    def drawn(prompts: list[str], numbers: list[int], weights: dict) -> np.ndarray:
        policy.load_lora(weights)
        return generate_guided(sampler, prompts, seeds=numbers).images

    before = drawn(fresh, seeds, base)
    versions = {None: base}
    found = []
    for number in range(1, updates + 1):
        began, worn = time.monotonic(), list(versions)[-1]
        prompts = voted[(number - 1) * config.updates.votes : number * config.updates.votes]
        sides = [[int(value) for value in rng.integers(2**31, size=len(prompts))] for _ in range(2)]
        scores = [warmth(drawn(prompts, side, versions[worn])) for side in sides]
        votes = []
        for n, prompt in enumerate(prompts):
            better = int(scores[1][n] > scores[0][n])
            winner, loser = (
                Drawing(prompt=prompt, seed=sides[side][n], parent=None, strength=1.0, adapter=worn) for side in (better, 1 - better)
            )
            votes.append(DrawnPair(id=f"{seed}/{number}/{n}", winner=winner, loser=loser))
        learned_from, judges = held_out(votes, config.updates.held_out)
        steps, kept = (redraw(sampler, part, versions.__getitem__) for part in (learned_from, judges))
        after, figures = learn(sampler, steps, versions[worn], config.updates, seed=number)
        verdict = judge(sampler, kept, after)
        versions[str(number)] = dict(after)
        images = drawn(fresh, seeds, dict(after))
        found.append(
            {
                "votes": float(number * config.updates.votes),
                "win_rate": float(np.mean(warmth(images) > warmth(before))),
                "warmth_before": float(warmth(before).mean()),
                "warmth": float(warmth(images).mean()),
                "accuracy_before": float(np.nanmean(oracle.accuracy(before, fresh))),
                "accuracy": float(np.nanmean(oracle.accuracy(images, fresh))),
                "held_out_wins": float(verdict.wins.mean()),
                "drift": verdict.drift,
                "updates": figures["updates"],
                "loss": figures["loss"],
                "seconds": time.monotonic() - began,
            }
        )
        print(f"seed {seed}: {json.dumps(found[-1])}", file=sys.stderr, flush=True)
    return found, Adapter(weights=versions[str(updates)], rank=config.lora.rank, alpha=config.lora.alpha, metadata={"user": str(seed)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--updates", type=int, default=3)
    parser.add_argument("--judged", type=int, default=96, help="pictures that the win rate is over")
    parser.add_argument("--save", type=Path, help="directory for the adapters")
    options = parser.parse_args()
    config = ServeConfig.load(options.config, ["updates={}", *options.overrides])
    sampling = config.painting.sampler().model_copy(update={"batch_size": BATCH})
    users = {}
    for seed in options.seeds:
        sampler = sampler_from(policy_from(config.model, config.lora, threads=1), sampling)
        users[str(seed)], adapter = one_user(sampler, config, seed, options.updates, options.judged)
        if options.save is not None:
            card = model_card("atelier", f"user {seed} of a fixed taste", users[str(seed)][-1])
            export_adapter(adapter, options.save / f"user-{seed}", card)
    rates = np.array([[update["win_rate"] for update in user] for user in users.values()])
    print(json.dumps({"win_rate": rates.mean(0).tolist(), "users": users}))


if __name__ == "__main__":
    main()
