"""Tiny models for the tests here, made once; a policy's adapter is reset for every test."""

import numpy as np
import pytest
import torch

from omr_ray.diffusion.policy import Policy
from tests.tiny import make_tiny_sd, make_tiny_sdxl

KINDS = ("epsilon", "v_prediction", "sdxl")


@pytest.fixture(scope="session")
def directories(tmp_path_factory):
    """kind -> model directory; read only."""
    root = tmp_path_factory.mktemp("models")
    return {
        "epsilon": make_tiny_sd(root / "epsilon"),
        "v_prediction": make_tiny_sd(root / "v_prediction", "v_prediction"),
        "sdxl": make_tiny_sdxl(root / "sdxl"),
    }


@pytest.fixture(scope="session")
def _policies(directories):
    torch.set_num_threads(1)
    return {kind: Policy.from_pretrained(str(path)) for kind, path in directories.items()}


@pytest.fixture(params=KINDS)
def policy(request, _policies):
    """Each kind of model in turn, with an adapter that does something."""
    return moved(_policies[request.param])


@pytest.fixture
def sd(_policies):
    return moved(_policies["epsilon"])


def moved(policy: Policy, seed: int = 3) -> Policy:
    """The policy with random B matrices: a fresh adapter changes nothing."""
    rng = np.random.default_rng(seed)
    policy.load_lora({name: rng.normal(0, 0.3, value.shape).astype(np.float32) for name, value in policy.lora_weights().items()})
    return policy
