"""A comparison with real actors and the embedded models: every kind of model, every protocol, and a driver that is killed."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from omr_ray.config.comparison import ComparisonConfig
from omr_ray.diffusion.adapters import Adapter, export_adapter
from omr_ray.evaluation.papers import PROTOCOLS
from omr_ray.evaluation.stored import Results
from omr_ray.loading import policy_from
from omr_ray.types import UserError
from omr_ray.workers.comparison import compare
from tests.command import finish, started
from tests.image_endpoint import KEY, drawn, image_endpoint

pytestmark = pytest.mark.timeout(3000)
OVERRIDES = [
    "dialogues.rounds=3",
    "evaluation={dialogues: 3, siblings: 1, max_rounds: 3}",
    "sampler.steps=2",
    "sampler.window=[1,2]",
    "sampler.train_steps_per_round=1",
    "workers.rollout={count: 1, num_cpus: 0.5, threads: 1}",
    "workers.reward={count: 1, num_cpus: 0.5, threads: 1}",
]
SMALL = {
    "name": "t",
    "run": "configs/atelier.yaml",
    "overrides": OVERRIDES,
    "chunk": 2,
    "selection": {"prompts": 1, "images": 64},
    "excite": {"thresholds": [0.7], "prompts": 2},
}
AUGMENTED = {"type": "augmentation", "name": "Augmented", "language": {"type": "transformers", "path": "atelier", "batch_size": 64}}


def config(*models: dict, **more) -> ComparisonConfig:
    return ComparisonConfig.model_validate({**SMALL, "models": [{"type": "base"}, *models], **more})


def collect(results: Results, folder: Path) -> None:
    """The base's images as somebody else's, all but one."""
    for made in results.all_images("Base", "dialogues"):
        file = folder / made.dialogue / f"{made.round}_{made.sibling}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(made.image)
    sorted(folder.glob("*/2_0.png"))[0].unlink()


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """Random weights that change the pictures."""
    run = config().base()
    rng, weights = np.random.default_rng(0), policy_from(run.model, run.lora).lora_weights()
    moved = {name: rng.normal(0, 0.05, value.shape).astype(np.float32) for name, value in weights.items()}
    directory = tmp_path_factory.mktemp("adapter")
    export_adapter(Adapter(weights=moved, rank=run.lora.rank, alpha=run.lora.alpha), directory, "card")
    return str(directory)


def test_every_kind_of_model_under_every_protocol(tmp_path, adapter, monkeypatch):
    out, folder = tmp_path / "out", tmp_path / "collected"
    compare(config(), str(out), protocol="pictures")
    results = Results(str(out))
    collect(results, folder)
    monkeypatch.setenv("TEST_IMAGES_KEY", KEY)
    with image_endpoint() as (url, requests):
        elsewhere = {"type": "endpoint", "name": "Elsewhere", "url": url, "model": "m", "api_key_env": "TEST_IMAGES_KEY"}
        models = [
            {"type": "adapter", "name": "Ann", "path": adapter, "published": None},
            AUGMENTED,
            elsewhere | {"size": "96x96", "edits": True},
            {"type": "folder", "name": "Collected", "path": str(folder)},
            {"type": "adapter", "name": "Gone", "path": str(tmp_path / "gone"), "published": None},
            {"type": "folder", "name": "Nowhere", "path": str(tmp_path / "nowhere")},
        ]
        parts = {"personal": {"general": "Gone", "per user": "Ann"}, "users": ["Ann", "Gone"], "language_sizes": {"7B": "Augmented"}}
        found = compare(config(*models, **parts), str(out), protocol="all")
    assert set(found["protocols"]) == set(PROTOCOLS)
    assert set(found["skipped_metrics"]) == {"blip", "lpips", "aesthetic"}
    assert set(found["left_out_models"]) == {"Gone", "Nowhere"}
    results = Results(str(out))
    check_folder(results)
    check_endpoint(results, requests)
    check_augmentation(results, out)
    assert {turn.kind for turn in results.turns("Base")} == {"T->T", "T->I", "I+T->I", "I+T->T"}
    assert len(results.turns("Ann")) == 36 and not results.turns("Augmented") + results.turns("Elsewhere") + results.turns("Collected")
    assert not np.allclose(results.cube("Ann", "dialogues", "features", "target"), results.cube("Base", "dialogues", "features", "target"))
    report = (out / "report.html").read_text()
    assert "Embedded CLIP, prompt to image" in report and "left out: " in report
    table = json.loads((out / "tdri-table5.json").read_text())
    assert {row["row"] for row in table["figures"] if row["table"] != "The paper's"} == {"per user"}
    assert [gap["what"] for gap in table["missing"]][0] == "General and per-user D3PO, general: Gone"
    assert "omr-table2" not in found["missing"]
    with pytest.raises(UserError, match="made with other settings .model Augmented."):
        compare(config({**AUGMENTED, "max_tokens": 8}), str(out), protocol="omr-fig3")


def check_folder(results: Results) -> None:
    """The base's own images have the base's own values; a missing image is a missing value."""
    for metric, measure in (("oracle", "prompt"), ("preference", "prompt"), ("clip", "target"), ("features", "target")):
        base, collected = (results.cube(name, "dialogues", metric, measure) for name in ("Base", "Collected"))
        assert np.isnan(collected).sum() == 1 and np.isnan(collected[0, 1, 0])
        known = np.isfinite(collected)
        np.testing.assert_allclose(collected[known], base[known], atol=1e-4)


def check_endpoint(results: Results, requests: list) -> None:
    """What draws every prompt rightly is right; a later round edits the picture of the one before."""
    assert results.cube("Elsewhere", "dialogues", "oracle", "prompt").mean() > 0.95
    edits = [fields for path, fields in requests if path == "/v1/images/edits"]
    sent = {drawn(fields["prompt"], 96) for path, fields in requests}
    assert edits and all(fields["image"] in sent for fields in edits)
    assert {fields["model"] for _, fields in requests} == {"m"}
    (image, *_) = results.all_images("Elsewhere", "dialogues")
    assert image.pixels.shape == (96, 96, 3)


def check_augmentation(results: Results, out: Path) -> None:
    """Every prompt was asked for once; some became longer."""
    rewritten = json.loads((out / "rewritten/Augmented.json").read_text())
    assert set(results.prompts("Augmented", "dialogues").values()) <= set(rewritten)
    assert any(new for new in rewritten.values())
    assert results.cube("Augmented", "dialogues", "oracle", "prompt").shape == (3, 3, 1)


def start(directory: Path, out: Path) -> subprocess.Popen:
    file = directory / "compare.yaml"
    file.write_text(yaml.safe_dump({**SMALL, "models": [{"type": "base"}, AUGMENTED]}, sort_keys=False))
    return started("evaluate", str(file), "--protocol", "all", "--json", "--out", str(out))


def stored(out: Path) -> dict:
    """Every stored part but for its times."""
    tables = {str(file.relative_to(out)): pq.read_table(file) for file in sorted(out.rglob("*.parquet"))}
    return {name: table.drop_columns([c for c in table.column_names if c == "seconds"]).to_pylist() for name, table in tables.items()}


@pytest.mark.slow
def test_a_comparison_whose_driver_is_killed_does_nothing_twice_and_ends_alike(tmp_path):
    process, out = start(tmp_path, tmp_path / "killed"), tmp_path / "killed"
    deadline = time.monotonic() + 1200
    while not list(out.glob("images/Augmented/dialogues/part-*.parquet")):
        assert time.monotonic() < deadline and process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    done = {file: (file.stat().st_mtime_ns, file.stat().st_ino) for file in out.rglob("*.parquet")}
    assert len(done) >= 2 and not (out / "report.html").exists()
    asked = json.loads((out / "rewritten/Augmented.json").read_text())
    finish(start(tmp_path, out))
    assert {file: (file.stat().st_mtime_ns, file.stat().st_ino) for file in done} == done
    assert json.loads((out / "rewritten/Augmented.json").read_text()).items() >= asked.items()
    finish(start(tmp_path, tmp_path / "whole"))
    killed, whole = stored(out), stored(tmp_path / "whole")
    assert killed.keys() == whole.keys()
    assert [name for name in whole if killed[name] != whole[name]] == []
    for name in PROTOCOLS:
        if name not in ("tdri-table3", "tdri-turns"):  # those hold seconds
            assert (out / f"{name}.csv").read_text() == (tmp_path / "whole" / f"{name}.csv").read_text(), name
