"""The models of a service's config in one process: tiny ones, and many commissions at a time."""

import numpy as np
import pytest

from omr_ray import cli
from omr_ray.config.generation import AttendAndExcite
from omr_ray.config.serve import ServeConfig
from omr_ray.dialogue.engine import Picture
from omr_ray.diffusion.adapters import Adapter, export_adapter
from omr_ray.evaluation.interactive.in_process import LoadedModels
from omr_ray.loading import policy_from
from omr_ray.serving.painter import Painter
from omr_ray.vlm.engine import Message
from tests.scripted_language import commission
from tests.tiny import make_tiny_clip, make_tiny_sd
from tests.tiny_qwen import make_tiny_qwen


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    place = tmp_path_factory.mktemp("models")
    values = {
        "model": {"kind": "diffusers", "path": str(make_tiny_sd(place / "sd"))},
        "lora": {"rank": 2, "alpha": 2},
        "painting": {"steps": 4, "strength": 0.5},
        "clip": str(make_tiny_clip(place / "clip")),
        "dialogue": {"language": {"type": "transformers", "path": str(make_tiny_qwen(place / "qwen"))}},
        "adapters": str(place / "adapters"),
    }
    config = ServeConfig.model_validate(values)
    weights = policy_from(config.model, config.lora).lora_weights()
    rng = np.random.default_rng(0)
    moved = {name: value + rng.normal(0, 0.5, value.shape).astype(np.float32) for name, value in weights.items()}
    export_adapter(Adapter(weights=moved, rank=2, alpha=2.0), place / "adapters/shared/house", card="")
    return config


@pytest.fixture(scope="module")
def models(config):
    return LoadedModels(config)


def test_pictures_that_are_painted_together_are_those_that_are_painted_alone(config, models):
    alone = Painter(config, "cpu", 1)
    first = commission("a red dress", seed=1)
    picture = alone.paint(first, lambda *step: None)
    many = [
        first,
        commission("a coat", seed=2),
        commission("a coat", seed=2, adapter="shared/house"),
        commission("a blue dress", seed=3, parent=picture, pose_from=picture, strength=0.5),
        commission("a hat", seed=4, parent=picture, pose_from=picture, strength=1.0),
        commission("a hat", seed=4, parent=Picture(image=picture.image), strength=0.5),
        first,
    ]
    together = models.paint_all(many)
    assert np.array_equal(together[0].latents, together[6].latents)
    for one, made in zip(many, together, strict=True):
        wanted = alone.paint(one, lambda *step: None)
        np.testing.assert_allclose(made.latents, wanted.latents, atol=1e-4)
        assert np.abs(made.image.astype(int) - wanted.image).max() <= 1
    assert np.abs(together[1].latents - together[2].latents).max() > 0.01  # the adapter, and only there


def test_features_are_the_frozen_bases_whatever_adapter_is_worn(models):
    latents = models.paint_all([commission("a coat", seed=2)])[0].latents[None]
    before = models.features(latents)
    models.paint_all([commission("a coat", seed=2, adapter="shared/house")])
    assert before.shape[0] == 1 and np.array_equal(before, models.features(latents))


def test_attend_and_excite_at_a_threshold_that_all_exceed_and_at_one_that_none_does(models):
    prompts, seeds = ["a red dress", "a hat"], [1, 2]
    plain, unused = models.excited(prompts, seeds, None, None)
    settings = AttendAndExcite(threshold=1.0)
    never, none = models.excited(prompts, seeds, settings, None)
    moved, all_ = models.excited(prompts, seeds, settings.model_copy(update={"threshold": 1e-6}), None)
    assert (unused.tolist(), none.tolist(), all_.tolist()) == ([False] * 2, [False] * 2, [True, False])
    assert np.array_equal(plain, never) and not np.array_equal(plain[0], moved[0])
    assert np.array_equal(plain[1], moved[1])  # its one element has nothing to compete with
    scores = models.similarity(plain, prompts)
    assert scores.shape == (2,) and (np.abs(scores) <= 1.0001).all()


def test_language_and_texts(models):
    conversation = (Message(role="system", text="Say something."), Message(role="user", text="{}"))
    assert len(models.complete([conversation] * 2, max_tokens=4)) == 2
    assert np.linalg.norm(models.embed(["a", "b"]), axis=1) == pytest.approx([1, 1], abs=1e-5)


def test_a_language_model_that_cannot_talk_ends_the_command(config, tmp_path, capsys):
    """The embedded painter with a language model of random weights; nothing is kept of it."""
    language, clip = config.dialogue.language.path, config.clip
    spoken = f"dialogue.language={{type: transformers, path: {language}}}"
    arguments = [f"clip={clip}", spoken, "painting.steps=1", "--intents", "2", "--seeds", "0"]
    assert cli.main(["simulate", "configs/serve_atelier.yaml", "--out", str(tmp_path), *arguments, "--variants", "augmentation"]) == 2
    assert "every round of turn 1 failed, the first with: the language model" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.parquet"))
