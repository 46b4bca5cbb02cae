"""The models of a system in one process, scripted: the embedded world's grammar speaks, its renderer paints, its words are compared."""

import numpy as np

from omr_ray.atelier import world
from omr_ray.dialogue.engine import Picture
from tests.scripted_language import Album, ScenePainter, ScriptedLanguage

VALUES = [(aspect, value) for aspect, values in world.VALUES.items() for value in values]


def embed(texts):
    """Unit vectors f32 [N D]: a text is the values that it names."""
    named = [world.parse(text) for text in texts]
    vectors = np.array([[found.get(aspect) == value for aspect, value in VALUES] for found in named], np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1)


class ScriptedModels:
    """`asked` has the size of each batch, by kind. What a picture's f(z) is here: its mean color."""

    def __init__(self, miss=0.0, says=None):
        self.album = Album()
        self.painter, self.language = ScenePainter(self.album, miss), ScriptedLanguage(self.album, says)
        self.painted = []
        self.asked = {"complete": [], "embed": [], "paint": []}

    def complete(self, conversations, *, max_tokens):
        self.asked["complete"].append(len(conversations))
        return self.language.complete(conversations, max_tokens=max_tokens)

    def embed(self, texts):
        self.asked["embed"].append(len(texts))
        return embed(texts)

    def paint_all(self, commissions):
        self.asked["paint"].append(len(commissions))
        images = [self.painter(commission).image for commission in commissions]
        self.painted += images
        return [Picture(image=image, latents=image.mean((0, 1), dtype=np.float32).reshape(3, 1, 1)) for image in images]

    def features(self, latents):
        return latents.reshape(len(latents), -1)

    def read(self, images):
        return [self.album.scene(image).aspects() for image in images]
