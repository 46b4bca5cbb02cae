import hashlib

import numpy as np
import pytest

from omr_ray.atelier.keypoints import KEYPOINTS, garment_points
from omr_ray.atelier.render import render, render_with_keypoints
from omr_ray.atelier.world import VALUES, Scene, random_scene

SCENE = Scene(content="skirt", style="plain", background="studio", size="large", color="red", perspective="front", others="none")


def draw(scene: Scene, seed: int = 3) -> np.ndarray:
    return render(scene, np.random.default_rng(seed))


def test_pixels_are_determined_by_scene_and_generator():
    image = draw(SCENE)
    assert image.shape == (64, 64, 3) and image.dtype == np.uint8
    assert np.array_equal(image, draw(SCENE))
    assert not np.array_equal(image, draw(SCENE, seed=4))


def test_the_garment_has_its_color():
    hue = draw(SCENE)[32, 32].astype(int)
    assert hue[0] > 150 and hue[1] < 90 and hue[2] < 90


@pytest.mark.parametrize("aspect", VALUES)
def test_each_value_of_each_aspect_looks_different(aspect):
    pictures = [draw(SCENE.with_aspects({aspect: value})).astype(int) for value in VALUES[aspect]]
    for i, first in enumerate(pictures):
        for second in pictures[i + 1 :]:
            assert (np.abs(first - second).max(axis=2) > 24).sum() >= 20


def test_an_edit_leaves_the_rest_of_the_picture_alone():
    before, after = draw(SCENE), draw(SCENE.with_aspects({"others": "pocket"}))
    changed = (before != after).any(axis=2)
    assert 20 < changed.sum() < 200  # a patch of about eight by eight pixels


def test_the_generator_advances_equally_for_every_scene():
    rng, states = np.random.default_rng(0), set()
    for _ in range(5):
        generator = np.random.default_rng(9)
        render(random_scene(rng), generator)
        states.add(generator.random())
    assert len(states) == 1


def test_pixels_are_what_the_shipped_models_were_trained_on():
    """Every byte, and the place the generator is left at, as they were before keypoints came with a picture."""
    rng, digest = np.random.default_rng(4), hashlib.sha256()
    for size in [64] * 40 + [128] * 2:
        digest.update(render(random_scene(rng), rng, size).tobytes())
    digest.update(rng.random(3).tobytes())
    assert digest.hexdigest() == "ac3d6ebdfd60e5320595fb2214394b86cf9389ef4b2c4b4bb2bec59a82015fca"


def test_keypoints_come_with_the_same_picture():
    image, keypoints = render_with_keypoints(SCENE, np.random.default_rng(3))
    assert np.array_equal(image, draw(SCENE)) and keypoints.shape == (9, 3) and keypoints.dtype == np.float32
    other = SCENE.with_aspects({"color": "black", "style": "checked", "background": "night", "others": "belt"})
    assert np.array_equal(keypoints, render_with_keypoints(other, np.random.default_rng(3))[1])


def test_a_keypoint_by_hand():
    """Half a garment is 20.5 pixels at medium size, and the jitter of place and scale is drawn first."""
    jitter = np.random.default_rng(3).uniform(-1, 1, 5)
    _, keypoints = render_with_keypoints(SCENE.with_aspects({"size": "medium", "perspective": "left"}), np.random.default_rng(3))
    x, y = 32 + 2.5 * jitter[0], 32.5 + 2.0 * jitter[1]
    scale = 20.5 * (1 + 0.04 * jitter[2])
    hem = KEYPOINTS.index("hem_right")  # of a skirt: (0.95, 0.62), squeezed to 0.72 and sheared by -0.26
    np.testing.assert_allclose(keypoints[hem], [x + scale * 0.72 * 0.95 - 0.5, y + scale * (0.62 - 0.26 * 0.95) - 0.5, 1], rtol=1e-5)


@pytest.mark.parametrize("content", VALUES["content"])
@pytest.mark.parametrize("perspective", VALUES["perspective"])
def test_keypoints_lie_on_the_edge_of_the_garment(content, perspective):
    scene = SCENE.with_aspects({"content": content, "perspective": perspective, "size": "medium"})
    red, black = (render_with_keypoints(scene.with_aspects({"color": color}), np.random.default_rng(6)) for color in ("red", "black"))
    garment = np.pad((np.abs(red[0].astype(int) - black[0]).max(2) > 24), 3)
    named = set(garment_points(content))
    for name, (x, y, seen) in zip(KEYPOINTS, red[1], strict=True):
        assert seen == (name in named)
        if seen:
            column, row = round(float(x)) + 3, round(float(y)) + 3
            around = garment[row - 2 : row + 3, column - 2 : column + 3]
            assert around.any() and not around.all(), name


def test_what_leaves_the_picture_is_not_seen():
    scene = SCENE.with_aspects({"content": "dress", "perspective": "right"})
    seen = np.stack([render_with_keypoints(scene, np.random.default_rng(seed))[1] for seed in range(40)])
    hem = seen[:, KEYPOINTS.index("hem_right")]
    assert (hem[:, 2] == 0).sum() > 0 and (hem[hem[:, 2] == 0] == 0).all()
    assert (seen[..., :2] <= 63.5).all() and (seen[..., :2] >= -0.5).all()
    left = seen[:, KEYPOINTS.index("waist_left"), 0]
    assert (left < seen[:, KEYPOINTS.index("waist_right"), 0]).all()
