"""Stage 8: a ControlNet that holds a garment to given keypoints (TDRI eq. 3; ControlNet, arXiv:2302.05543).

It starts as a copy of the frozen UNet's way down, whose outputs are added to the UNet's own through convolutions that
start at zero. It learns from the policy's renders with the policy's layout loss: where things are is settled at the noisy end.
"""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from omr_ray.algorithm.multi_scale import multi_scale_square
from omr_ray.atelier.garment_pose import GarmentPose
from omr_ray.atelier.keypoints import KEYPOINTS
from omr_ray.atelier.oracle import Oracle
from omr_ray.atelier.render import render_with_keypoints
from omr_ray.atelier.stages.autoencoder import load_autoencoder
from omr_ray.atelier.stages.loop import Budget, Trainer
from omr_ray.atelier.stages.policy import LARGEST_WEIGHT, RENDERS, SCALE_WEIGHTS, NoisedRenders, encode_renders, noisy_timesteps
from omr_ray.atelier.stages.renders import make_posed_renders
from omr_ray.atelier.world import prompt_of, random_part, random_scene
from omr_ray.config.generation import Pose
from omr_ray.diffusion.generation import generate_guided
from omr_ray.diffusion.policy import Policy
from omr_ray.diffusion.pose import heat_maps
from omr_ray.diffusion.sampler import MultiRoundSampler

BUDGET = Budget(steps=2000, batch=32, learning_rate=1e-3, ema_decay=0.99)
NO_POSE = 0.1  # share of rows without any keypoint: an empty pose is to ask for nothing
SIDE = 64
EMBEDDING = (16, 32, 64)  # channels on the way from the heat maps' 64 x 64 to the latent's 16 x 16


def build_controlnet(unet: Any) -> Any:
    """The untrained ControlNet of `unet`: with it the UNet still does what it does alone."""
    made: Any = ControlNetModel.from_unet(unet, conditioning_channels=len(KEYPOINTS), conditioning_embedding_out_channels=EMBEDDING)
    # `from_unet` leaves the heads that pool the text at their default number: the copied weights would mean something else.
    config = {name: value for name, value in made.config.items() if not name.startswith("_")}
    controlnet: Any = ControlNetModel.from_config(config | {"addition_embed_type_num_heads": unet.config.addition_embed_type_num_heads})
    controlnet.load_state_dict(made.state_dict())
    # Zero at both ends, it would take hundreds of steps before the pose is heard at all; zero at its outputs is enough to begin as nothing.
    controlnet.controlnet_cond_embedding.conv_out.reset_parameters()
    return controlnet


def pose_maps(keypoints: np.ndarray) -> Tensor:
    """Heat maps f32 [N K 64 64] of keypoints f32 [N K 3], as the default config makes them."""
    pose = Pose()
    return torch.from_numpy(heat_maps(keypoints, height=SIDE, width=SIDE, sigma=pose.sigma, min_confidence=pose.min_confidence))


def train_controlnet(out: Path, work: Path, *, budget: Budget, seed: int, device: torch.device) -> dict[str, float]:
    """Train on the frozen policy in `out`, save to `out/controlnet`; returns seconds and what the pose changes in samples."""
    torch.manual_seed(seed)
    images, keypoints, scenes = make_posed_renders(RENDERS, seed, work)
    latents = encode_renders(load_autoencoder(out, device), images, work / f"latents-{seed}.safetensors", device)
    unet: Any = UNet2DConditionModel.from_pretrained(out / "unet", torch_dtype=torch.float32)
    text_encoder: Any = CLIPTextModel.from_pretrained(out / "text_encoder", dtype=torch.float32)
    for frozen in (unet, text_encoder):
        frozen.to(device).eval().requires_grad_(False)
    renders = NoisedRenders(latents, scenes, CLIPTokenizer.from_pretrained(out / "tokenizer"), text_encoder, device)
    controlnet = build_controlnet(unet).to(device)
    trainer = Trainer("controlnet", {"controlnet": controlnet}, budget, work=work, log=out / "logs" / "controlnet.jsonl")

    def loss_at(numbers: np.random.Generator, noise: torch.Generator) -> dict[str, Tensor]:
        timesteps = noisy_timesteps(budget.batch, noise).to(device)
        drawn = renders.draw(numbers, noise, timesteps, LARGEST_WEIGHT)
        posed = torch.rand(budget.batch, 1, 1, 1, generator=noise) >= NO_POSE
        maps = (pose_maps(keypoints[drawn.rows].numpy()) * posed).to(device)
        down, middle = controlnet(drawn.noisy, timesteps, drawn.text, controlnet_cond=maps, return_dict=False)
        residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        error = unet(drawn.noisy, timesteps, drawn.text, **residuals).sample - drawn.clean
        return {"loss": multi_scale_square(drawn.weight.sqrt() * error, SCALE_WEIGHTS).mean(), "error": error.detach().square().mean()}

    seconds = trainer.run(loss_at, seed=seed)
    trainer.swap_ema()
    copy.deepcopy(controlnet).half().save_pretrained(out / "controlnet")
    return {"seconds": seconds} | pose_figures(out, device)


def pose_figures(out: Path, device: torch.device, *, count: int = 256, seed: int = 70_000) -> dict[str, float]:
    """Samples of fresh prompts with the pose of a fresh render that fits, and without: the mean distance in pixels from that pose
    to the one that is found in the sample, and the share of named aspects that the oracle sees."""
    policy = Policy.from_pretrained(str(out), rank=None, device=str(device), controlnet=str(out / "controlnet"))
    sampler = MultiRoundSampler(
        policy,
        steps=10,
        eta=1.0,
        guidance_scale=1.0,
        strength=(1.0,),
        siblings=1,
        window=(1, 1),
        train_steps_per_round=1,
        shared_window=True,
    )
    estimator, oracle = GarmentPose.from_pretrained(out / "keypoints", device), Oracle.from_pretrained(out / "oracle", device)
    rng = np.random.default_rng(seed)
    scenes = [random_scene(rng) for _ in range(count)]
    wanted = np.stack([render_with_keypoints(scene, rng)[1] for scene in scenes])
    prompts = [prompt_of(random_part(scene, rng)) for scene in scenes]
    figures = {}
    for name, maps in (("", pose_maps(wanted).numpy()), ("_without", None)):
        images = generate_guided(sampler, prompts, seeds=range(count), heat_maps=maps).images
        distance = np.linalg.norm(estimator.estimate(images)[..., :2] - wanted[..., :2], axis=2)
        figures[f"pose_error{name}"] = float(distance[wanted[..., 2] == 1].mean())
        figures[f"accuracy_mean{name}"] = float(np.nanmean(oracle.accuracy(images, prompts)))
    return figures
