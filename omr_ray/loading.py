"""From a config to loaded models: the one place that knows where "atelier" lies and what a worker may load onto.

The libraries are imported where they are used: a reward worker needs no diffusers, a rollout worker no Qwen-VL, and
the driver, which only starts them, neither. Each costs seconds of every start.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omr_ray.atelier import WEIGHTS, shipped
from omr_ray.config.dialogue import OpenAiLanguage, TransformersLanguage
from omr_ray.config.generation import AtelierPose, PoseEstimator
from omr_ray.config.rewards import PreferenceModel
from omr_ray.config.run import Actor, AtelierModel, DiffusersModel, Lora, Sampler
from omr_ray.types import UserError
from omr_ray.weights import reported

if TYPE_CHECKING:
    from omr_ray.diffusion import pose
    from omr_ray.diffusion.policy import Policy
    from omr_ray.diffusion.sampler import MultiRoundSampler
    from omr_ray.vlm.engine import LanguageModel, RewardEngine
    from omr_ray.vlm.reward_model import RewardModel


ADAPTER_CONFIG = "adapter_config.json"  # of a PEFT directory


def device_for(actors: Actor, pool: str) -> str:
    """The torch device of an actor: "cuda" where it reserves a share of a GPU, "cpu" where it does not.

    Raises UserError where a GPU is reserved and torch sees none: computing on the CPU instead would look like a hang.
    """
    if actors.num_gpus == 0:
        return "cpu"
    import torch

    if not torch.cuda.is_available():
        raise UserError(
            f"workers.{pool}.num_gpus is {actors.num_gpus:g}, but torch {torch.__version__} sees no GPU on this node; "
            f"install a CUDA build of torch there, or set workers.{pool}.num_gpus=0"
        )
    return "cuda"


def model_path(model: AtelierModel | DiffusersModel) -> str:
    """Directory or hub id of the diffusion model."""
    return model.path if isinstance(model, DiffusersModel) else str(WEIGHTS)


def controlnet_path(model: AtelierModel | DiffusersModel) -> str | None:
    """Directory or hub id of the ControlNet beside the model, None without one. Raises UserError where the embedded one is not shipped."""
    return str(shipped("controlnet")) if model.controlnet == "atelier" else model.controlnet


def policy_from(model: AtelierModel | DiffusersModel, lora: Lora | None, device: str = "cpu", threads: int | None = None) -> Policy:
    """The policy with the adapter that training starts from; two processes that call this with equal arguments hold equal weights.

    lora None: no adapter. Raises UserError for a start that does not fit.
    """
    from omr_ray.diffusion.adapters import load_adapter
    from omr_ray.diffusion.policy import Policy

    _set_threads(threads)
    options = model.model_dump(exclude={"kind", "path", "controlnet"}) | {"controlnet": controlnet_path(model)}
    sizes: dict[str, Any] = {"rank": None} if lora is None else lora.model_dump(exclude={"start"})
    policy = Policy.from_pretrained(model_path(model), device=device, **sizes, **options)
    if lora is not None and lora.start is not None:
        policy.load_lora(load_adapter(lora.start).weights_for(lora.rank, lora.alpha))
    return policy


def pose_estimator_from(estimator: PoseEstimator, device: str = "cpu") -> pose.PoseEstimator:
    """What finds keypoints. Raises UserError for weights that are missing or of another kind."""
    if isinstance(estimator, AtelierPose):
        from omr_ray.atelier.garment_pose import GarmentPose

        return GarmentPose.from_pretrained(shipped("keypoints"), device)
    from omr_ray.diffusion.onnx_pose import OnnxPose

    return OnnxPose(estimator.path)


def sampler_from(policy: Policy, sampler: Sampler) -> MultiRoundSampler:
    """Multi-round sampling with `policy`."""
    from omr_ray.diffusion.sampler import MultiRoundSampler

    return MultiRoundSampler(policy, **sampler.model_dump())


def reward_model_from(preference: PreferenceModel, device: str = "cpu", threads: int | None = None) -> RewardModel:
    """The frozen preference model: a whole one, or an adapter of `omr-ray reward train`, which names its base."""
    from omr_ray.vlm.reward_model import RewardModel

    _set_threads(threads)
    base, adapter = _base_and_adapter(preference.path)
    model = RewardModel.from_pretrained(base, dtype=preference.dtype, device=device)
    return model if adapter is None else model.with_adapter(adapter)


def reward_engine_from(
    preference: PreferenceModel, device: str = "cpu", threads: int | None = None, gpu_share: float = 1.0
) -> RewardEngine:
    """The same model in the engine that the config names. vLLM takes its part of `gpu_share` of the GPU at once."""
    if preference.engine == "transformers":
        return reward_model_from(preference, device, threads)
    from omr_ray.vlm.vllm_engine import VllmRewardModel

    _set_threads(threads)
    base, adapter = _base_and_adapter(preference.path)
    options = preference.model_dump(include={"dtype", "batch_size"})
    return VllmRewardModel.load(base, adapter=adapter, device=device, gpu_share=gpu_share, **options)


def language_model_from(language: TransformersLanguage | OpenAiLanguage, device: str = "cpu", threads: int | None = None) -> LanguageModel:
    """The language model of a dialogue, in this process or at the server that the config names."""
    if isinstance(language, OpenAiLanguage):
        from omr_ray.vlm.openai_engine import OpenAiEngine

        return OpenAiEngine(language)
    from omr_ray.vlm.transformers_engine import TransformersEngine

    _set_threads(threads)
    path = str(shipped("language_model")) if language.path == "atelier" else language.path
    return TransformersEngine.from_pretrained(path, dtype=language.dtype, device=device, batch_size=language.batch_size)


def _base_and_adapter(path: str) -> tuple[str, str | None]:
    """Where the whole model lies, and the PEFT adapter to merge into it, if `path` is one."""
    config = Path(path) / ADAPTER_CONFIG
    if not config.exists():
        return reward_model_path(path), None
    with reported(path):
        return reward_model_path(json.loads(config.read_text())["base_model_name_or_path"]), path


def reward_model_path(path: str) -> str:
    """Directory or hub id of a reward model, or of the network it is to be made from."""
    return str(WEIGHTS / "reward_model") if path == "atelier" else path


def _set_threads(threads: int | None) -> None:
    """None leaves torch as it is: a process that loads two models sets its threads once."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
