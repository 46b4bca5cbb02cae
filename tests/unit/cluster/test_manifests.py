"""Every manifest in cluster/ against its schema, and what the manifests together must hold.

Kubernetes' own resources, and all of its types inside others, are checked against the strict schemas of Kubernetes that the package
kubernetes-validate carries. KubeRay's CRDs come in no registry package, so tests/data/kuberay/schema.yaml has the specs of
version 1.7 as its API reference lists them; rules of its operator that are no schema are tests below.
"""

import copy
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from jsonschema import Draft202012Validator
from kubernetes_validate.utils import latest_version, schema_contents
from ray._common.utils import import_attr
from ray.serve.schema import ServeDeploySchema
from referencing import Registry, Resource

from omr_ray.config.run import RunConfig
from omr_ray.config.serve import ServeConfig
from omr_ray.serving import proxy

ROOT = Path(__file__).parents[3]
KUBERAY = ROOT / "cluster/kuberay"
KUBERNETES = "1.34"  # what is validated against is the newest that the package has up to this one
OURS = Registry().with_resources(
    [
        (resource.id(), resource)
        for resource in (
            Resource.from_contents(yaml.safe_load((ROOT / "tests/data/kuberay/schema.yaml").read_text())),
            Resource.from_contents(
                schema_contents(f"kubernetes-json-schema/v{KUBERNETES}.0-local-strict/_definitions.json", latest_version())
            ),
        )
    ]
)
FILES = sorted([*KUBERAY.glob("*.yaml"), *(ROOT / "cluster/monitoring").glob("*.yaml")])
PORTS_THAT_RUN_CODE = {6379, 8265, 10001}


def documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def faults(document: dict[str, Any]) -> list[str]:
    """What is wrong with one resource; empty where nothing is."""
    if document["apiVersion"] in ("ray.io/v1", "monitoring.coreos.com/v1"):
        validator = Draft202012Validator({"$ref": f"https://kubernetes.io/api/ray-io-v1#/$defs/{document['kind']}"}, registry=OURS)
        return [f"{'/'.join(map(str, error.path))}: {error.message}" for error in validator.iter_errors(document)]
    try:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{'/'.join(map(str, error.path))}: {error.message}"]
    return []


def clusters() -> dict[str, dict[str, Any]]:
    """The RayCluster specs by file."""
    found = {}
    for name, key in (("raycluster", None), ("rayjob", "rayClusterSpec"), ("rayservice", "rayClusterConfig")):
        spec = documents(KUBERAY / f"{name}.yaml")[0]["spec"]
        found[name] = spec[key] if key else spec
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_document_keeps_to_its_schema(path):
    assert documents(path)
    for document in documents(path):
        assert faults(document) == []


def test_the_schemas_find_what_is_wrong():
    cluster = documents(KUBERAY / "raycluster.yaml")[0]
    for change, wanted in (
        (lambda spec: spec["authOptions"].update(mode="tokens"), "authOptions/mode"),
        (lambda spec: spec["workerGroupSpecs"][0].update(minReplica=1), "minReplica"),
        (lambda spec: spec["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}), "num-cpus"),
        (lambda spec: spec["workerGroupSpecs"][1]["template"]["spec"]["containers"][0].update(volumeMount=[]), "volumeMount"),
        (lambda spec: spec["headGroupSpec"]["template"]["spec"].pop("containers"), "containers"),
    ):
        broken = copy.deepcopy(cluster)
        change(broken["spec"])
        assert any(wanted in fault for fault in faults(broken)), wanted
    policy = documents(KUBERAY / "network-policy.yaml")[0]
    policy["spec"]["ingres"] = []
    assert faults(policy)


@pytest.mark.parametrize("name", ["raycluster", "rayjob", "rayservice"])
def test_a_cluster_is_safe_and_its_head_runs_no_actor(name):
    spec = clusters()[name]
    assert spec["authOptions"] == {"mode": "token", "secretName": "omr-ray-token"}
    assert spec["rayVersion"] == pinned("ray")
    head = spec["headGroupSpec"]
    assert head["rayStartParams"] == {"num-cpus": "0", "num-gpus": "0"} and head["serviceType"] == "ClusterIP"
    for template in [head["template"], *(group["template"] for group in spec["workerGroupSpecs"])]:
        assert template["metadata"]["labels"] == {"app.kubernetes.io/part-of": "omr-ray"}  # what the policies and monitors select
        pod, container = template["spec"], template["spec"]["containers"][0]
        assert pod["securityContext"]["runAsNonRoot"] and pod.get("restartPolicy", "Never") == "Never"  # the v2 autoscaler's rule
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
        assert mounts["/dev/shm"]["emptyDir"]["medium"] == "Memory"
        assert mounts["/mnt/shared"]["persistentVolumeClaim"]["claimName"] == "omr-ray-shared"
        assert {"name": "metrics", "containerPort": 8080} in container["ports"]
        asked, limit = container["resources"]["requests"], container["resources"]["limits"]
        assert asked["memory"] == limit["memory"] and asked.get("nvidia.com/gpu") == limit.get("nvidia.com/gpu")
    assert "nvidia.com/gpu" not in head["template"]["spec"]["containers"][0]["resources"]["limits"]


@pytest.mark.parametrize("name", ["raycluster", "rayjob"])
def test_the_pools_of_a_training_cluster(name):
    groups = {group["groupName"]: group for group in clusters()[name]["workerGroupSpecs"]}
    assert {group: spec["labels"] for group, spec in groups.items()} == {p: {"pool": p} for p in ("learner", "rollout", "reward")}
    sizes = {group: (spec["minReplicas"], spec["maxReplicas"]) for group, spec in groups.items()}
    assert sizes == {"learner": (1, 1), "rollout": (0, 16), "reward": (0, 4)}
    assert "spot" in str(groups["rollout"]["template"]["spec"]["nodeSelector"])
    assert "nodeSelector" not in groups["learner"]["template"]["spec"]


def test_the_jobs_command_line_is_one_that_fits_its_cluster():
    job = documents(KUBERAY / "rayjob.yaml")[0]["spec"]
    overrides = [word.rstrip("'") for word in job["entrypoint"].split() if word.startswith("workers.")]
    config = RunConfig.load(ROOT / "configs/sd21.yaml", overrides)
    most = {group["groupName"]: group for group in job["rayClusterSpec"]["workerGroupSpecs"]}
    gpus = {name: int(group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]) for name, group in most.items()}
    assert config.learner.ranks * config.workers.learner.num_gpus == gpus["learner"]  # nothing of the learner's is left to others
    for pool in ("rollout", "reward"):
        actors = getattr(config.workers, pool)
        assert actors.count * actors.num_gpus <= most[pool]["maxReplicas"] * gpus[pool]


def test_the_service_keeps_its_state_and_its_serve_config_is_one():
    service = documents(KUBERAY / "rayservice.yaml")[0]["spec"]
    options = service["rayClusterConfig"]["gcsFaultToleranceOptions"]
    redis = {document["kind"]: document for document in documents(KUBERAY / "redis.yaml")}
    assert options["redisAddress"] == f"{redis['Service']['metadata']['name']}:{redis['Service']['spec']['ports'][0]['port']}"
    container = redis["StatefulSet"]["spec"]["template"]["spec"]["containers"][0]
    assert container["env"][0]["valueFrom"] == options["redisPassword"]["valueFrom"]
    config = ServeDeploySchema.model_validate(yaml.safe_load(service["serveConfigV2"]))
    assert [(app.import_path, app.route_prefix) for app in config.applications] == [("omr_ray.serving.app:build", "/")]
    served = ServeConfig.model_validate(config.applications[0].args)  # what `build` takes
    assert served.http.keys_required and served.http.port == config.http_options.port == 8000
    assert served.database.startswith("postgresql") and served.images.startswith("/mnt/shared/")  # all nodes reach both
    replicas = served.replicas
    most = service["rayClusterConfig"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]
    assert sum(actors.count * actors.num_gpus for actors in (replicas.diffusion, replicas.language)) <= int(most)
    groups = (service["rayClusterConfig"]["headGroupSpec"], *service["rayClusterConfig"]["workerGroupSpecs"])
    for group in groups:  # each node has an HTTP server
        environment = {entry["name"]: entry.get("value") for entry in group["template"]["spec"]["containers"][0]["env"]}
        assert environment[proxy.VARIABLE] == proxy.VALUE
    assert [middleware.cls.__name__ for middleware in import_attr(proxy.VALUE)()] == ["OneShape", "Answered"]


def test_only_serve_is_reached_from_outside():
    inside, serve = documents(KUBERAY / "network-policy.yaml")
    assert inside["spec"]["podSelector"] == {"matchLabels": {"app.kubernetes.io/part-of": "omr-ray"}}
    own, *named = inside["spec"]["ingress"]
    assert own == {"from": [{"podSelector": {"matchLabels": {"app.kubernetes.io/part-of": "omr-ray"}}}]}  # in this namespace alone
    for rule in named:
        assert all(source["podSelector"]["matchLabels"] for source in rule["from"])
    reached = {port["port"] for rule in serve["spec"]["ingress"] for port in rule["ports"]}
    assert reached == {8000} and not reached & PORTS_THAT_RUN_CODE
    assert serve["spec"]["podSelector"]["matchLabels"]["ray.io/serve"] == "true"


def test_no_manifest_holds_a_secret():
    for path in FILES:
        assert all(document["kind"] != "Secret" for document in documents(path)), path


def pinned(package: str) -> str:
    lines = (ROOT / "cluster/constraints.txt").read_text().splitlines()
    return next(line.partition("==")[2] for line in lines if line.startswith(f"{package}=="))
