"""`omr-ray serve`: start the service here, or write what `serve deploy` and a RayService take; and make keys."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import ray
import yaml
from ray import serve
from ray.serve.schema import ServeDeploySchema

from omr_ray.config.serve import ServeConfig
from omr_ray.serving.app import build
from omr_ray.serving.store.access import make_key
from omr_ray.serving.store.database import Database


def run(config: ServeConfig) -> dict[str, Any]:
    """Serve until interrupted."""
    replicas = config.replicas
    needed = sum(actors.count * actors.num_cpus for actors in (replicas.web, replicas.rounds, replicas.diffusion, replicas.language))
    ray.init(num_cpus=int(needed) + 2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        serve.start(http_options={"host": config.http.host, "port": config.http.port})
        serve.run(build(config.model_dump(mode="json")), name=config.name, route_prefix="/", blocking=True)
    except KeyboardInterrupt:
        pass
    finally:
        serve.shutdown()
        ray.shutdown()
    return {"served": f"http://{config.http.host}:{config.http.port}"}


def write_deployment(config: ServeConfig, path: Path) -> dict[str, Any]:
    """The Serve YAML. The tables are brought up to date where it is deployed."""
    application = {
        "name": config.name,
        "route_prefix": "/",
        "import_path": "omr_ray.serving.app:build",
        "args": config.model_dump(mode="json"),
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
