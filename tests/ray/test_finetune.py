"""Supervised diffusion training on real Ray Train workers with DeepSpeed: buckets, ranks, kills, and what comes out."""

import io
import os
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from omr_ray.config.finetune import FinetuneRun
from omr_ray.config.run import DiffusersModel, Lora
from omr_ray.data.store import Folder, Shard
from omr_ray.loading import policy_from
from omr_ray.training import diffusion as training
from omr_ray.types import UserError
from omr_ray.weights import read_safetensors
from tests.tiny import make_tiny_sd, make_tiny_sdxl
from tests.train_workers import changed, kill_a_worker_after, lines

SIZES = [(16, 16), (12, 22), (30, 15)]  # height, width of the images; buckets 16 x 16, 12 x 20, 20 x 12


def picture(value, height, width):
    stream = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), value, np.uint8)).save(stream, "PNG")
    return {"bytes": stream.getvalue(), "width": width, "height": height, "sharpness": 0.0}


def write_dialogues(folder, split, count):
    """Dialogues of three rounds; every fifth is text only, every seventh lacks the image in the middle."""
    with Shard(folder, f"dialogues/{split}/diffusion/0.parquet", "dialogues") as shard:
        for index in range(count):
            height, width = SIZES[index % 3]
            rounds = []
            for turn in range(3):
                absent = index % 5 == 4 or (index % 7 == 6 and turn == 1)
                target = None if absent else picture((index * 40 + turn * 20) % 256, height, width)
                rounds.append({"utterance": "u", "prompt": f"p{index} {turn}", "reflection": None, "target": target})
            origin = {"id": f"{split}{index}", "source": "test", "group": str(index), "split": split, "purpose": "diffusion"}
            shard.add({**origin, "license": "unknown", "intent": "i", "rounds": rounds}, 1)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = Folder(str(tmp_path_factory.mktemp("data")))
    write_dialogues(folder, "train", 21)
    write_dialogues(folder, "test", 6)
    return os.path.relpath(folder.path)  # a relative path means the same on a worker


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {"sd": str(make_tiny_sd(root / "sd", "v_prediction")), "sdxl": str(make_tiny_sdxl(root / "sdxl"))}


def run_config(data, model, /, **changes):
    settings = {
        "name": "test",
        "model": {"kind": "diffusers", "path": model, "dtype": "float32", "channels_last": False},
        "data": {"path": data},
        "buckets": {"multiple": 4, "max_ratio": 2.0},
        "multi_round": {"weight": 0.5, "steps": 10},
        "trainer": {"ranks": 1, "batch": 4, "micro_batch": 2, "epochs": 2, "learning_rate": 1e-2, "ema_decay": 0.5},
        "worker": {"num_cpus": 1},
        "checkpoint": {"every": 2, "keep": 2},
        "tracking": {"tensorboard": False},
        "timeout_s": 120,
    }
    return FinetuneRun.model_validate(changed(settings, changes))


def test_two_ranks_learn_as_one_and_the_adapter_is_a_start(data, models, tmp_path):
    for ranks in (1, 2):
        changes = {"trainer": {"ranks": ranks}, "data": {"cache": str(tmp_path / "cache")}, "reference": {"weight": 2.0}}
        training.train(run_config(data, models["sd"], **changes), tmp_path / str(ranks), resume=False)
    one, two = lines(tmp_path / "1"), lines(tmp_path / "2")
    # 17 of 21 dialogues have images: by bucket 6, 6 and 5, so two batches of four each, twice
    assert [line["step"] for line in one] == list(range(1, 13)) and {line["rows"] for line in one} == {4.0}
    for first, second in zip(one, two, strict=True):
        for name in ("loss", "denoising_loss", "multi_round_loss", "reference_loss", "grad_norm"):
            assert first[name] == pytest.approx(second[name], rel=2e-5, abs=1e-9), name
        parts = first["denoising_loss"] + 0.5 * first["multi_round_loss"] + 2.0 * first["reference_loss"]
        assert first["loss"] == pytest.approx(parts, rel=0.2)
    assert one[0]["reference_loss"] == 0 < one[1]["reference_loss"]  # an untrained adapter is the frozen model
    judged = [line["held_out/loss"] for line in one if "held_out/loss" in line]
    assert len(judged) == 6 and judged[-1] < judged[0]

    adapter = read_safetensors(tmp_path / "1/adapter/adapter_model.safetensors")
    model = DiffusersModel(path=models["sd"], dtype="float32")
    started = policy_from(model, Lora(start=str(tmp_path / "1/adapter"))).lora_weights()
    assert any(np.abs(value).max() > 0 for name, value in started.items() if ".lora_B." in name)
    for name, value in started.items():
        np.testing.assert_array_equal(value, adapter[f"base_model.model.{name}"])
    with pytest.raises(UserError, match="set lora.rank to 4"):
        policy_from(model, Lora(rank=8, start=str(tmp_path / "1/adapter")))


def test_another_model_needs_another_cache(data, models, tmp_path):
    training.train(run_config(data, models["sd"], data={"cache": str(tmp_path / "cache")}), tmp_path / "1", resume=False)
    other = run_config(data, models["sdxl"], data={"cache": str(tmp_path / "cache")}, max_failures=0)
    with pytest.raises(UserError, match="was encoded with .*give another data.cache"):
        training.train(other, tmp_path / "2", resume=False)


def test_a_killed_worker_costs_the_updates_since_the_last_checkpoint(data, models, tmp_path):
    config = run_config(data, models["sd"], trainer={"ranks": 2, "epochs": 6}, data={"cache": str(tmp_path / "cache")})
    training.train(config, tmp_path / "whole", resume=False)
    killer = threading.Thread(target=kill_a_worker_after, args=(tmp_path / "killed", 6))
    killer.start()
    training.train(config, tmp_path / "killed", resume=False)
    killer.join()
    assert (tmp_path / "killed/metrics.jsonl").read_text() == (tmp_path / "whole/metrics.jsonl").read_text()
    whole, killed = ((tmp_path / name / "adapter/adapter_model.safetensors").read_bytes() for name in ("whole", "killed"))
    assert whole == killed


def test_the_whole_unet_of_sdxl_becomes_a_pipeline(data, models, tmp_path):
    config = run_config(data, models["sdxl"], lora=None, trainer={"zero_stage": 2, "epochs": 4, "ema_decay": 0.0, "learning_rate": 1e-3})
    told = training.train(config, tmp_path, resume=False)
    judged = [line["held_out/loss"] for line in lines(tmp_path) if "held_out/loss" in line]
    assert judged[-1] < judged[0]
    before, after = (policy_from(DiffusersModel(path=path, dtype="float32"), None) for path in (models["sdxl"], told["model"]))
    assert not before.lora_parameters()
    changed = [name for name, value in before.network.state_dict().items() if not torch.equal(value, after.network.state_dict()[name])]
    assert "conv_in.weight" in changed and len(changed) > 0.9 * len(before.network.state_dict())
    for name, value in before.vae.state_dict().items():
        assert torch.equal(value, after.vae.state_dict()[name])


def test_what_the_sdxl_is_told_of_an_image_follows_it_into_the_cache(data, models):
    policy = policy_from(DiffusersModel(path=models["sdxl"], dtype="float32"), None)
    rounds = [{"prompt": f"p{turn}", "target": picture(9, 30, 15)} for turn in range(2)]
    row = {"id": "a", "rounds": [*rounds, {"prompt": "text", "target": None}]}
    ((size, found),) = training.encode(policy, iter([row, {"id": "b", "rounds": [rounds[0] | {"target": None}]}]), [(16, 16), (20, 12)])
    assert size == (20, 12) and found.consecutive == (True,) and len(found.rounds) == 2
    assert found.rounds[0].conditioning == (30, 15, 2, 0, 20, 12)  # scaled to 24 x 12, two rows off the top
    assert found.rounds[0].latent.shape == (4, 10, 6)
    text = policy.encode_text(policy.tokenize(["p0"]))
    np.testing.assert_allclose(found.rounds[0].hidden, text.hidden[0].numpy(), atol=1e-6)
    np.testing.assert_allclose(found.rounds[0].pooled, text.added["text_embeds"][0].numpy(), atol=1e-6)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"buckets": {"multiple": 5}}, "must divide by 2, the autoencoder's factor, got 5"),
        ({"buckets": {"multiple": 12}}, "lower buckets.multiple"),
        ({"data": {"purpose": "reward"}}, "no such file; make some"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(data, models, tmp_path, changes, said):
    with pytest.raises(UserError, match=said):
        training.train(run_config(data, models["sd"], max_failures=0, **changes), tmp_path, resume=False)


def test_something_must_be_learned(data, models):
    with pytest.raises(ValueError, match="nothing would be learned"):
        run_config(data, models["sd"], text_image={"weight": 0}, multi_round={"weight": 0})
