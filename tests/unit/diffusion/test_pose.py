import math

import numpy as np
import pytest

from omr_ray.config.generation import Pose
from omr_ray.diffusion.pose import heat_maps

OPTIONS = {"height": 4, "width": 3, "sigma": 1 / 3, "min_confidence": 0.3}  # sigma is one pixel: the shorter side has three


def test_a_heat_map_by_hand():
    (maps,) = heat_maps(np.array([[[1.0, 2.0, 0.9]]], np.float32), **OPTIONS)
    assert maps.shape == (1, 4, 3) and maps.dtype == np.float32
    e = [math.exp(-d / 2) for d in range(6)]  # by squared distance from column 1, row 2
    np.testing.assert_allclose(maps[0], [[e[5], e[4], e[5]], [e[2], e[1], e[2]], [e[1], e[0], e[1]], [e[2], e[1], e[2]]], rtol=1e-6)


def test_a_keypoint_between_pixels_and_one_outside():
    (maps,) = heat_maps(np.array([[[0.5, 0.0, 1.0], [-3.0, 0.0, 1.0]]], np.float32), **OPTIONS)
    assert maps[0, 0, 0] == maps[0, 0, 1] == pytest.approx(math.exp(-0.125))
    assert maps[1].max() == pytest.approx(math.exp(-4.5))


def test_what_is_not_believed_asks_for_nothing():
    keypoints = np.array([[[1, 1, 0.29], [np.nan, 1, 0.9], [1, 1, np.nan], [1, 1, 0.3]], [[1, np.inf, 1], [0, 0, 0], [1, 1, 1], [2, 3, 1]]])
    maps = heat_maps(keypoints.astype(np.float32), **OPTIONS)
    assert np.isfinite(maps).all()
    assert (maps.max((2, 3)) > 0).tolist() == [[False, False, False, True], [False, False, True, True]]
    assert maps.max() == 1.0


def test_the_kernel_grows_with_the_image():
    pose = Pose()
    small, large = (
        heat_maps(np.array([[[side / 2, side / 2, 1]]], np.float32), height=side, width=side, sigma=pose.sigma, min_confidence=0.3)
        for side in (64, 512)
    )
    assert small[0, 0, 32, 34] == pytest.approx(math.exp(-0.5)) and large[0, 0, 256, 272] == pytest.approx(math.exp(-0.5))


def test_keypoints_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"\[N K 3\], got \[2, 3\]"):
        heat_maps(np.zeros((2, 3), np.float32), **OPTIONS)
