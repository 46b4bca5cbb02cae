"""One vLLM engine after the other in one process, and what it means for two engines to agree."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from omr_ray.vlm.engine import RewardEngine
from omr_ray.vlm.vllm_engine import VllmRewardModel

TOLERANCE = 1e-3


@contextmanager
def alone(engine: RewardEngine) -> Iterator[VllmRewardModel]:
    """Ends `engine` afterwards: engines of one process share their process group, which goes with the first that is collected."""
    assert isinstance(engine, VllmRewardModel)
    yield engine
    engine._engine.llm_engine.engine_core.shutdown()
    del engine._engine
    gc.collect()


def assert_alike(wanted: torch.Tensor, found: torch.Tensor) -> None:
    """At most TOLERANCE apart, and of all pairs that are further apart than that in `wanted`, every one in the same order: tau 1."""
    assert found.dtype == torch.float32 and found.shape == wanted.shape
    assert (found - wanted).abs().max() <= TOLERANCE
    apart = wanted[:, None] - wanted[None, :]
    clear = apart.abs() > TOLERANCE
    assert clear.sum() > 0.9 * len(wanted) * (len(wanted) - 1)  # the comparison means something
    agreement = torch.sign(apart[clear]) * torch.sign((found[:, None] - found[None, :])[clear])
    assert agreement.mean() == 1
