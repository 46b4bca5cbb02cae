import json

import pytest
import torch
from torch import nn

from omr_ray.atelier.stages import loop
from omr_ray.atelier.stages.loop import Budget, Trainer

BUDGET = Budget(steps=6, batch=4, learning_rate=0.1, warmup=2, ema_decay=0.9)


def trainer_in(folder, budget=BUDGET):
    torch.manual_seed(0)
    return Trainer("line", {"layer": nn.Linear(3, 1)}, budget, work=folder, log=folder / "logs" / "line.jsonl")


def fit(trainer, stop_at=None):
    def loss_at(numbers, noise):
        if trainer.step == stop_at:
            raise KeyboardInterrupt
        x = torch.randn(4, 3, generator=noise) + float(numbers.normal())
        return {"loss": (trainer.module["layer"](x) - x.sum(1, keepdim=True)).square().mean()}

    return trainer.run(loss_at, seed=1)


def test_learning_rate_warms_up_and_falls_to_zero():
    budget = Budget(steps=102, batch=1, learning_rate=1.0, warmup=2)
    assert [budget.rate(0), budget.rate(1), budget.rate(2)] == [0.5, 1.0, 1.0]
    assert budget.rate(52) == pytest.approx(0.5)
    assert budget.rate(102) == pytest.approx(0.0)


def test_a_stopped_run_continues_as_if_it_had_not_been(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    monkeypatch.setattr(loop, "STEPS_BETWEEN_LOGS", 1)
    whole = trainer_in(tmp_path / "whole")
    fit(whole)
    with pytest.raises(KeyboardInterrupt):
        fit(trainer_in(tmp_path / "broken"), stop_at=4)
    resumed = trainer_in(tmp_path / "broken")
    assert resumed.step == 4
    fit(resumed)
    for name, weight in whole.parameters.items():
        assert torch.equal(weight, resumed.parameters[name])
        assert torch.equal(whole.ema[name], resumed.ema[name])
    rows = [json.loads(line) for line in (tmp_path / "broken" / "logs" / "line.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]


def test_a_finished_run_does_not_train_again(tmp_path):
    first = trainer_in(tmp_path)
    fit(first)
    second = trainer_in(tmp_path)
    fit(second, stop_at=6)
    assert second.step == 6
    assert all(torch.equal(first.parameters[name], weight) for name, weight in second.parameters.items())


def test_swapping_the_moving_average_twice_changes_nothing(tmp_path):
    trainer = trainer_in(tmp_path)
    fit(trainer)
    weights = {name: weight.detach().clone() for name, weight in trainer.parameters.items()}
    trainer.swap_ema()
    assert not torch.equal(weights["layer.weight"], trainer.parameters["layer.weight"])
    trainer.swap_ema()
    assert all(torch.equal(weights[name], weight) for name, weight in trainer.parameters.items())


def test_a_gradient_that_is_not_finite_is_not_applied(tmp_path):
    trainer = trainer_in(tmp_path, Budget(steps=1, batch=1, learning_rate=0.1, warmup=1))
    before = trainer.parameters["layer.weight"].detach().clone()
    trainer.run(lambda numbers, noise: {"loss": trainer.module["layer"](torch.full((1, 3), torch.inf)).sum()}, seed=0)
    assert torch.equal(before, trainer.parameters["layer.weight"])
