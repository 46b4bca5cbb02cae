"""A model of the right form that finds the brightest and the darkest pixel: what comes back can be told by hand."""

import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from omr_ray.config.generation import OnnxPose as OnnxPoseConfig
from omr_ray.diffusion.onnx_pose import OnnxPose
from omr_ray.loading import pose_estimator_from
from omr_ray.types import UserError


def make_model(path, outputs=("x", "y")):
    """Input [1 3 8 6]; scores of the brightest and the darkest pixel, two bins a pixel: x [1 2 12] and y [1 2 16]."""

    def integers(name, *values):
        return helper.make_tensor(name, TensorProto.INT64, [len(values)], values)

    nodes = [
        helper.make_node("ReduceSum", ["image", "channel"], ["bright"], keepdims=1),
        helper.make_node("Neg", ["bright"], ["dark"]),
        helper.make_node("Concat", ["bright", "dark"], ["both"], axis=1),
    ]
    for axis, name in ((2, "x"), (3, "y")):
        nodes += [
            helper.make_node("ReduceMax", ["both"], [f"{name}_line"], axes=[axis], keepdims=0),
            helper.make_node("Sigmoid", [f"{name}_line"], [f"{name}_score"]),
            helper.make_node("Unsqueeze", [f"{name}_score", "last"], [f"{name}_wide"]),
            helper.make_node("Expand", [f"{name}_wide", f"{name}_bins"], [f"{name}_twice"]),
            helper.make_node("Reshape", [f"{name}_twice", f"{name}_shape"], [name]),
        ]
    constants = [integers("channel", 1), integers("last", 3)]
    constants += [
        integers("x_bins", 1, 2, 6, 2),
        integers("x_shape", 1, 2, 12),
        integers("y_bins", 1, 2, 8, 2),
        integers("y_shape", 1, 2, 16),
    ]
    sizes = {"x": [1, 2, 12], "y": [1, 2, 16]}
    graph = helper.make_graph(
        nodes,
        "brightest",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 8, 6])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes[name]) for name in outputs],
        constants,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return str(path)


@pytest.fixture(scope="module")
def pose(tmp_path_factory):
    return pose_estimator_from(OnnxPoseConfig(path=make_model(tmp_path_factory.mktemp("onnx") / "model.onnx")))


def picture(height, width, bright, dark):
    """Gray, with a white and a black block of 2 x 2 pixels whose first ones are given as (row, column)."""
    image = np.full((height, width, 3), 124, np.uint8)
    for value, (row, column) in ((255, bright), (0, dark)):
        image[row : row + 2, column : column + 2] = value
    return image


def test_places_come_back_in_pixels_of_the_image(pose):
    assert isinstance(pose, OnnxPose) and (pose.height, pose.width) == (8, 6)
    images = np.stack([picture(16, 12, (6, 4), (10, 8)), picture(16, 12, (0, 0), (14, 10))])
    found = pose.estimate(images)
    assert found.shape == (2, 2, 3) and found.dtype == np.float32
    np.testing.assert_allclose(found[..., :2], [[[4.5, 6.5], [8.5, 10.5]], [[0.5, 0.5], [10.5, 14.5]]], atol=1e-5)
    assert (found[..., 2] > 0.9).all() and (found[..., 2] <= 1).all()


def test_an_image_of_other_proportions_is_shown_whole(pose):
    found = pose.estimate(picture(8, 12, (2, 8), (4, 2))[None])  # at half size, with two rows of margin above and below
    np.testing.assert_allclose(found[0, :, :2], [[8.5, 2.5], [2.5, 4.5]], atol=1e-5)


def refused(path):
    with pytest.raises(UserError) as caught:
        OnnxPose(str(path))
    message = str(caught.value)
    assert "\n" not in message and ";" in message
    return message


def test_files_that_cannot_be_used_are_one_line(tmp_path):
    assert "no such file" in refused(tmp_path / "absent.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    assert "cannot be loaded" in refused(tmp_path / "broken.onnx")
    assert "not a SimCC pose model" in refused(make_model(tmp_path / "other.onnx", outputs=("x",)))


def test_without_onnxruntime_the_remedy_is_named(tmp_path, monkeypatch):
    path = make_model(tmp_path / "model.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "pip install 'omr-ray[pose]'" in refused(path)
