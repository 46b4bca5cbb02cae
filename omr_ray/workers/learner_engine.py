"""DeepSpeed around the UNet: only LoRA parameters learn, their state is read and written whole, whatever the sharding is."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from omr_ray.config.run import Optimization
from omr_ray.types import UserError

MOMENTS = ("exp_avg", "exp_avg_sq")
# What follows from our own config: the same key in the DeepSpeed file would be a second answer to one question.
OURS = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "optimizer",
    "scheduler",
    "fp16",
    "bf16",
)


def join_group(*, rank: int, world_size: int, local_rank: int, address: str, port: int, device: str, timeout_s: float) -> None:
    """Enter the process group of the learner: gloo on CPU, NCCL on GPU. Every later collective ends after `timeout_s`."""
    values = {"RANK": rank, "WORLD_SIZE": world_size, "LOCAL_RANK": local_rank, "MASTER_ADDR": address, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in values.items()}
    _init_deepspeed(device, timeout_s, dist_init_required=True)


def use_group(device: str, timeout_s: float) -> None:
    """Let DeepSpeed use the process group that torch is in already (Ray Train starts one)."""
    _init_deepspeed(device, timeout_s, dist_init_required=False)


def _init_deepspeed(device: str, timeout_s: float, *, dist_init_required: bool) -> None:
    cpu = device == "cpu"
    os.environ |= {"DS_ACCELERATOR": "cpu"} if cpu else {}
    import deepspeed  # reads DS_ACCELERATOR as it is imported
    import deepspeed.ops

    deepspeed.utils.logger.setLevel("WARNING")
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")  # DeepSpeed's, at every collective
    # The shared-memory all-reduce only serves CPU inference, is compiled for a minute at its first use, and leaves files
    # in /dev/shm behind when a rank is killed. Without it DeepSpeed takes gloo, and no compiler is needed.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(
        "gloo" if cpu else "nccl",
        auto_mpi_discovery=False,
        verbose=False,
        timeout=timedelta(seconds=timeout_s),
        dist_init_required=dist_init_required,
    )


def leave_group() -> None:
    """Leave the process group, if this process is in one."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def deepspeed_config(learner: Optimization, trainable: int) -> dict[str, Any]:
    """The DeepSpeed config of `learner` for `trainable` parameters, its JSON file merged in.

    Batch sizes are 1 because micro-batches are counted, scaled and accumulated by LearnerRank. There is no bf16 section:
    the base may be bfloat16, but the LoRA parameters, the only ones DeepSpeed updates, are float32.
    Raises UserError for a file that is not readable or sets a key that follows from our own config.
    """
    bucket = trainable + trainable % 2  # DeepSpeed wants an even number; its default is gigabytes
    ours: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": learner.max_grad_norm,
        "steps_per_print": 2**31,
        "zero_optimization": {"stage": learner.zero_stage, "reduce_bucket_size": bucket, "allgather_bucket_size": bucket},
    }
    if learner.deepspeed is None:
        return ours
    file = Path(learner.deepspeed)
    try:
        theirs = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"learner.deepspeed {file}: not readable as JSON: {error}; give a DeepSpeed config file") from None
    if not isinstance(theirs, dict) or not isinstance(theirs.get("zero_optimization", {}), dict):
        raise UserError(f"learner.deepspeed {file}: must hold a JSON object, and so must zero_optimization; mend the file")
    taken = [key for key in OURS if key in theirs] + (["zero_optimization.stage"] if "stage" in theirs.get("zero_optimization", {}) else [])
    if taken:
        raise UserError(f"learner.deepspeed {file}: {', '.join(taken)} follow from the run's own config; remove them from the file")
    return ours | theirs | {"zero_optimization": ours["zero_optimization"] | theirs.get("zero_optimization", {})}


class AdapterEngine:
    """A DeepSpeed engine whose trainable parameters are `parameters` (by name), with AdamW.

    `objective(part)` returns (loss, values), the loss a sum over rows that is already divided by the number of rows of
    the whole group. Gradients of successive `accumulate` calls and of all ranks are added, nothing is averaged.
    """

    def __init__(
        self, objective: nn.Module, parameters: Mapping[str, nn.Parameter], learner: Optimization, channels_last: bool = False
    ) -> None:
        import deepspeed

        self.parameters = dict(parameters)
        self.stage = learner.zero_stage
        self.world_size = torch.distributed.get_world_size()
        optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=learner.learning_rate, betas=learner.betas, weight_decay=learner.weight_decay
        )
        trainable = sum(parameter.numel() for parameter in self.parameters.values())
        # DeepSpeed sends all parameters of rank 0 to the others as bytes, which it can do with contiguous ones only.
        objective.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        self.engine, *_ = deepspeed.initialize(
            model=objective, optimizer=optimizer, config=deepspeed_config(learner, trainable), dist_init_required=False
        )
        if channels_last and self.stage < 3:  # ZeRO-3 flattens and gathers: its weights stay contiguous
            objective.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._start_moments()

    def accumulate(self, part: Any, last: bool) -> dict[str, Tensor]:
        """Add the gradient of one part; `last` is True for the last one before `apply`. Returns the objective's values."""
        self.engine.set_gradient_accumulation_boundary(last)
        loss, values = self.engine(part)
        # DeepSpeed averages over ranks; times the world size that is the sum.
        self.engine.backward(loss * self.world_size, scale_wrt_gas=False)
        return values

    def apply(self, learning_rate: float) -> float | None:
        """Clip and step. Returns the gradient's norm before clipping; None if it was not finite and nothing changed."""
        for group in self.engine.optimizer.param_groups:
            group["lr"] = learning_rate
        if self.stage > 0:  # ZeRO skips a step whose norm is not finite by itself
            self.engine.step()
            return float(self.engine.get_global_grad_norm()) if self.engine.was_step_applied() else None
        gradients = [parameter.grad for parameter in self.parameters.values() if parameter.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(gradient) for gradient in gradients]))
        if not torch.isfinite(norm):
            self.engine.zero_grad()
            return None
        self.engine.step()
        return float(norm)

    # -- state: full tensors by name, the same for every ZeRO stage and number of ranks. All ranks must call. ------------

    def weights(self) -> dict[str, np.ndarray]:
        """The LoRA weights, float32."""
        from deepspeed.utils import safe_get_full_fp32_param

        full = (lambda parameter: parameter.detach()) if self.stage == 0 else safe_get_full_fp32_param
        return {name: _array(full(parameter)) for name, parameter in self.parameters.items()}

    def moments(self) -> dict[str, np.ndarray]:
        """Adam's moments as "<name>.exp_avg" and "<name>.exp_avg_sq", and "step", the number of updates it has made."""
        from deepspeed.utils import safe_get_full_optimizer_state

        found = {}
        for name, parameter in self.parameters.items():
            for key in MOMENTS:
                state = self._optimizer.state[parameter][key] if self.stage == 0 else safe_get_full_optimizer_state(parameter, key)
                found[f"{name}.{key}"] = _array(state)
        return found | {"step": np.array([float(next(self._states())["step"])], dtype=np.float32)}

    def load_moments(self, moments: Mapping[str, np.ndarray]) -> None:
        """Continue from what `moments` returned. Raises UserError if it belongs to another adapter."""
        expected = {f"{name}.{key}": tuple(shape) for name, shape in self._full_shapes().items() for key in MOMENTS} | {"step": (1,)}
        wrong = sorted(key for key in expected.keys() | moments.keys() if expected.get(key) != getattr(moments.get(key), "shape", None))
        if wrong:
            raise UserError(f"the optimizer state does not fit the adapter: {len(wrong)} entries, first {wrong[0]!r}; keep lora and model")
        for state in self._states():
            state["step"].fill_(float(moments["step"][0]))
        for name, parameter in self.parameters.items():
            for key in MOMENTS:
                self._load(parameter, key, torch.tensor(moments[f"{name}.{key}"], device=self.engine.device))

    def _load(self, parameter: nn.Parameter, key: str, value: Tensor) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        if self.stage == 0:
            self._optimizer.state[parameter][key].copy_(value)
        elif self.stage < 3:
            safe_set_full_optimizer_state(parameter, value, key)
        else:  # the call for full tensors fails where the last rank's share is padded
            size: int = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
            flat = torch.zeros(size * self.world_size, device=value.device)
            flat[: value.numel()] = value.flatten()
            safe_set_local_optimizer_state(parameter, flat[size * torch.distributed.get_rank() :][:size], key)

    def _full_shapes(self) -> dict[str, Any]:
        return {name: getattr(parameter, "ds_shape", parameter.shape) for name, parameter in self.parameters.items()}

    @property
    def _optimizer(self) -> torch.optim.Optimizer:
        return self.engine.basic_optimizer

    def _tensors(self) -> list[Tensor]:
        """What AdamW steps on this rank: the parameters, or ZeRO's flat shares of them."""
        if self.stage == 0:
            return list(self.parameters.values())
        return (
            self.engine.optimizer.single_partition_of_fp32_groups if self.stage < 3 else self.engine.optimizer.fp32_partitioned_groups_flat
        )

    def _states(self) -> Iterator[dict[str, Any]]:
        return (self._optimizer.state[tensor] for tensor in self._tensors())

    def _start_moments(self) -> None:
        """Give AdamW the state it would give itself at its first step, so that it can be read and written before."""
        for tensor in self._tensors():
            moments = {key: torch.zeros_like(tensor, memory_format=torch.preserve_format) for key in MOMENTS}
            self._optimizer.state[tensor] = {"step": torch.tensor(0.0), **moments}
        if 0 < self.stage < 3:
            self.engine.optimizer._lazy_init_hp_params_optimizer_state()


def _array(value: Tensor) -> np.ndarray:
    return value.detach().float().cpu().numpy().copy()
