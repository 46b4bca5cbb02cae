"""From a config to loaded models: the one place that knows where "atelier" lies and what a worker may load onto."""

from __future__ import annotations

import torch

from omr_ray.atelier import WEIGHTS
from omr_ray.config import Actors, AtelierModel, DiffusersModel, Lora, PreferenceModel, Sampler
from omr_ray.diffusion.policy import Policy
from omr_ray.diffusion.sampler import MultiRoundSampler
from omr_ray.types import UserError
from omr_ray.vlm.reward_model import RewardModel


def device_for(actors: Actors, pool: str) -> str:
    """ "cuda" for an actor that reserves a share of a GPU, "cpu" for one that does not.

    Raises UserError where a GPU is reserved and torch sees none: computing on the CPU instead would look like a hang.
    """
    if actors.num_gpus == 0:
        return "cpu"
    if not torch.cuda.is_available():
        raise UserError(
            f"workers.{pool}.num_gpus is {actors.num_gpus:g}, but torch {torch.__version__} sees no GPU on this node; "
            f"install a CUDA build of torch there, or set workers.{pool}.num_gpus=0"
        )
    return "cuda"


def model_path(model: AtelierModel | DiffusersModel) -> str:
    """Directory or hub id of the diffusion model."""
    return model.path if isinstance(model, DiffusersModel) else str(WEIGHTS)


def policy_from(model: AtelierModel | DiffusersModel, lora: Lora, device: str = "cpu", threads: int | None = None) -> Policy:
    """The policy with a fresh adapter; two processes that call this with equal arguments hold equal weights."""
    _set_threads(threads)
    options = model.model_dump(exclude={"kind", "path"})
    return Policy.from_pretrained(model_path(model), device=device, **lora.model_dump(), **options)


def sampler_from(policy: Policy, sampler: Sampler) -> MultiRoundSampler:
    return MultiRoundSampler(policy, **sampler.model_dump())


def reward_model_from(preference: PreferenceModel, device: str = "cpu", threads: int | None = None) -> RewardModel:
    """The frozen preference model."""
    _set_threads(threads)
    path = str(WEIGHTS / "reward_model") if preference.path == "atelier" else preference.path
    return RewardModel.from_pretrained(path, dtype=preference.dtype, device=device)


def _set_threads(threads: int | None) -> None:
    """None leaves torch as it is: a process that loads two models sets its threads once."""
    if threads is not None:
        torch.set_num_threads(threads)
