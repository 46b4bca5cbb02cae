"""A small training loop that can be stopped at any time and continues exactly where it was.

Everything random at step k comes from generators seeded by (seed, k), and a checkpoint holds weights,
their moving average and the optimizer's moments: a resumed run takes the same steps as an unbroken one.
"""

import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

SECONDS_BETWEEN_CHECKPOINTS = 60.0
STEPS_BETWEEN_LOGS = 25


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How long a stage trains and how fast. The learning rate warms up, then falls to zero on a cosine."""

    steps: int
    batch: int
    learning_rate: float
    warmup: int = 100
    weight_decay: float = 0.01
    ema_decay: float | None = None
    clip_norm: float = 1.0

    def rate(self, step: int) -> float:
        """Learning rate of step 0..steps-1."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * done))

    def ema_rate(self, step: int) -> float:
        """Decay of the moving average; shorter at first, so that it forgets the start."""
        return min(self.ema_decay or 0.0, (1 + step) / (10 + step))


def generators(seed: int, step: int) -> tuple[np.random.Generator, torch.Generator]:
    """The NumPy and the torch (CPU) generator of one step."""
    numbers = np.random.default_rng([seed, step])
    return numbers, torch.Generator().manual_seed(int(numbers.integers(2**62)))


class Trainer:
    """Trains modules on `loss_at` and keeps a checkpoint in `work/<name>.safetensors`."""

    def __init__(self, name: str, modules: Mapping[str, nn.Module], budget: Budget, *, work: Path, log: Path) -> None:
        self.name, self.budget = name, budget
        self.path, self.log = work / f"{name}.safetensors", log
        self.module = nn.ModuleDict(modules)
        self.parameters = {name: p for name, p in self.module.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=budget.learning_rate, betas=(0.9, 0.99), weight_decay=budget.weight_decay
        )
        self.ema = {name: p.detach().clone() for name, p in self.parameters.items()} if budget.ema_decay else {}
        self.step, self.seconds = 0, 0.0
        work.mkdir(parents=True, exist_ok=True)
        log.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            self._load()

    def run(
        self,
        loss_at: Callable[[np.random.Generator, torch.Generator], dict[str, torch.Tensor]],
        *,
        seed: int,
        on_checkpoint: Callable[[], None] | None = None,
    ) -> float:
        """Train to the end of the budget; returns the seconds spent over all resumptions.

        `loss_at` gives named losses of one batch; "loss" is the one that is minimised.
        `on_checkpoint` is called after each checkpoint, with the moving average not yet swapped in.
        """
        self._cut_log()
        began = checkpointed = time.monotonic()
        spent = self.seconds
        sums: dict[str, float] = {}
        logged = self.step
        while self.step < self.budget.steps:
            losses = loss_at(*generators(seed, self.step))
            norm = self._update(losses["loss"])
            for name, value in (losses | {"grad_norm": norm}).items():
                sums[name] = sums.get(name, 0.0) + float(torch.as_tensor(value).detach())
            self.step += 1
            self.seconds = spent + time.monotonic() - began
            if self.step % STEPS_BETWEEN_LOGS == 0 or self.step == self.budget.steps:
                self._write_log({name: value / (self.step - logged) for name, value in sums.items()})
                sums, logged = {}, self.step
            if time.monotonic() - checkpointed > SECONDS_BETWEEN_CHECKPOINTS or self.step == self.budget.steps:
                self._save()
                checkpointed = time.monotonic()
                if on_checkpoint is not None:
                    on_checkpoint()
        return self.seconds

    def swap_ema(self) -> None:
        """Exchange the weights and their moving average; a second call undoes the first."""
        with torch.no_grad():
            for name, average in self.ema.items():
                kept = self.parameters[name].detach().clone()
                self.parameters[name].copy_(average)
                average.copy_(kept)

    def _update(self, loss: torch.Tensor) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = self.budget.rate(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = float(nn.utils.clip_grad_norm_(self.parameters.values(), self.budget.clip_norm))
        if math.isfinite(norm):
            self.optimizer.step()
        if self.ema:
            with torch.no_grad():
                weights = [self.parameters[name].detach() for name in self.ema]
                torch._foreach_lerp_(list(self.ema.values()), weights, 1 - self.budget.ema_rate(self.step))
        return norm

    def _save(self) -> None:
        tensors = {f"model.{name}": value for name, value in self.module.state_dict().items()}
        tensors |= {f"ema.{name}": value for name, value in self.ema.items()}
        for name, parameter in self.parameters.items():
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"optimizer.{key}.{name}"] = value
        tensors = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
        partial = self.path.with_suffix(".partial")
        save_file(tensors, partial, metadata={"step": str(self.step), "seconds": f"{self.seconds:.1f}"})
        os.replace(partial, self.path)

    def _load(self) -> None:
        tensors = load_file(self.path)
        with safe_open(self.path, "pt") as file:
            self.step, self.seconds = int(file.metadata()["step"]), float(file.metadata()["seconds"])
        self.module.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
        for name, parameter in self.parameters.items():
            if name in self.ema:
                self.ema[name].copy_(tensors[f"ema.{name}"])
            keys = [key for key in ("step", "exp_avg", "exp_avg_sq") if f"optimizer.{key}.{name}" in tensors]
            self.optimizer.state[parameter] = {
                key: tensors[f"optimizer.{key}.{name}"].to("cpu" if key == "step" else parameter.device) for key in keys
            }

    def _cut_log(self) -> None:
        """Drop lines later than the checkpoint, which will be written again."""
        if self.log.exists():
            lines = [line for line in self.log.read_text().splitlines() if json.loads(line)["step"] <= self.step]
            self.log.write_text("".join(f"{line}\n" for line in lines))

    def _write_log(self, means: dict[str, float]) -> None:
        row = {"step": self.step, "seconds": round(self.seconds, 1)}
        row |= {name: round(value, 6) for name, value in means.items()}
        with self.log.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{self.name}: {json.dumps(row)}", file=sys.stderr, flush=True)
