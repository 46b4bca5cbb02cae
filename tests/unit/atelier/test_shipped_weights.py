"""What the package ships: loads through the ordinary loaders, and does what its record says."""

import json

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from omr_ray.atelier import WEIGHTS
from omr_ray.atelier.dialogues import make_dialogues
from omr_ray.atelier.oracle import Oracle
from omr_ray.atelier.render import render
from omr_ray.atelier.stages.clip import pairwise_accuracy
from omr_ray.atelier.stages.conversations import Conversations
from omr_ray.atelier.stages.language_figures import fresh_render, right_share
from omr_ray.atelier.stages.pairs import other_value
from omr_ray.atelier.stages.policy import sample_images
from omr_ray.atelier.world import ASPECTS, phrase, prompt_of, random_part, random_scene
from omr_ray.config.dialogue import TransformersLanguage
from omr_ray.loading import language_model_from
from omr_ray.vlm.clip import Clip
from omr_ray.vlm.reward_model import RewardModel
from omr_ray.weights import check_directory


@pytest.fixture(scope="module")
def oracle():
    return Oracle.from_pretrained(WEIGHTS / "oracle")


@pytest.fixture(scope="module")
def pipeline():
    return StableDiffusionPipeline.from_pretrained(WEIGHTS, torch_dtype=torch.float32)


def test_every_file_has_its_checksum_and_none_is_a_pickle():
    check_directory(WEIGHTS, parts=("unet", "vae", "text_encoder", "oracle", "reward_model", "language_model", "clip"))
    listed = json.loads((WEIGHTS / "checksums.json").read_text())
    files = {path.relative_to(WEIGHTS).as_posix() for path in WEIGHTS.rglob("*") if path.is_file()}
    assert files == set(listed) | {"checksums.json"}
    assert {path.rsplit(".", 1)[1] for path in files} == {"json", "jsonl", "txt", "safetensors"}
    assert sum((WEIGHTS / path).stat().st_size for path in files) < 40e6


def test_the_record_tells_how_each_part_was_made():
    record = json.loads((WEIGHTS / "pretrain.json").read_text())
    assert list(record) == ["autoencoder", "oracle", "policy", "reward_model", "language_model", "clip"]
    for name, entry in record.items():
        last = json.loads((WEIGHTS / "logs" / f"{name}.jsonl").read_text().splitlines()[-1])
        assert last["step"] == entry["steps"]


def test_the_oracle_reads_fresh_renders(oracle):
    accuracy = oracle.evaluate_on_renders(count=200, seed=77)
    assert list(accuracy) == list(ASPECTS)
    assert min(accuracy.values()) >= 0.97  # 200 images are a small sample; the record holds the figure for 2000


def test_the_oracle_scores_only_what_a_prompt_names(oracle):
    rng = np.random.default_rng(5)
    scene = random_scene(rng).with_aspects({"content": "dress", "color": "red", "background": "night"})
    image = render(scene, rng)[None].repeat(4, axis=0)
    scores = oracle.accuracy(image, ["a red dress", "a blue dress at night", "a blue coat", "hello"])
    assert scores[:3] == pytest.approx([1.0, 2 / 3, 0.0]) and np.isnan(scores[3])
    assert oracle.accuracy_by_aspect(image[:2], ["a red dress", "a blue dress"]) == {"content": 1.0, "color": 0.5}


def test_the_oracle_refuses_other_shapes(oracle):
    with pytest.raises(ValueError, match=r"uint8 \[N, 64, 64, 3\], got uint8 \[1, 32, 32, 3\]"):
        oracle.read(np.zeros((1, 32, 32, 3), np.uint8))
    with pytest.raises(ValueError, match="got 2 prompts for 1 images"):
        oracle.accuracy(np.zeros((1, 64, 64, 3), np.uint8), ["a coat", "a hat"])


def test_the_autoencoder_keeps_the_aspects(oracle, pipeline):
    rng = np.random.default_rng(8)
    scenes = [random_scene(rng) for _ in range(64)]
    pixels = torch.from_numpy(np.stack([render(scene, rng) for scene in scenes])).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        latents = pipeline.vae.encode(pixels).latent_dist.mean
        rebuilt = pipeline.vae.decode(latents).sample
    assert latents.shape == (64, 5, 16, 16) and pipeline.vae.config.scaling_factor == 1.0
    assert latents.mean().abs() < 0.1 and 0.9 < latents.std() < 1.1
    images = ((rebuilt + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    assert oracle.accuracy(images, [prompt_of(scene.aspects()) for scene in scenes]).mean() >= 0.9


def test_the_base_policy_follows_prompts_but_not_perfectly(oracle, pipeline):
    rng = np.random.default_rng(6)
    prompts = [prompt_of(random_part(random_scene(rng), rng)) for _ in range(64)]
    images = sample_images(pipeline, prompts, seed=1)
    assert images.shape == (64, 64, 64, 3) and images.dtype == np.uint8
    assert 0.75 <= oracle.accuracy(images, prompts).mean() <= 0.99  # 64 prompts are few; the record holds the figure for 512


def test_samples_are_determined_by_the_seed(pipeline):
    first, again, other = (sample_images(pipeline, ["a red coat"], seed=seed, steps=4) for seed in (0, 0, 1))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_the_tokenizer_holds_every_prompt(pipeline):
    rng = np.random.default_rng(3)
    texts = [phrase(random_scene(rng).aspects(), rng) for _ in range(300)]
    assert max(len(ids) for ids in pipeline.tokenizer(texts).input_ids) <= pipeline.tokenizer.model_max_length == 32
    assert pipeline.tokenizer.unk_token_id not in pipeline.tokenizer("Zürich 日本").input_ids[1:-1]


def test_the_last_step_keeps_a_positive_sigma(pipeline):
    scheduler = pipeline.scheduler
    assert scheduler.config.prediction_type == "sample" and not scheduler.config.set_alpha_to_one
    scheduler.set_timesteps(10)
    last = int(scheduler.timesteps[-1])
    assert scheduler._get_variance(last, last - 100) > 1e-5


def test_the_reward_model_prefers_the_image_that_fits():
    model = RewardModel.from_pretrained(WEIGHTS / "reward_model")
    rng, chosen, rejected, prompts = np.random.default_rng(9), [], [], []
    for _ in range(64):
        scene = random_scene(rng)
        named = random_part(scene, rng, low=3)
        aspect = str(rng.choice(list(named)))
        prompts.append(prompt_of(named))
        chosen.append(render(scene, rng))
        rejected.append(render(scene.with_aspects({aspect: other_value(aspect, named[aspect], rng)}), rng))
    right = model.score(np.stack(chosen), prompts) > model.score(np.stack(rejected), prompts)
    assert right.float().mean() >= 0.8


def test_the_language_model_sees_asks_and_writes_prompts():
    model = language_model_from(TransformersLanguage(batch_size=32))
    rng = np.random.default_rng(9)
    fresh = Conversations("heldout", fresh_render)
    described = [fresh.describe(aspect, rng) for aspect in ASPECTS for _ in range(12)]
    assert right_share(model, described) >= 0.9  # the record holds the figures for 128 of each
    assert right_share(model, [fresh.clarify(rng) for _ in range(24)]) >= 0.75
    assert right_share(model, [fresh.to_prompt(1 + n % 3, rng) for n in range(24)]) >= 0.65


def test_clip_finds_the_picture_that_a_text_is_about():
    clip = Clip.from_pretrained(WEIGHTS / "clip")
    assert pairwise_accuracy(clip, count=60, seed=3)["pairs_mean"] >= 0.85  # the record holds the figures for 200 of each
    one = make_dialogues("heldout", 1, rounds=1)[0].intent
    assert clip.embed_texts([one]).norm(dim=1) == pytest.approx(1.0, abs=1e-5)
