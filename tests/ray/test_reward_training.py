"""The reward model's training on real Ray Train workers with DeepSpeed: ranks, kills, and what comes out."""

import math
import threading

import numpy as np
import pytest
import torch

from omr_ray.config.data import DataConfig
from omr_ray.config.reward_model import RewardRun
from omr_ray.config.rewards import PreferenceModel
from omr_ray.data.rows import write_part
from omr_ray.data.store import StoredTable
from omr_ray.loading import reward_model_from
from omr_ray.training import reward_model as training
from omr_ray.training.loop import learning_rate
from omr_ray.types import UserError
from omr_ray.vlm.inputs import decoded
from omr_ray.weights import read_safetensors
from tests.tiny_qwen import make_tiny_qwen
from tests.train_workers import changed, kill_a_worker_after, lines


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    out = tmp_path_factory.mktemp("data")
    config = DataConfig(name="test", sources=[{"kind": "atelier", "pairs": 160}], filters={"min_side": 16})
    write_part(config, 0, 0, {"what": "pairs", "start": 0, "stop": 160}, str(out))
    return str(out)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return str(make_tiny_qwen(tmp_path_factory.mktemp("qwen") / "model"))


def run_config(data, tiny, /, **changes):
    settings = {
        "name": "test",
        "model": {"path": tiny},
        "lora": {"rank": 4, "alpha": 8},
        "data": {"path": data, "purpose": "*", "limit": 96},
        "trainer": {"ranks": 1, "batch": 16, "micro_batch": 8, "learning_rate": 1e-2, "warmup_share": 0.2},
        "worker": {"num_cpus": 1},
        "checkpoint": {"every": 2, "keep": 2},
        "tracking": {"tensorboard": False},
        "timeout_s": 120,
    }
    return RewardRun.model_validate(changed(settings, changes))


def test_the_schedule_by_hand(data, tiny):
    config = run_config(data, tiny)
    assert training.total_updates(config, 1000) == 6 and training.usable(config, 50) == 50
    rates = [learning_rate(config, update, 6) for update in range(1, 7)]  # one update of warm-up, then a cosine of five
    assert rates == pytest.approx([1e-2, *(1e-2 * 0.5 * (1 + math.cos(math.pi * step / 5)) for step in range(5))])


def test_two_ranks_learn_as_one_and_the_adapter_is_read_back(data, tiny, tmp_path):
    results = {}
    for ranks in (1, 2):
        directory = tmp_path / str(ranks)
        config = run_config(data, tiny, data={"limit": 16}, trainer={"ranks": ranks, "epochs": 6})
        results[ranks] = training.train(config, directory, resume=False)
        assert results[ranks]["updates"] == 6 and results[ranks]["pairs"] == 16
    one, two = lines(tmp_path / "1"), lines(tmp_path / "2")
    assert [line["step"] for line in one] == [1, 2, 3, 4, 5, 6]
    for first, second in zip(one, two, strict=True):
        assert first["loss"] == pytest.approx(second["loss"], abs=1e-5) and first["lr"] == second["lr"]
    assert one[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)  # the fresh adapter changes nothing: no margin over the reference
    assert one[-1]["loss"] < one[0]["loss"] - 1e-3
    with pytest.raises(UserError, match="holds a run already"):
        training.train(run_config(data, tiny), tmp_path / "1", resume=False)

    model = reward_model_from(PreferenceModel(path=str(tmp_path / "1/model")))
    base = reward_model_from(PreferenceModel(path=tiny))
    pairs = StoredTable(data, "preferences", "train").take(range(8))
    images, prompts = [decoded(pair["chosen"]["bytes"]) for pair in pairs], [pair["prompt"] for pair in pairs]
    with torch.no_grad():
        difference = model.score_tensor(images, prompts) - base.score_tensor(images, prompts)
        one_by_one = torch.cat([model.score_tensor(image[None], [prompt]) for image, prompt in zip(images, prompts, strict=True)])
        torch.testing.assert_close(model.score_tensor(images, prompts), one_by_one, atol=1e-5, rtol=0)
    assert difference.abs().max() > 1e-3


def test_a_killed_worker_costs_the_updates_since_the_last_checkpoint(data, tiny, tmp_path):
    config = run_config(data, tiny, trainer={"ranks": 2, "batch": 4, "micro_batch": 2})
    training.train(config, tmp_path / "whole", resume=False)
    killer = threading.Thread(target=kill_a_worker_after, args=(tmp_path / "killed", 6))
    killer.start()
    training.train(config, tmp_path / "killed", resume=False)
    killer.join()
    assert (tmp_path / "killed/metrics.jsonl").read_text() == (tmp_path / "whole/metrics.jsonl").read_text()
    whole, killed = (read_safetensors(tmp_path / name / "model/adapter_model.safetensors") for name in ("whole", "killed"))
    for name, value in whole.items():
        np.testing.assert_array_equal(value, killed[name])


def test_all_weights_from_nothing_and_a_linear_head(data, tiny, tmp_path):
    config = run_config(data, tiny, model={"scratch": True, "head": "linear"}, lora=None, reference=False, trainer={"zero_stage": 2})
    training.train(config, tmp_path, resume=False)
    model = reward_model_from(PreferenceModel(path=str(tmp_path / "model")))
    assert model.head is not None and not torch.equal(model.head.weight, torch.full_like(model.head.weight, 1 / 32))


def test_a_pair_without_an_image_is_said_in_one_line():
    with pytest.raises(UserError, match="pair 'p7' has no rejected image; build the data with filters.missing_images=reject"):
        training._image({"id": "p7", "rejected": None}, "rejected")


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"lora": None}, "reference needs lora"),
        ({"lora": None, "reference": False, "model": {"quantization": "nf4"}}, "quantization needs lora"),
        ({"model": {"scratch": True}}, "scratch trains all weights"),
        ({"trainer": {"ranks": 3}}, r"batch \(16\) must divide by trainer.ranks \(3\)"),
    ],
)
def test_what_cannot_be_is_refused(data, tiny, changes, said):
    with pytest.raises(ValueError, match=said):
        run_config(data, tiny, **changes)
