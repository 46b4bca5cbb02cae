"""Who may import whom: each layer is imported in a process of its own, and what came along is looked at."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ALLOWED = {
    "types": set(),
    "config": {"types"},
    "tracking": {"types"},
    "weights": {"types"},
    "algorithm": {"types", "rewards"},  # what an update ascends is made of the rewards' own terms
    "rewards": {"types"},
    "diffusion": {"types", "weights", "algorithm", "rewards"},
    "vlm": {"types", "config", "weights", "algorithm", "rewards"},
    "dialogue": {"types", "config", "vlm"},
    "data": {"types", "config", "weights", "progress", "atelier"},
    "controller": {"types", "config", "tracking", "algorithm", "rewards"},
    "overlapped": {"types", "config", "tracking", "algorithm", "rewards", "controller"},
    "runs": {"types", "config", "weights"},
    "cli": {"types"},
}
HEAVY = {
    "types": {"torch", "ray", "pydantic"},
    "config": {"torch", "ray"},
    "cli": {"torch", "ray", "pydantic"},
    "controller": {"ray", "torch"},
    "overlapped": {"ray", "torch"},
    "runs": {"ray"},
    "algorithm": {"ray", "deepspeed", "diffusers"},
    "rewards": {"ray", "deepspeed", "diffusers"},
    "diffusion": {"ray", "deepspeed"},
    "vlm": {"ray", "deepspeed"},
    "dialogue": {"ray", "torch"},
    "data": {"torch"},
}
SCRIPT = """
import importlib, pkgutil, sys
module = importlib.import_module("omr_ray.{layer}")
for found in pkgutil.walk_packages(getattr(module, "__path__", []), module.__name__ + "."):
    importlib.import_module(found.name)
print(" ".join(sorted(sys.modules)))
"""


@pytest.mark.parametrize("layer", ALLOWED)
def test_a_layer_imports_only_what_it_may(layer):
    printed = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(layer=layer)], capture_output=True, text=True, check=True, cwd=ROOT, timeout=120
    )
    modules = printed.stdout.split()
    ours = {name.split(".")[1] for name in modules if name.startswith("omr_ray.")} - {layer}
    assert ours <= ALLOWED[layer]
    assert not HEAVY.get(layer, {"ray"}) & set(modules)


def test_ray_and_deepspeed_are_imported_only_where_they_belong():
    for file in (ROOT / "omr_ray").rglob("*.py"):
        place = file.relative_to(ROOT / "omr_ray").as_posix()
        text = file.read_text()
        rays = ("ray_session.py", "data/build.py", "sweep.py")
        if not place.startswith(("workers/", "training/", "serving/")) and place not in rays:
            assert "import ray" not in text and "from ray" not in text, place
        if not place.startswith("workers/learner"):
            assert "import deepspeed" not in text and "from deepspeed" not in text, place
