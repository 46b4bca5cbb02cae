"""Prompt augmentation by a language model behind a real server: what a prompt becomes is kept, and asked for once."""

import json

import numpy as np
import pytest

from omr_ray.config.comparison import Augmented
from omr_ray.config.dialogue import OpenAiLanguage
from omr_ray.data.store import Folder
from omr_ray.types import UserError
from omr_ray.workers.rewriting import RewritingPainter
from tests.http_server import answer, server


class Plain:
    """Notes what it is asked to paint."""

    sha256, weights = "0", "atelier, no adapter"

    def __init__(self):
        self.prompts = []

    @property
    def generate(self):
        def paint(prompts, *, seeds, from_latents=None, strength=1.0):
            self.prompts.append(list(prompts))
            return np.zeros((len(prompts), 2, 2, 3), np.uint8), np.asarray(seeds)

        return paint


def said(text):
    return answer(body=json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}))


def painter(url, folder, attempts=1):
    language = OpenAiLanguage(url=f"{url}/v1", model="m", concurrency=1, attempts=attempts)
    plain = Plain()
    return RewritingPainter(plain, Augmented(name="Long Words", language=language), Folder(str(folder))), plain


def test_prompts_are_rewritten_once_and_what_has_no_valid_answer_is_painted_as_it_is(tmp_path):
    better = '{"prompt":"a red dress with a belt"}'
    with server(said(better), said("hello"), said("hello again"), said('{"prompt":"a hat at night"}')) as (url, requests):
        rewriting, plain = painter(url, tmp_path)
        _, latents = rewriting.generate(["a red dress", "a coat", "a red dress"], seeds=[1, 2, 3])
        assert plain.prompts == [["a red dress with a belt", "a coat", "a red dress with a belt"]] and latents.tolist() == [1, 2, 3]
        assert len(requests) == 3  # each prompt, and the wrong answer once more
        again, plain = painter(url, tmp_path)  # as after a cut
        again.generate(["a coat", "a hat", "a red dress"], seeds=[1, 2, 3])
        assert plain.prompts == [["a coat", "a hat at night", "a red dress with a belt"]]
        assert [json.loads(request.body["messages"][1]["content"]) for request in requests[3:]] == [{"prompt": "a hat"}]
        assert "2 of 3 changed, 1 without a valid answer" in again.weights
    assert json.loads((tmp_path / "rewritten/Long_Words.json").read_text()) == {
        "a red dress": "a red dress with a belt",
        "a coat": None,
        "a hat": "a hat at night",
    }


def test_a_server_that_refuses_ends_the_comparison_and_leaves_nothing(tmp_path):
    with server(answer(status=400, body='{"error": {"message": "no such model"}}')) as (url, _):
        rewriting, plain = painter(url, tmp_path)
        with pytest.raises(UserError, match="model 'Long Words': .*400"):
            rewriting.generate(["a coat"], seeds=[1])
    assert plain.prompts == [] and not list(tmp_path.rglob("*.json"))
