import numpy as np
import pytest

from omr_ray.atelier.render import render
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
