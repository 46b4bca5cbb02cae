"""`omr-ray serve`: start the service here, or write what `serve deploy` and a RayService take; and make keys."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import ray
import yaml
from ray import serve
from ray.serve.schema import ServeDeploySchema

from omr_ray.atelier import shipped
from omr_ray.config.serve import ServeConfig
from omr_ray.serving import proxy
from omr_ray.serving.app import build
from omr_ray.serving.store.access import make_key
from omr_ray.serving.store.database import Database
from omr_ray.types import UserError

FAULT = re.compile(r"UserError[^:\n]*: (.+)")  # in what Serve tells of a process that could not start


def run(config: ServeConfig) -> dict[str, Any]:
    """Serve until interrupted or terminated. Raises UserError for what can be seen before Ray starts, and for models that cannot load."""
    check(config)
    replicas = config.replicas
    needed = sum(actors.count * actors.num_cpus for actors in (replicas.web, replicas.rounds, replicas.diffusion, replicas.language))
    if config.updates is not None:
        needed += replicas.rounds.num_cpus + replicas.updates.num_cpus
    url = f"http://{_in_url(config.http.host)}:{config.http.port}"
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    os.environ.setdefault(proxy.VARIABLE, proxy.VALUE)
    ray.init("local", num_cpus=int(needed) + 2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what ends a service elsewhere; Ray's own handler aborts
    try:
        serve.start(http_options={"host": config.http.host, "port": config.http.port})
        serve.run(build(config.model_dump(mode="json")), name=config.name, route_prefix="/")
        print(f"omr-ray: serving at {url}; Ctrl-C ends it", file=sys.stderr, flush=True)
        signal.pause()
    except KeyboardInterrupt:
        pass
    except RuntimeError as error:
        raise _reason(config.name, error) from None
    finally:
        serve.shutdown()
        ray.shutdown()
    return {"served": url}


def check(config: ServeConfig) -> None:
    """What is cheap to find out. Raises UserError: embedded weights that are not shipped, a port that is taken."""
    named = {
        "clip": config.clip == "atelier",
        "language_model": config.dialogue.language.type == "transformers" and config.dialogue.language.path == "atelier",
        "controlnet": config.model.controlnet == "atelier",
        "keypoints": config.pose is not None and config.pose.estimator.kind == "atelier",
    }
    for part, needed in named.items():
        if needed:
            shipped(part)
    host, port = config.http.host, config.http.port
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family) as listening:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
    except OSError as error:
        raise UserError(f"cannot listen on {host}:{port} ({error.strerror}); set http.host and http.port to what is free here") from None


def _reason(application: str, error: RuntimeError) -> Exception:
    """Why an application does not start: Serve's error only names its deployments, whose status holds the traceback."""
    found = serve.status().applications.get(application)
    told = "\n".join(deployment.message for deployment in found.deployments.values()) if found else ""
    faults = FAULT.findall(told)
    return UserError(faults[-1].strip()) if faults else RuntimeError(f"{error}\n{told}")


def write_deployment(config: ServeConfig, path: Path) -> dict[str, Any]:
    """The Serve YAML. The tables are brought up to date where it is deployed."""
    application = {
        "name": config.name,
        "route_prefix": "/",
        "import_path": "omr_ray.serving.app:build",
        "args": config.with_absolute_paths().model_dump(mode="json"),
    }
    content = {"http_options": {"host": config.http.host, "port": config.http.port}, "applications": [application]}
    ServeDeploySchema.model_validate(content)
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return {"written": str(path)}


def new_key(config: ServeConfig, owner: str) -> dict[str, Any]:
    """A key of an owner; it is shown once."""
    database = Database(config.database)
    database.migrate()
    with database.write() as transaction:
        key = make_key(transaction, owner)
    database.close()
    return {"owner": owner, "key": key}


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
