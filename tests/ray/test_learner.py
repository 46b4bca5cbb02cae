"""The learner with real DeepSpeed and a tiny Stable Diffusion: one rank in this process, and groups of two on Ray."""

import json
import os
import socket

import numpy as np
import pytest
import ray
import torch

from omr_ray.algorithm.gaussian import log_prob
from omr_ray.config.run import Learner, RunConfig
from omr_ray.diffusion.features import features
from omr_ray.loading import policy_from, sampler_from
from omr_ray.rewards.diversity import mean_of_others
from omr_ray.types import Batch, Dialogue, LearnerState, Round, RoundPairs, UserError
from omr_ray.workers.learner import LearnerGroup, LearnerWorker
from omr_ray.workers.learner_engine import deepspeed_config, join_group, leave_group
from omr_ray.workers.learner_objective import finite_rows, shares
from omr_ray.workers.learner_step import LearnerRank
from tests.tiny import make_tiny_sd
from tests.tiny_qwen import make_tiny_qwen

PROMPTS = ("a red coat", "a blue hat", "a green dress")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(make_tiny_sd(tmp_path_factory.mktemp("sd")))


@pytest.fixture(scope="module")
def alone():
    """This process as a group of one."""
    before = dict(os.environ)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    join_group(rank=0, world_size=1, local_rank=0, address="127.0.0.1", port=port, device="cpu", timeout_s=60)
    yield
    leave_group()
    os.environ.clear()
    os.environ.update(before)


def config(path, **changes) -> RunConfig:
    values = {
        "name": "t",
        "seed": 3,
        "dialogues_per_step": 2,
        "model": {"kind": "diffusers", "path": path, "dtype": "float32", "channels_last": False},
        "sampler": {"steps": 6, "siblings": 3, "window": [1, 6], "train_steps_per_round": 2},
        "algorithm": {"type": "ppo", "clip_range": 1e-2, "minibatches": 2},
        "workers": {"learner": {"num_cpus": 0.5}, "timeout_s": 120, "start_timeout_s": 240},
    }
    learner = {"learning_rate": 1e-3, "micro_batch": 4, "ema_decay": 0.9} | changes.pop("learner", {})
    return RunConfig.model_validate(values | {"learner": learner} | changes)


FULL = {"algorithm": {"type": "ppo", "clip_range": 1e-2, "kl_weight": 0.1, "minibatches": 2}, "noise_loss": {"weight": 0.5}}


def batch_for(model, rows=7, advantages=None) -> Batch:
    """Steps that the policy with its fresh adapter might have taken, at several timesteps, with advantages of both signs."""
    policy, rng = policy_from(config(model).model, config(model).lora), np.random.default_rng(0)
    prompts = [PROMPTS[i % 3] for i in range(rows)]
    shape = (rows, *policy.latent_shape())
    latents, timesteps = rng.standard_normal(shape, dtype=np.float32), rng.integers(200, 900, rows)
    with torch.no_grad():
        text = policy.encode_text(policy.tokenize(prompts))
        steps = (torch.from_numpy(timesteps), torch.from_numpy(timesteps - 150))
        mean, sigma, _ = policy.step(torch.from_numpy(latents), *steps, text, eta=1.0)
        next_latents = mean + sigma.reshape(-1, 1, 1, 1) * torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))
        log_probs = log_prob(next_latents, mean, sigma)
    return Batch(
        latents=latents,
        next_latents=next_latents.numpy(),
        timesteps=timesteps,
        previous_timesteps=timesteps - 150,
        log_probs=log_probs.numpy(),
        advantages=np.asarray(rng.standard_normal(rows) if advantages is None else advantages, dtype=np.float32),
        prompt_ids=policy.tokenize(prompts),
        rounds=np.ones(rows, dtype=np.int64),
        prompts=np.array(prompts),
        siblings=mean_of_others(features(policy, torch.from_numpy(latents)).detach().numpy()),
        oldest_version=0,
    )


def pairs_for(rows=3) -> RoundPairs:
    x, y = np.random.default_rng(1).integers(0, 256, (2, rows, 16, 16, 3), dtype=np.uint8)
    return RoundPairs(images_x=x, images_y=y, prompts_x=PROMPTS[:rows], prompts_y=PROMPTS[::-1][:rows])


def with_row(batch: Batch, name: str, value: float) -> Batch:
    """`batch` and one more row: its first one, with `value` in the array `name`."""
    longer = batch.take(np.array([*range(len(batch)), 0]))
    getattr(longer, name)[-1] = value
    return longer


def difference(one: LearnerState, other: LearnerState) -> float:
    """The largest difference of any number in weights, EMA and optimizer."""
    pairs = [(getattr(one, name), getattr(other, name)) for name in ("weights", "ema", "optimizer")]
    assert all(a.keys() == b.keys() for a, b in pairs)
    return max(float(np.abs(a[key] - b[key]).max()) for a, b in pairs for key in a)


def after(config, state, *steps, device="cpu"):
    """The state and the last metrics after `steps`, each (batch, pairs, number)."""
    learner = LearnerRank(config, state, device)
    for step in steps:
        metrics = learner.step(*step)
    return learner.state(), metrics


# -- shares ------------------------------------------------------------------------------------------------------------


def test_seven_rows_on_two_ranks_of_three_rows_a_forward():
    rows = np.array([9, 8, 7, 6, 5, 4, 3])
    first = [(mine.tolist(), present.tolist()) for mine, present in shares(rows, rank=0, ranks=2, micro_batch=3)]
    second = [(mine.tolist(), present.tolist()) for mine, present in shares(rows, rank=1, ranks=2, micro_batch=3)]
    assert first == [([9, 7, 5], [1, 1, 1]), ([3], [1])]
    assert second == [([8, 6, 4], [1, 1, 1]), ([9], [0])]  # as many forwards as the first, the last one does not count


def test_every_row_counts_once_however_many_ranks_there_are():
    for ranks in range(1, 9):
        parts = [part for rank in range(ranks) for part in shares(np.arange(5), rank=rank, ranks=ranks, micro_batch=2)]
        counted = [row for mine, present in parts for row, counts in zip(mine, present, strict=True) if counts]
        assert sorted(counted) == [0, 1, 2, 3, 4]


# -- what an update does -----------------------------------------------------------------------------------------------


def test_the_first_ratio_of_real_rollouts_is_one(model, alone):
    run = config(model, sampler={"steps": 6, "siblings": 3, "window": [1, 6], "train_steps_per_round": 3, "guidance_scale": 2.0})
    rounds = tuple(Round(index=i, utterance="u", prompt=PROMPTS[i]) for i in (1, 2))
    rollout = sampler_from(policy_from(run.model, run.lora), run.sampler).sample(
        [Dialogue(id="d", intent="x", rounds=rounds)], seed=5, policy_version=0
    )[0]
    made = [t for siblings in rollout.trajectories for t in siblings]
    names = ("latents", "next_latents", "timesteps", "previous_timesteps", "log_probs")
    batch = Batch(
        **{name: np.concatenate([getattr(t, name) for t in made]) for name in names},
        advantages=np.random.default_rng(0).standard_normal(3 * len(made)).astype(np.float32),
        prompt_ids=np.repeat(np.stack([t.prompt_ids for t in made]), 3, axis=0),
        rounds=np.repeat([t.round for t in made], 3),
        prompts=np.repeat([t.prompt for t in made], 3),
        siblings=np.zeros((3 * len(made), 1), np.float32),
        oldest_version=0,
    )
    _, metrics = after(run, None, (batch, None, 1))
    assert metrics["first_ratio_deviation"] <= 1e-6
    assert metrics["rows"] == metrics["trained_steps"] == 18


def test_log_probs_follow_the_advantages_and_the_base_stays(model, alone):
    run, signs = config(model, algorithm={"type": "ppo", "clip_range": 1.0, "passes": 4}), np.array([1, -1, 1, -1, 1, -1])
    batch = batch_for(model, 6, signs)
    learner = LearnerRank(run, None, "cpu")
    base = {n: p.detach().clone() for n, p in learner.policy.network.named_parameters() if not p.requires_grad}
    learner.step(batch, None, 1)
    with torch.no_grad():
        arrays = (batch.latents, batch.timesteps, batch.previous_timesteps)
        text = learner.policy.encode_text(batch.prompt_ids)
        mean, sigma, _ = learner.policy.step(*map(torch.from_numpy, arrays), text, eta=1.0)
        moved = log_prob(torch.from_numpy(batch.next_latents), mean, sigma).numpy() - batch.log_probs
    assert (moved * signs).mean() > 1e-5
    assert len(base) > 50
    assert all(torch.equal(p, base[n]) for n, p in learner.policy.network.named_parameters() if n in base)


def test_the_noise_loss_alone_falls_on_a_fixed_pair(model, alone):
    run = config(model, learner={"learning_rate": 1e-2}, noise_loss={"weight": 1.0}, algorithm={"type": "ppo"})
    learner, still = LearnerRank(run, None, "cpu"), batch_for(model, 1, [0.0])
    # The noise is a function of the step's number: repeating number 1 keeps pair, noise and timesteps fixed.
    losses = [learner.step(still, pairs_for(1), 1)["noise_loss"] for _ in range(30)]
    assert losses[-1] < 0.9 * losses[0]
    assert np.mean(losses[20:]) < np.mean(losses[10:20]) < np.mean(losses[:10])


def test_refl_raises_the_reward_it_descends(model, alone, tmp_path):
    rewards = {"preference": {"path": str(make_tiny_qwen(tmp_path / "qwen"))}}
    run = config(model, algorithm={"type": "refl"}, rewards=rewards, learner={"learning_rate": 2e-2})
    learner, batch = LearnerRank(run, None, "cpu"), batch_for(model, 4)
    rewards = [learner.step(batch, None, step)["one_step_reward"] for step in range(1, 9)]
    assert rewards[-1] > rewards[0] + 1e-3


def test_the_diversity_gradient_parts_the_siblings(model, alone, tmp_path):
    rewards = {"preference": {"path": str(make_tiny_qwen(tmp_path / "qwen"))}}
    algorithm = {"type": "refl", "diversity_gradient": 1e4}  # the tiny network's score must not count beside it
    learner = LearnerRank(config(model, algorithm=algorithm, rewards=rewards, learner={"learning_rate": 2e-2}), None, "cpu")
    batch = batch_for(model, 4)
    distances = [learner.step(batch, None, step)["one_step_diversity"] for step in range(1, 9)]
    assert distances[-1] > 1.01 * distances[0] > 0


def test_ppo_with_the_reward_gradient_is_the_sum_of_both(model, alone, tmp_path):
    rewards = {"preference": {"path": str(make_tiny_qwen(tmp_path / "qwen"))}}
    batch, half = batch_for(model, 4), {"type": "ppo", "reward_gradient": 0.5}

    def gradient(algorithm):
        learner = LearnerRank(config(model, algorithm=algorithm, rewards=rewards), None, "cpu")
        (part,) = learner._reward_parts(batch, np.arange(4))
        loss, _ = learner.engine.engine.module(part)
        parameters = learner.policy.lora_parameters().values()
        found = torch.autograd.grad(loss, list(parameters), allow_unused=True)
        return torch.cat([torch.zeros(p.numel()) if g is None else g.flatten() for p, g in zip(parameters, found, strict=True)])

    both, ratio, reward = (gradient(algorithm) for algorithm in (half, {"type": "ppo"}, {"type": "refl"}))
    assert torch.allclose(both, ratio + 0.5 * reward, atol=1e-7) and ratio.abs().max() > 0 and reward.abs().max() > 0


def test_kl_to_the_base_is_zero_at_first_and_grows(model, alone):
    learner, batch = LearnerRank(config(model, **FULL), None, "cpu"), batch_for(model)
    learner.policy.load_lora(learner.weights)
    first, second = (learner.step(batch, pairs_for(), step) for step in (1, 2))
    assert 0 <= first["kl"] < second["kl"]
    assert first["ratio_mean"] == pytest.approx(1, abs=1e-3)
    assert first["grad_norm"] > 0 and first["adapter_norm"] < second["adapter_norm"]


def test_warm_up_and_ema(model, alone):
    run = config(model, learner={"warmup_steps": 4, "ema_decay": 0.75})
    learner, batch = LearnerRank(run, None, "cpu"), batch_for(model, 4)
    start = learner.state()
    assert learner.step(batch, None, 1)["lr"] == pytest.approx(0.25e-3)
    state = learner.state()
    for name, value in state.ema.items():
        np.testing.assert_allclose(value, 0.75 * start.weights[name] + 0.25 * state.weights[name], atol=1e-7)
    assert state.policy_version == 1
    assert learner.step(batch, None, 4)["lr"] == learner.step(batch, None, 9)["lr"] == pytest.approx(1e-3)


def test_cool_down(model, alone):
    learner, batch = LearnerRank(config(model, steps=9, learner={"cooldown_steps": 3}), None, "cpu"), batch_for(model, 4)
    rates = [learner.step(batch, None, step)["lr"] for step in (6, 7, 9)]
    assert rates == pytest.approx([1e-3, 0.75e-3, 0.25e-3])


@pytest.mark.parametrize("stage, checkpointing", [(0, True), (2, False), (3, False)])
def test_a_bfloat16_base_in_channels_last(model, alone, stage, checkpointing):
    bfloat16 = {"kind": "diffusers", "path": model, "dtype": "bfloat16", "channels_last": True}
    run = config(model, model=bfloat16, **FULL, learner={"zero_stage": stage, "gradient_checkpointing": checkpointing})
    learner = LearnerRank(run, None, "cpu")
    start = learner.state()
    metrics = learner.step(batch_for(model), pairs_for(), 1)  # log-probs of a float32 policy: off by bfloat16's rounding
    assert all(np.isfinite(value) for value in metrics.values())
    assert 0 < metrics["first_ratio_deviation"] < 0.05 and metrics["skipped_updates"] == 0
    assert difference(learner.state(), start) > 1e-4
    assert all(value.dtype == np.float32 for value in learner.weights.values())


# -- what must not reach the weights -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name, value", [("advantages", np.nan), ("log_probs", np.inf), ("latents", np.nan)])
def test_a_row_that_is_not_finite_changes_nothing_but_the_count(model, alone, name, value):
    run, batch = config(model), batch_for(model, 5)
    expected, clean = after(run, None, (batch, None, 1))
    state, metrics = after(run, None, (with_row(batch, name, value), None, 1))
    assert difference(state, expected) == 0
    assert metrics == clean | {"dropped_rows": 1.0}


def test_finite_rows_keeps_the_order():
    batch = Batch(
        latents=np.zeros((3, 1, 1, 1), np.float32),
        next_latents=np.array([0, np.inf, 0], np.float32).reshape(3, 1, 1, 1),
        timesteps=np.array([1, 2, 3]),
        previous_timesteps=np.array([0, 1, 2]),
        log_probs=np.zeros(3, np.float32),
        advantages=np.zeros(3, np.float32),
        prompt_ids=np.zeros((3, 1, 1), np.int64),
        rounds=np.ones(3, np.int64),
        prompts=np.array(["a", "b", "c"]),
        siblings=np.zeros((3, 1), np.float32),
        oldest_version=0,
    )
    assert finite_rows(batch).timesteps.tolist() == [1, 3]


def test_a_row_whose_loss_overflows_is_left_out_and_counted(model, alone):
    run, batch = config(model, algorithm={"type": "ppo"}), batch_for(model, 5)
    state, metrics = after(run, None, (with_row(batch, "log_probs", -1e6), None, 1))  # ratio exp(1e6)
    assert metrics["dropped_rows"] == 1
    assert metrics["skipped_updates"] == 0
    assert all(np.isfinite(value) for value in metrics.values())
    expected, clean = after(run, None, (batch, None, 1))
    assert metrics["grad_norm"] == pytest.approx(clean["grad_norm"] * 5 / 6)  # the loss is still divided by six rows
    for name in (name for name in state.optimizer if name.endswith(".exp_avg")):
        np.testing.assert_allclose(state.optimizer[name], expected.optimizer[name] * 5 / 6, atol=1e-8)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_gradient_that_is_not_finite_skips_the_update(model, alone, stage):
    run = config(model, learner={"zero_stage": stage}, algorithm={"type": "ppo", "clip_range": 1e-2})
    learner, batch = LearnerRank(run, None, "cpu"), batch_for(model, 4)
    learner.step(batch, None, 1)
    before = learner.state()
    parameter = next(iter(learner.engine.parameters.values()))
    poison = parameter.register_hook(lambda gradient: gradient * torch.nan)
    metrics = learner.step(batch, None, 2)
    poison.remove()
    assert metrics["skipped_updates"] == 1 and metrics["grad_norm"] == 0
    skipped = learner.state()
    assert all(np.array_equal(skipped.weights[n], before.weights[n]) for n in before.weights)
    assert all(np.array_equal(skipped.optimizer[n], before.optimizer[n]) for n in before.optimizer)
    assert learner.step(batch, None, 3)["skipped_updates"] == 0  # and nothing of it is left behind
    clean, _ = after(run, before, (batch, None, 3))
    assert max(np.abs(learner.weights[n] - clean.weights[n]).max() for n in clean.weights) == 0


# -- state -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_stopping_and_going_on_is_the_same_bit_for_bit_at_every_zero_stage(model, alone, stage):
    run, batch = config(model, **FULL, learner={"zero_stage": stage}), batch_for(model, 5)
    learner = LearnerRank(run, None, "cpu")
    learner.step(batch, pairs_for(), 1)
    stopped = learner.state()
    learner.step(batch, pairs_for(), 2)
    resumed, _ = after(run, stopped, (batch, pairs_for(), 2))
    assert difference(learner.state(), resumed) == 0
    assert resumed.policy_version == 2 and resumed.optimizer["step"].tolist() == [4.0]
    plain, _ = after(config(model, **FULL), None, (batch, pairs_for(), 1))
    assert difference(stopped, plain) <= 1e-6


def test_a_state_of_another_adapter_is_refused(model, alone):
    state = LearnerRank(config(model), None, "cpu").state()
    with pytest.raises(UserError, match="rank"):
        LearnerRank(config(model, lora={"rank": 2}), state, "cpu")
    fewer = {name: value for name, value in state.optimizer.items() if name != "step"}
    with pytest.raises(UserError, match="'step'"):
        LearnerRank(config(model), LearnerState(policy_version=1, weights=state.weights, optimizer=fewer), "cpu")


def test_deepspeed_file(tmp_path):
    file = tmp_path / "ds.json"
    file.write_text(json.dumps({"zero_optimization": {"overlap_comm": True}, "wall_clock_breakdown": False}))
    merged = deepspeed_config(Learner(zero_stage=2, deepspeed=str(file)), trainable=10)
    assert merged["zero_optimization"] == {"stage": 2, "reduce_bucket_size": 10, "allgather_bucket_size": 10, "overlap_comm": True}
    file.write_text(json.dumps({"fp16": {"enabled": True}, "zero_optimization": {"stage": 3}}))
    with pytest.raises(UserError, match="fp16, zero_optimization.stage follow from"):
        deepspeed_config(Learner(deepspeed=str(file)), trainable=10)
    with pytest.raises(UserError, match="not readable"):
        deepspeed_config(Learner(deepspeed=str(tmp_path / "none.json")), trainable=10)


# -- groups ------------------------------------------------------------------------------------------------------------


class Rank:
    """One process of a group of two that takes `first` and `second` step with one config after another."""

    def address(self):
        return LearnerWorker(None).address()

    def run(self, rank, address, configs, first, second):
        join_group(rank=rank, world_size=2, local_rank=rank, address=address[0], port=address[1], device="cpu", timeout_s=120)
        found = []
        for run in configs:
            learner = LearnerRank(run, None, "cpu")
            metrics = learner.step(*first)
            state = learner.state()
            learner.step(*second)
            found.append((metrics, state, learner.state()))
        return found


def test_two_ranks_and_every_zero_stage_make_the_update_of_one_rank(model, alone):
    first, second = ((batch_for(model), pairs_for(), step) for step in (1, 2))  # 7 and 3 rows: uneven shares
    expected, metrics = after(config(model, **FULL), None, first)
    configs = [config(model, **FULL, learner={"zero_stage": stage, "ranks": 2}) for stage in range(4)]
    ranks = [ray.remote(Rank).options(num_cpus=0.5).remote() for _ in range(2)]
    address = ray.get(ranks[0].address.remote(), timeout=240)
    calls = [rank.run.remote(index, address, configs, first, second) for index, rank in enumerate(ranks)]
    for found, state, later in ray.get(calls, timeout=1200)[0]:
        assert difference(state, expected) <= 1e-6
        assert found.keys() == metrics.keys()
        assert all(found[name] == pytest.approx(value, abs=1e-5) for name, value in metrics.items())
        onwards, _ = after(config(model, **FULL), state, second)  # one rank goes on from where two stopped
        assert difference(later, onwards) <= 1e-6


def test_a_group_gives_weights_metrics_and_state(model):
    run = config(model, **FULL, learner={"zero_stage": 2, "ranks": 2})
    group = LearnerGroup(run)
    start = group.state()
    assert start.policy_version == 0 and start.optimizer["step"] == [0.0]
    first = group.step(batch_for(model), pairs_for(), 1)
    assert first.policy_version == group.state().policy_version == 1
    assert all(np.array_equal(value, group.state().weights[name]) for name, value in first.weights.items())
    assert {"policy_loss", "kl", "noise_loss", "first_ratio_deviation", "grad_norm", "lr"} <= first.metrics.keys()
    assert all(type(value) is float for value in first.metrics.values())
    assert difference(group.state(), start) > 1e-4
    state = group.state()
    group.step(batch_for(model), None, 2)
    other = LearnerGroup(run, state)
    other.step(batch_for(model), None, 2)
    assert difference(other.state(), group.state()) == 0
    group.close()
    other.close()


def test_a_fault_of_the_user_comes_through_as_one(model):
    with pytest.raises(UserError, match="no such directory"):
        LearnerGroup(config("./nowhere"))
    with pytest.raises(UserError, match="no room for 1 x"):
        workers = {"learner": {"num_cpus": 999}, "start_timeout_s": 1}
        LearnerGroup(config(model, workers=workers))
