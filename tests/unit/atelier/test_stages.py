"""Parts of the pretraining stages that can be checked by hand."""

import shutil

import numpy as np
import pytest
import torch
from transformers import CLIPTokenizer

from omr_ray.atelier import WEIGHTS
from omr_ray.atelier.pretrain import pretrain, write_checksums
from omr_ray.atelier.stages.autoencoder import build_autoencoder, principal_axes, reconstruction_loss, to_principal_axes
from omr_ray.atelier.stages.clip import contrastive_loss, fitting
from omr_ray.atelier.stages.pairs import PairMaker, changed_scene
from omr_ray.atelier.stages.policy import build_unet, detail_timesteps, noisy_timesteps, with_fine_attention
from omr_ray.atelier.stages.renders import labels_of, make_renders
from omr_ray.atelier.stages.reward_losses import truth_by_aspect, truth_so_far
from omr_ray.atelier.stages.text_encoder import aspect_classes, random_prompt
from omr_ray.atelier.stages.tokenizers import make_clip_tokenizer
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


def test_principal_axes_by_hand():
    line = torch.tensor([3.0, 4.0]) / 5  # everything lies on one line through (1, 1)
    values = torch.tensor([1.0, 1.0]) + torch.tensor([-2.0, 2.0])[:, None] * line
    axes, mean, scale = principal_axes(values.T.reshape(1, 2, 1, 2), 1)
    assert torch.allclose(axes[:, 0].abs(), line) and torch.allclose(mean, torch.ones(2)) and scale == pytest.approx(2.0)


def test_all_principal_axes_together_change_no_image():
    torch.manual_seed(0)
    vae = build_autoencoder(8).eval()
    images = torch.rand(4, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        latents = vae.encode(images).latent_dist.mean
        turned = to_principal_axes(vae, latents, 8)
        posterior = turned.encode(images).latent_dist
        assert torch.allclose(turned.decode(posterior.mean).sample, vae.decode(latents).sample, atol=2e-3)
    values = posterior.mean.movedim(1, -1).flatten(0, -2)
    assert torch.allclose(values.mean(0), torch.zeros(8), atol=1e-4)
    covariance = values.T @ values / len(values)
    assert torch.allclose(covariance, torch.diag(covariance.diag()), atol=1e-3)
    assert covariance.diag().mean() == pytest.approx(1.0, abs=1e-3)
    assert torch.allclose(posterior.std, torch.full_like(posterior.std, 0.01), rtol=1e-4)


def test_the_first_principal_axes_are_kept():
    torch.manual_seed(0)
    vae = build_autoencoder(8).eval()
    images = torch.rand(4, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        latents = vae.encode(images).latent_dist.mean
        few = to_principal_axes(vae, latents, 3).encode(images).latent_dist.mean
        all_of_them = to_principal_axes(vae, latents, 8).encode(images).latent_dist.mean
    ratio = few / all_of_them[:, :3]  # the common scale differs, the axes do not
    assert torch.allclose(ratio, ratio.mean(), rtol=1e-2)


def test_a_changed_scene_contradicts_exactly_the_changed_aspects():
    rng = np.random.default_rng(0)
    for _ in range(100):
        scene = random_scene(rng)
        named = {"content": scene.content, "color": scene.color, "size": scene.size}
        other = changed_scene(scene, named, frozenset({"content", "size"}), rng)
        assert {aspect for aspect in named if getattr(other, aspect) != named[aspect]} == {"content", "size"}


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


def test_an_aspect_in_focus_is_the_single_change_of_more_pairs():
    rng = np.random.default_rng(2)
    scenes = [random_scene(rng) for _ in range(3000)]
    alone = [pair.changed == {"others"} for pair in (PairMaker(scenes, "others").draw(rng) for _ in range(400))]
    assert 0.36 < np.mean(alone) < 0.56  # four tenths, and a twelfth of the others: 0.45


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


def test_truth_of_each_aspect_is_told_at_its_last_word():
    prompt = "a red coat with a belt at night"
    assert truth_by_aspect(prompt, frozenset({"others"}), Words()) == [-1, 1, 1, -1, -1, 0, -1, 1]


def test_aspect_classes_by_hand():
    # content coat 1, style unnamed 4, background night 5, size unnamed 3, color red 0, perspective unnamed 3, others belt 1
    assert aspect_classes("a red coat with a belt at night") == [1, 4, 5, 3, 0, 3, 1]


def test_prompts_are_sometimes_empty_and_often_complete():
    rng = np.random.default_rng(0)
    scene = random_scene(rng)
    named = [len(parse(random_prompt(scene, rng))) for _ in range(1000)]
    assert 30 <= named.count(0) <= 70 and 400 <= named.count(7) <= 580


def test_timesteps_cover_the_schedule_and_lean_to_noise():
    steps = noisy_timesteps(1000, torch.Generator().manual_seed(0))
    assert steps.min() < 5 and steps.max() == 999 and 530 < steps.float().mean() < 580  # 1000 / 1.8


def test_timesteps_of_details_are_even_on_both_sides_of_650():
    steps = detail_timesteps(1000, torch.Generator().manual_seed(0))
    below = steps[steps < 650].float()
    assert len(below) in (799, 800, 801) and below.mean() == pytest.approx(325, abs=2)
    assert steps[steps >= 650].float().mean() == pytest.approx(825, abs=2) and 990 < steps.max() <= 999


def test_attention_at_the_finest_level_starts_by_adding_nothing():
    torch.manual_seed(0)
    coarse = build_unet(5, fine=False).eval()
    fine = with_fine_attention(coarse).eval()
    inputs = torch.randn(2, 5, 16, 16), torch.tensor([10, 900]), torch.randn(2, 32, 128)
    with torch.no_grad():
        assert torch.equal(coarse(*inputs).sample, fine(*inputs).sample)
    assert any("down_blocks.0.attentions" in name and ".to_q" in name for name, _ in fine.named_parameters())


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


def test_a_resumed_run_keeps_its_tokenizer(tmp_path):
    kept = shutil.copytree(WEIGHTS / "tokenizer", tmp_path / "tokenizer")
    before = {file.name: file.read_bytes() for file in kept.iterdir()}
    tokenizer = make_clip_tokenizer(kept, seed=1)
    assert {file.name: file.read_bytes() for file in kept.iterdir()} == before
    assert tokenizer("a red coat").input_ids == CLIPTokenizer.from_pretrained(WEIGHTS / "tokenizer")("a red coat").input_ids


def test_the_contrastive_loss_by_hand():
    similarity = torch.tensor([[2.0, 0.0], [1.0, 3.0]])
    own = torch.eye(2, dtype=torch.bool)
    rows, columns = (np.log1p(np.exp(-2)), np.log1p(np.exp(-2))), (np.log1p(np.exp(-1)), np.log1p(np.exp(-3)))
    assert contrastive_loss(similarity, own) == pytest.approx((sum(rows) / 2 + sum(columns) / 2) / 2)
    # Text 0 is true of image 1 as well: it is no negative there, in either direction.
    both = torch.tensor([[True, False], [True, True]])
    assert contrastive_loss(similarity, both) == pytest.approx((rows[0] / 2 + columns[1] / 2) / 2)


def test_which_texts_fit_which_scenes():
    scene = random_scene(np.random.default_rng(0)).with_aspects({"content": "coat", "color": "red"})
    labels = torch.tensor([labels_of(scene), labels_of(scene.with_aspects({"color": "blue"}))])
    found = fitting(["a red coat", "a coat", "a blue garment", "hello"], labels.repeat(2, 1))
    assert found[:2].tolist() == [[True, True, False, True], [False, True, True, True]]
