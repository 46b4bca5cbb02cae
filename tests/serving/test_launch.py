"""What `omr-ray serve` finds out before Ray starts, and what it writes for a cluster."""

import socket
from pathlib import Path

import pytest
import ray
import yaml
from ray.serve.schema import ServeDeploySchema

from omr_ray import atelier, cli
from omr_ray.config.serve import ServeConfig
from omr_ray.serving import launch
from omr_ray.types import UserError
from tests.serve_process import served
from tests.tiny import make_tiny_sd

ROOT = Path(__file__).parents[2]
SHIPPED = str(ROOT / "configs/serve_atelier.yaml")


def test_weights_that_are_not_there_are_one_line_before_ray_starts(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(atelier, "WEIGHTS", tmp_path)
    monkeypatch.setattr(ray, "init", lambda *_, **__: pytest.fail("Ray was started"))
    assert cli.main(["serve", SHIPPED]) == 2
    assert capfd.readouterr().err == (
        f"omr-ray: {tmp_path}/clip: these embedded weights are not there; make them with `omr-ray atelier pretrain`, or name others\n"
    )
    (tmp_path / "clip").mkdir()
    with pytest.raises(UserError, match=f"{tmp_path}/language_model: these embedded weights are not there"):
        launch.check(ServeConfig())


def test_a_port_that_is_taken_is_one_line():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        language = {"type": "openai", "url": "http://127.0.0.1:1/v1", "model": "m"}
        config = ServeConfig.model_validate({"clip": "x", "dialogue": {"language": language}, "http": {"port": port}})
        with pytest.raises(UserError, match=rf"cannot listen on 127.0.0.1:{port} \(Address already in use\); set http.host and http.port"):
            launch.check(config)
    launch.check(config)


def test_what_is_written_for_a_cluster_names_everything_and_is_accepted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    launch.write_deployment(ServeConfig.load(SHIPPED), tmp_path / "serve.yaml")
    written = ServeDeploySchema.model_validate(yaml.safe_load((tmp_path / "serve.yaml").read_text()))
    (application,) = written.applications
    assert application.import_path == "omr_ray.serving.app:build"
    assert application.args["database"] == f"sqlite:///{tmp_path}/runs/serve/service.db"
    assert ServeConfig.model_validate(application.args) == ServeConfig.load(SHIPPED).with_absolute_paths()


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_model_that_cannot_be_loaded_ends_it_with_one_line(tmp_path):
    """Three processes of a deployment have to fail before Serve gives up."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    (tmp_path / "clip").mkdir()
    few = {"num_cpus": 0.25}
    config = {
        "model": {"kind": "diffusers", "path": str(make_tiny_sd(tmp_path / "sd")), "dtype": "float32"},
        "clip": "clip",
        "dialogue": {"language": {"type": "openai", "url": "http://127.0.0.1:1/v1", "model": "m"}},
        "http": {"port": port},
        "replicas": {"web": few, "rounds": few, "diffusion": few, "language": few},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    process = served(tmp_path)
    try:
        _, err = process.communicate(timeout=1200)
    finally:
        process.terminate()
    assert process.returncode == 2, err
    assert err == f"omr-ray: {tmp_path}/clip: no *.safetensors file in it; give a complete model directory\n"
