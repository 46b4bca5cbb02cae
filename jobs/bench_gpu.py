"""Rollouts and the learner on one GPU, with a policy of the shape of Stable Diffusion 2.1 and random weights.

    python jobs/bench_gpu.py configs/sd21.yaml --model build/sd21_random --peak-tflops 312

Rollouts alternate with diffusers' own pipeline at the same steps, guidance and batch. The weights are made in the
directory of --model where it does not exist yet; time and memory do not depend on what they are. The share of peak
counts the UNet's multiplications and additions alone. Prints one JSON object.
"""

import argparse
import json
import socket
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from omr_ray import controller
from omr_ray.atelier import WEIGHTS
from omr_ray.bench import randomly_scored
from omr_ray.config.run import RunConfig
from omr_ray.diffusion.policy import Policy
from omr_ray.loading import policy_from, sampler_from
from omr_ray.types import Dialogue, Round
from omr_ray.workers.learner_engine import join_group, leave_group
from omr_ray.workers.learner_step import LearnerRank

PROMPT = "a red striped dress with a belt in front of a garden"
LIMIT_S = 600.0


def parts_of_sd21() -> dict[str, Any]:
    """UNet, VAE and text encoder as published (arXiv:2112.10752; OpenCLIP ViT-H without its last layer), 768 x 768, random weights."""
    return {
        "unet": UNet2DConditionModel(
            sample_size=96, cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True
        ),
        "vae": AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
        ),
        "text_encoder": CLIPTextModel(
            CLIPTextConfig(hidden_size=1024, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16, hidden_act="gelu")
        ),
    }


def make_model(path: Path) -> None:
    """A directory in the diffusers format, half precision."""
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, prediction_type="v_prediction", steps_offset=1
    )
    torch.manual_seed(0)
    StableDiffusionPipeline(
        **{name: part.half() for name, part in parts_of_sd21().items()},
        tokenizer=CLIPTokenizer.from_pretrained(WEIGHTS / "tokenizer", model_max_length=77),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(path)


def seconds_of(call: Callable[[], Any], device: str) -> float:
    began = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def rollouts(config: RunConfig, device: str, pairs: int) -> dict[str, Any]:
    """Seconds of one batch of single rounds, ours and the pipeline's in turn; the first pair is not counted."""
    count, sampler = config.sampler.batch_size, config.sampler
    pipeline = StableDiffusionPipeline.from_pretrained(config.model.path, torch_dtype=getattr(torch, config.model.dtype)).to(device)
    pipeline.set_progress_bar_config(disable=True)
    ours = sampler_from(policy_from(config.model, config.lora, device), sampler)
    dialogues = [Dialogue(id=str(n), intent=PROMPT, rounds=(Round(index=1, utterance="", prompt=PROMPT),)) for n in range(count)]
    single = sampler_from(ours.policy, sampler.model_copy(update={"siblings": 1}))
    size = {"height": ours.latent_shape[1] * ours.policy.vae_factor, "width": ours.latent_shape[2] * ours.policy.vae_factor}
    plain = {"guidance_scale": sampler.guidance_scale, "num_inference_steps": sampler.steps, "eta": sampler.eta, **size}
    seconds: dict[str, list[float]] = {"ours": [], "pipeline": []}
    for pair in range(pairs + 1):
        seconds["ours"].append(seconds_of(lambda pair=pair: single.sample(dialogues, seed=pair, policy_version=0), device))
        seconds["pipeline"].append(seconds_of(lambda: pipeline([PROMPT] * count, output_type="np", **plain), device))
    rates = {name: count / statistics.median(found[1:]) for name, found in seconds.items()}
    ratios = [b / a for a, b in zip(seconds["ours"][1:], seconds["pipeline"][1:], strict=True)]
    forwards = sampler.steps * (2 if sampler.guidance_scale > 1 else 1)
    flops = forward_flops(ours.policy, ours.latent_shape, device)
    return {
        "batch": count,
        "images_per_s": rates,
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "tera_flops_per_s": rates["ours"] * forwards * flops / 1e12,
    }


@torch.no_grad()
def forward_flops(policy: Policy, shape: tuple[int, ...], device: str) -> float:
    """Floating point operations of one UNet forward of one sample."""
    text = policy.encode_text(policy.tokenize([PROMPT]))
    with FlopCounterMode(display=False) as counter:
        policy.predict(torch.zeros(1, *shape, device=device), torch.ones(1, dtype=torch.long, device=device), text)
    return float(counter.get_total_flops())


def learner(config: RunConfig, device: str, repeats: int) -> dict[str, Any]:
    """Trained steps a second of one rank; the first step is not counted. Rewards are random, which costs the same."""
    dialogues = [
        Dialogue(id=str(n), intent=PROMPT, rounds=(Round(index=1, utterance="", prompt=PROMPT),)) for n in range(config.dialogues_per_step)
    ]
    made = sampler_from(policy_from(config.model, config.lora, device), config.sampler).sample(dialogues, seed=0, policy_version=0)
    batch, pairs = controller.learner_inputs(config, randomly_scored(made, 0), 1)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    join_group(rank=0, world_size=1, local_rank=0, address="127.0.0.1", port=port, device=device, timeout_s=LIMIT_S)
    try:
        rank = LearnerRank(config, None, device)
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds = [seconds_of(lambda step=step: rank.step(batch, pairs, step), device) for step in range(1, repeats + 2)]
    finally:
        leave_group()
    trained = len(batch) * config.algorithm.passes
    return {"trained_steps": trained, "trained_steps_per_s": trained / statistics.median(seconds[1:])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--model", type=Path, required=True, help="directory of the model; made if it is not there")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peak-tflops", type=float, help="of the GPU, dense, at the model's precision")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    options = parser.parse_args()
    if not options.model.exists():
        make_model(options.model)
    alone = ["workers.rollout.num_gpus=0", "workers.reward.num_gpus=0", "workers.learner.num_gpus=0", "learner.ranks=1"]
    config = RunConfig.load(options.config, [*options.overrides, f"model.path={options.model}", *alone])
    found: dict[str, Any] = {}
    for name, measure in (("rollout", rollouts), ("learner", learner)):
        found[name] = measure(config, options.device, options.repeats)
        if options.device == "cuda":
            found[name]["peak_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
            torch.cuda.reset_peak_memory_stats()
        print(json.dumps({name: found[name]}), file=sys.stderr, flush=True)
    if options.peak_tflops:
        found["rollout"]["share_of_peak"] = found["rollout"]["tera_flops_per_s"] / options.peak_tflops
    name = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    print(json.dumps({"device": name, "config": config.name, "weights": "random", **found}))


if __name__ == "__main__":
    main()
