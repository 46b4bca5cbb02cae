"""A language model that answers every template from the embedded world's grammar, and what a dialogue needs beside it."""

import hashlib
import json

import numpy as np

from omr_ray.atelier import answers, world
from omr_ray.atelier.render import render
from omr_ray.atelier.world import ASPECTS, WORDINGS
from omr_ray.dialogue.engine import Commission, Picture
from omr_ray.vlm.templates import CLARIFY, DESCRIBE, IN_WORDS, ROUTE, SPLIT, TO_PROMPT


class Album:
    """A store of pictures that remembers which scene each one shows: the eyes of the scripted model."""

    def __init__(self):
        self.pictures, self.scenes = {}, {}

    def put(self, picture):
        address = hashlib.sha256(picture.image.tobytes()).hexdigest()
        self.pictures[address] = picture
        return address

    def get(self, address):
        return self.pictures[address]

    def scene(self, image):
        return self.scenes[hashlib.sha256(image.tobytes()).hexdigest()]


class ScenePainter:
    """Draws what the prompt names, but misses each aspect with a chance; the rest as in the parent, or at random."""

    def __init__(self, album, miss=0.0):
        self.album, self.miss, self.commissions = album, miss, []

    def __call__(self, commission):
        self.commissions.append(commission)
        rng = np.random.default_rng(commission.seed)
        scene = self.album.scene(commission.parent.image) if commission.parent else world.random_scene(rng)
        named = {aspect: value for aspect, value in world.parse(commission.prompt).items() if rng.random() >= self.miss}
        scene = scene.with_aspects(named)
        picture = Picture(image=render(scene, rng))
        self.album.scenes[hashlib.sha256(picture.image.tobytes()).hexdigest()] = scene
        return picture


class ScriptedLanguage:
    """As LanguageModel. `heard` holds all conversations; an entry of `says` for an instruction goes before the grammar."""

    def __init__(self, album, says=None):
        self.album, self.says, self.heard = album, says or {}, []
        self.scripts = {template.instruction: self.described(aspect) for aspect, template in DESCRIBE.items()}
        self.scripts |= {template.instruction: self.to_prompt for template in TO_PROMPT.values()}
        self.scripts |= {ROUTE.instruction: self.route, SPLIT.instruction: self.split}
        self.scripts |= {CLARIFY.instruction: self.clarify, IN_WORDS.instruction: self.in_words}

    def complete(self, conversations, *, max_tokens):
        self.heard += conversations
        return [self.answer(conversation) for conversation in conversations]

    def answer(self, conversation):
        system, user = conversation[:2]
        if system.text in self.says:
            return self.says[system.text]
        return json.dumps(self.scripts[system.text](json.loads(user.text or "{}"), user.images))

    def described(self, aspect):
        return lambda _, images: {"description": answers.described(aspect, self.album.scene(images[0]))}

    def to_prompt(self, fields, _):
        return {"prompt": answers.to_prompt(fields["history"], fields["latest"])}

    def route(self, fields, _):
        return {"reply": answers.route(fields["latest"])}

    def split(self, fields, _):
        return answers.split(fields["prompt"])

    def clarify(self, fields, _):
        question, suggestions = answers.clarify(fields["aspect"], fields["wanted"], fields["shown"])
        return {"question": question, "suggestions": suggestions}

    def in_words(self, fields, images):
        scene = self.album.scene(images[0]) if images else None
        return {"answer": answers.in_words(fields["history"], fields["latest"], scene)}


def embed(texts):
    """One place of the vector an aspect: whether a text names it, f32 [N 7]."""
    return np.array([[aspect in world.parse(text) for aspect in ASPECTS] for text in texts], np.float32)


def similarity(wanted, shown):
    """1 where both texts mean the same value, 0.2 where they do not."""
    value_of = {w: value for words in WORDINGS.values() for value, wordings in words.items() for w in (value, *wordings)}
    return np.array([1.0 if value_of[a] == value_of[b] else 0.2 for a, b in zip(wanted, shown, strict=True)])


def commission(prompt, **changes):
    values = {"seed": 0, "strength": 0.6, "parent": None, "pose_from": None, "context": np.zeros(1, np.float32), "adapter": None}
    return Commission(prompt=prompt, **values | changes)
