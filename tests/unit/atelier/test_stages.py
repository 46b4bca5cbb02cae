"""Parts of the pretraining stages that can be checked by hand."""

import numpy as np
import pytest
import torch

from omr_ray.atelier.pretrain import pretrain, write_checksums
from omr_ray.atelier.stages.autoencoder import build_autoencoder, reconstruction_loss, standardise_latents
from omr_ray.atelier.stages.pairs import PairMaker, changed_scene
from omr_ray.atelier.stages.renders import labels_of, make_renders
from omr_ray.atelier.stages.reward_model import truth_so_far
from omr_ray.atelier.world import parse, random_scene
from omr_ray.types import UserError


def test_renders_are_kept_and_the_same_when_read_back(tmp_path):
    images, scenes = make_renders(4, 0, tmp_path)
    again, read_back = make_renders(4, 0, tmp_path)
    assert images.shape == (4, 3, 64, 64) and torch.equal(images, again)
    assert scenes == read_back
    assert labels_of(scenes[0].with_aspects({"content": "coat", "color": "black"}))[0::4] == [1, 7]


def test_reconstruction_loss_by_hand():
    target = torch.zeros(1, 1, 2, 2)
    assert reconstruction_loss(target + 0.5, target) == pytest.approx(0.5 + 0.25)
    edge = torch.tensor([[[[1.0, 0.0], [1.0, 0.0]]]])  # |e| 0.5, e^2 0.5, steps across 1, down 0
    assert reconstruction_loss(edge, target) == pytest.approx(0.5 + 0.5 + 0.5)


def test_standardised_latents_decode_to_the_same_images():
    torch.manual_seed(0)
    vae = build_autoencoder().eval()
    images = torch.rand(4, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        latents = vae.encode(images).latent_dist.mean
        before = vae.decode(latents).sample
        standardise_latents(vae, latents)
        posterior = vae.encode(images).latent_dist
        after = vae.decode(posterior.mean).sample
    assert torch.allclose(posterior.mean.mean((0, 2, 3)), torch.zeros(8), atol=1e-4)
    assert torch.allclose(posterior.mean.std((0, 2, 3)), torch.ones(8), atol=1e-4)
    assert torch.allclose(posterior.std, torch.full_like(posterior.std, 0.01), rtol=1e-4)
    assert torch.allclose(before, after, atol=1e-4)


def test_a_changed_scene_contradicts_exactly_the_changed_aspects():
    rng = np.random.default_rng(0)
    for _ in range(100):
        scene = random_scene(rng)
        named = {"content": scene.content, "color": scene.color, "size": scene.size}
        other, changed = changed_scene(scene, named, 2, rng)
        assert len(changed) == 2
        assert {aspect for aspect in named if getattr(other, aspect) != named[aspect]} == changed


def test_pairs_show_what_they_say():
    rng = np.random.default_rng(1)
    scenes = [random_scene(rng) for _ in range(3000)]
    maker = PairMaker(scenes)
    for _ in range(100):
        pair = maker.draw(rng)
        named = parse(pair.prompt)
        assert all(getattr(scenes[pair.chosen], aspect) == value for aspect, value in named.items())
        wrong = {aspect for aspect, value in named.items() if getattr(scenes[pair.rejected], aspect) != value}
        assert wrong == pair.changed != set()


class Words:
    """A tokenizer that splits at spaces."""

    def __call__(self, text, **_):
        ends = np.cumsum([len(word) + 1 for word in text.split()]) - 1
        return {"offset_mapping": [(0, int(end)) for end in ends]}


def test_truth_turns_false_at_the_first_lie():
    prompt = "a red coat with a belt at night"
    assert truth_so_far(prompt, frozenset(), Words()) == [1.0] * 8
    assert truth_so_far(prompt, frozenset({"others", "background"}), Words()) == [1, 1, 1, 1, 1, 0, 0, 0]
    assert truth_so_far(prompt, frozenset({"color"}), Words()) == [1, 0, 0, 0, 0, 0, 0, 0]


def test_pretraining_refuses_what_it_cannot_do(tmp_path):
    with pytest.raises(UserError, match="unknown stage 'unet'; the stages are autoencoder, oracle"):
        pretrain(tmp_path, stages=["unet"])
    with pytest.raises(UserError, match="'policy' needs 'autoencoder' first"):
        pretrain(tmp_path, stages=["policy"])


def test_checksums_leave_out_themselves_and_hidden_work(tmp_path):
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "a.safetensors").write_bytes(b"abc")
    (tmp_path / ".work").mkdir()
    (tmp_path / ".work" / "b.safetensors").write_bytes(b"abc")
    write_checksums(tmp_path)
    write_checksums(tmp_path)
    text = (tmp_path / "checksums.json").read_text()
    assert "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" in text  # sha256 of "abc"
    assert text.count(":") == 1
