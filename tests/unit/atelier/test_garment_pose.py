"""The embedded pose estimator and the stages behind poses, a few steps long."""

import json
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

from omr_ray.atelier import WEIGHTS, pretrain
from omr_ray.atelier.garment_pose import GarmentPose, KeypointNetwork, mean_cells
from omr_ray.atelier.keypoints import KEYPOINTS
from omr_ray.atelier.render import render
from omr_ray.atelier.stages import controlnet, keypoints
from omr_ray.atelier.stages.renders import make_posed_renders, make_renders
from omr_ray.atelier.world import random_scene
from omr_ray.config.generation import AtelierPose
from omr_ray.diffusion.policy import Policy
from omr_ray.loading import pose_estimator_from
from omr_ray.types import UserError
from omr_ray.weights import check_directory


def estimator(seed=0):
    torch.manual_seed(seed)
    return GarmentPose(KeypointNetwork(len(KEYPOINTS)), KEYPOINTS)


def test_a_place_is_the_mean_cell_of_its_map():
    """Everywhere alike means the middle; certain of one cell, that cell's centre; two cells alike, halfway."""
    maps = torch.full((1, 3, 32, 32), -1e4)
    maps[0, 0] = 0
    maps[0, 1, 5, 30] = 0  # row 5, column 30
    maps[0, 2, 5, 30] = maps[0, 2, 7, 20] = 0
    torch.testing.assert_close(mean_cells(maps), torch.tensor([[[31.5, 31.5], [60.5, 10.5], [50.5, 12.5]]]))


def test_it_is_saved_in_half_precision_and_read_back(tmp_path):
    made, rng = estimator(), np.random.default_rng(0)
    images = np.stack([render(random_scene(rng), rng) for _ in range(3)])
    made.save_pretrained(tmp_path / "keypoints")
    read = GarmentPose.from_pretrained(tmp_path / "keypoints")
    found = made.estimate(images)
    assert found.shape == (3, 9, 3) and found.dtype == np.float32 and ((found[..., 2] >= 0) & (found[..., 2] <= 1)).all()
    np.testing.assert_allclose(read.estimate(images), found, atol=0.05)
    assert read.names == KEYPOINTS and made.estimate(images[:0]).shape == (0, 9, 3)
    with pytest.raises(UserError, match=r"reads uint8 \[N, 64, 64, 3\], got uint8 \[1, 32, 32, 3\];"):
        made.estimate(np.zeros((1, 32, 32, 3), np.uint8))


def test_weights_that_are_not_shipped_are_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("omr_ray.atelier.WEIGHTS", tmp_path)
    with pytest.raises(UserError, match="keypoints: these embedded weights are not there; make them"):
        pose_estimator_from(AtelierPose())
    with pytest.raises(UserError, match="keypoints: no such model directory"):
        GarmentPose.from_pretrained(tmp_path / "keypoints")


def test_keypoint_losses_by_hand():
    places = torch.tensor([[[1.0, 2.0], [5.0, 5.0]], [[0.0, 0.0], [3.0, 3.0]]])
    truth = torch.tensor([[[2.0, 2.5, 1.0], [0.0, 0.0, 0.0]], [[0.0, 0.5, 1.0], [3.0, 4.0, 1.0]]])
    found = keypoints.keypoint_losses(places, torch.zeros(2, 2), truth)
    assert found["distance"] == pytest.approx((1.5 + 0.5 + 1.0) / 3) and found["doubt"] == pytest.approx(np.log(2))
    assert found["loss"] == pytest.approx(1.0 + 2 * np.log(2))
    nothing = keypoints.keypoint_losses(places, torch.zeros(2, 2), torch.zeros(2, 2, 3))
    assert nothing["distance"] == 0 and torch.isfinite(nothing["loss"])


def test_posed_renders_are_the_renders(tmp_path):
    images, points, scenes = make_posed_renders(4, 0, tmp_path)
    again, read_back, _ = make_posed_renders(4, 0, tmp_path)
    assert points.shape == (4, 9, 3) and torch.equal(images, again) and torch.equal(points, read_back)
    assert make_renders(4, 0, tmp_path)[1] == scenes


def test_a_new_controlnet_is_the_unets_way_down_and_changes_nothing():
    unet = UNet2DConditionModel.from_pretrained(WEIGHTS / "unet", torch_dtype=torch.float32).eval()
    made = controlnet.build_controlnet(unet).eval()
    text = torch.randn(2, 32, 128)
    with torch.no_grad():
        assert torch.equal(made.add_embedding(text), unet.add_embedding(text))
        inputs = torch.randn(2, 5, 16, 16), torch.tensor([10, 900]), text
        down, middle = made(*inputs, controlnet_cond=torch.rand(2, 9, 64, 64), return_dict=False)
        led = unet(*inputs, down_block_additional_residuals=down, mid_block_additional_residual=middle).sample
        assert torch.equal(led, unet(*inputs).sample)


def test_both_stages_run_and_what_they_leave_can_be_loaded(tmp_path, monkeypatch):
    out = shutil.copytree(WEIGHTS, tmp_path / "weights", ignore=shutil.ignore_patterns("keypoints", "controlnet", "reward_model"))
    record = json.loads((out / "pretrain.json").read_text())
    kept = {name: entry for name, entry in record.items() if name not in ("keypoints", "controlnet")} | {"clip": {}}  # as if it had run
    (out / "pretrain.json").write_text(json.dumps(kept))
    unet = (out / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    monkeypatch.setattr(keypoints, "RENDERS", 6)
    monkeypatch.setattr(controlnet, "RENDERS", 6)
    monkeypatch.setattr(keypoints, "evaluate_on_renders", partial(keypoints.evaluate_on_renders, count=6))
    monkeypatch.setattr(controlnet, "pose_figures", partial(controlnet.pose_figures, count=2))
    made = pretrain.pretrain(out, stages=["keypoints", "controlnet"], steps={"keypoints": 2, "controlnet": 2})
    assert made["keypoints"]["mean_error"] > 0 and 0 <= made["keypoints"]["seen_accuracy"] <= 1
    assert made["controlnet"]["pose_error"] > 0 and {"pose_error_without", "accuracy_mean"} < set(made["controlnet"])
    assert (out / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() == unet
    check_directory(out, parts=("keypoints", "controlnet"))
    sizes = [file.stat().st_size for part in ("keypoints", "controlnet") for file in (out / part).iterdir()]
    assert sum(sizes) < 8e6
    policy = Policy.from_pretrained(str(out), rank=4, controlnet=str(out / "controlnet"))
    assert policy.controlnet.dtype == torch.float32 and policy.controlnet.config.conditioning_channels == len(KEYPOINTS)
    assert policy.controlnet.config.addition_embed_type_num_heads == policy.network.config.addition_embed_type_num_heads == 4
    assert pretrain.pretrain(out, stages=["keypoints", "controlnet"]) == made  # done: nothing runs again
