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

ROOT = Path(__file__).parents[2]
SHIPPED = str(ROOT / "configs/serve_atelier.yaml")


def test_weights_that_are_not_there_are_one_line_before_ray_starts(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(atelier, "WEIGHTS", tmp_path)
    assert cli.main(["serve", SHIPPED]) == 2
    assert capfd.readouterr().err == (
        f"omr-ray: {tmp_path}/clip: these embedded weights are not there; make them with `omr-ray atelier pretrain`, or name others\n"
    )
    assert not ray.is_initialized()
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


def test_the_users_fault_is_found_in_what_serve_tells():
    told = 'Deploying application omr failed: ...\n  File "x.py", line 3, in f\nomr_ray.types.UserError: models/sd: not there; fetch it\n'
    assert launch.FAULT.findall(told) == ["models/sd: not there; fetch it"]
