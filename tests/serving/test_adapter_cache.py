"""Adapters by content: what a round was asked for with is what it is painted with, or it says why not."""

import hashlib

import numpy as np
import pytest

from omr_ray.config.serve import ServeConfig
from omr_ray.diffusion.adapters import Adapter, export_adapter
from omr_ray.serving.adapters import AdapterCache, listed, pinned
from omr_ray.types import UserError

MODULE = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
ID = "users/ann/warm"


def put(root, value, name=ID, alpha=2.0):
    weights = {f"{MODULE}.lora_A.weight": np.full((2, 3), value, np.float32), f"{MODULE}.lora_B.weight": np.ones((3, 2), np.float32)}
    export_adapter(Adapter(weights=weights, rank=2, alpha=alpha), root / name, "a card")
    return {view.id: view.sha256 for view in listed(str(root), "ann")}.get(name)


def value_in(cache, adapter):
    with cache.held(adapter) as held:
        return held.weights[f"{MODULE}.lora_A.weight"][0, 0]


@pytest.fixture
def cache(tmp_path):
    return AdapterCache(str(tmp_path), rank=2, alpha=2.0, kept=2)


def test_the_hash_is_that_of_both_files(tmp_path):
    told, there = put(tmp_path, 1.0), tmp_path / ID
    content = (there / "adapter_config.json").read_bytes() + (there / "adapter_model.safetensors").read_bytes()
    assert told == hashlib.sha256(content).hexdigest()
    # lora_alpha scales the weights: the same file of weights with another one is another adapter.
    assert put(tmp_path, 1.0, alpha=4.0) != told


def test_one_that_changes_under_its_name_is_read_again(tmp_path, cache):
    first = put(tmp_path, 1.0)
    assert value_in(cache, ID) == value_in(cache, pinned(ID, first)) == 1
    second = put(tmp_path, 2.0)
    assert value_in(cache, ID) == value_in(cache, pinned(ID, second)) == 2
    assert value_in(cache, pinned(ID, first)) == 1  # it is in memory still


def test_a_round_does_not_get_what_took_the_name_later(tmp_path, cache):
    asked = put(tmp_path, 1.0)
    put(tmp_path, 2.0)
    with pytest.raises(UserError, match=f"adapter {ID} has changed since this round was asked for; ask again to use the new one"):
        value_in(cache, pinned(ID, asked))
    put(tmp_path, 1.0, name=f"versions/{asked}")  # where it is kept by its hash, it is found
    assert value_in(cache, pinned(ID, asked)) == 1


@pytest.mark.parametrize("id", [ID, "users/ann/../bob", "versions/x", "/etc"])
def test_what_is_not_there_or_no_id_is_refused(tmp_path, cache, id):
    with pytest.raises(UserError, match="there is no adapter"):
        value_in(cache, id)


def test_those_in_use_stay_and_the_oldest_others_go(tmp_path, cache):
    names = [f"shared/{name}" for name in "abc"]
    hashes = [put(tmp_path, value, name) for value, name in enumerate(names)]
    with cache.held(pinned(names[0], hashes[0])):
        for name, sha256 in zip(names[1:], hashes[1:], strict=True):
            value_in(cache, pinned(name, sha256))
        assert set(cache._loaded) == {hashes[0], hashes[2]}
    for name in names:
        put(tmp_path, 9.0, name)
    assert value_in(cache, pinned(names[0], hashes[0])) == 0
    with pytest.raises(UserError, match="has changed"):
        value_in(cache, pinned(names[1], hashes[1]))


def test_paths_of_a_config_are_those_of_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sd").mkdir()
    values = {"model": {"kind": "diffusers", "path": "sd"}, "clip": "openai/clip-vit-base-patch32", "images": "s3://bucket/images"}
    config = ServeConfig.model_validate(values).with_absolute_paths()
    assert config.model.path == str(tmp_path / "sd")
    assert (config.clip, config.images) == ("openai/clip-vit-base-patch32", "s3://bucket/images")
    assert config.database == f"sqlite:///{tmp_path}/runs/serve/service.db"
    assert config.adapters == f"{tmp_path}/runs/serve/adapters"
    assert config.with_absolute_paths() == config
    shared = ServeConfig(database="postgresql+psycopg://omr@db/omr").with_absolute_paths()
    assert shared.database == "postgresql+psycopg://omr@db/omr"
