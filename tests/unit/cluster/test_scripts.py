"""Shell scripts, Dockerfiles, the cloud config and the Slurm script of cluster/, by the tools that know them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[3]
BIN = Path(sys.executable).parent
SCRIPTS = [path for part in ("cluster", "jobs", "tests") for path in sorted((ROOT / part).rglob("*.sh"))] + [ROOT / ".ci/run"]
DOCKERFILES = sorted((ROOT / "cluster").glob("Dockerfile*"))


def ran(*command: str | Path, **options) -> subprocess.CompletedProcess:
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=240, cwd=ROOT, **options)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_shellcheck_finds_nothing(script):
    done = ran(BIN / "shellcheck", "--external-sources", "--shell=bash", script)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint_finds_nothing_and_the_image_is_not_roots(file):
    done = ran(BIN / "hadolint", "--disable-ignore-pragma", "--ignore", "DL3008", file)
    assert done.returncode == 0, done.stdout
    text = file.read_text()
    assert re.findall(r"^USER (\w+)$", text, re.M)[-1] == "1000"  # the user ray; Kubernetes tells a non-root user by number
    assert "--constraint cluster/constraints.txt" in text and "://" not in text
    version = re.search(r"^FROM rayproject/ray:([\d.]+)-py(\d)(\d+)-", text, re.M).groups()
    pins = (ROOT / "cluster/constraints.txt").read_text().splitlines()
    assert f"ray=={version[0]}" in pins and (int(version[1]), int(version[2])) >= (3, 11)
    for source in re.findall(r"^COPY --chown=ray:users (.+) \S+$", text, re.M):
        assert all((ROOT / name).exists() for name in source.split())


def test_the_cloud_config_keeps_to_rays_schema_and_labels_the_pools():
    config = yaml.safe_load((ROOT / "cluster/aws.yaml").read_text())
    validate_config(prepare_config(dict(config)))
    types = config["available_node_types"]
    assert {name: kind.get("labels") for name, kind in types.items()} == {
        "head": None, "learner": {"pool": "learner"}, "rollout": {"pool": "rollout"}, "reward": {"pool": "reward"},
    }  # fmt: skip
    assert (types["rollout"]["min_workers"], types["learner"]["min_workers"], types["learner"]["max_workers"]) == (0, 1, 1)
    starts = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    assert all("RAY_AUTH_MODE=token" in line for line in starts if "ray start" in line)
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][1]


@pytest.fixture
def slurm(tmp_path):
    """A checkout and Slurm's commands as small programs: srun runs the command here, `ray` prints what it was given."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "work/.venv/bin").mkdir(parents=True)
    (tmp_path / "work/.venv/bin/activate").write_text("")
    programs = {
        "scontrol": "printf 'one\\ntwo\\n'",
        "srun": 'while [[ "$1" == --* ]]; do shift; done; exec "$@"',
        "hostname": "echo 10.0.0.5 fe80::1",
        "ray": 'printf "%s\\n" "$@"; echo "mode $RAY_AUTH_MODE"; stat -c "token %a %s" "$RAY_AUTH_TOKEN_PATH"',
        "python": f'exec {sys.executable} "$@"',
    }
    for name, body in programs.items():
        (tmp_path / "bin" / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    environment = {
        "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(tmp_path / "work"),
        "SLURM_JOB_ID": "70007", "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "one,two",
        "SLURM_CPUS_ON_NODE": "32", "SLURM_GPUS_ON_NODE": "4",
    }  # fmt: skip

    def run(*words: str) -> subprocess.CompletedProcess:
        return ran("bash", ROOT / "cluster/slurm.sh", *words, env=environment)

    return run, tmp_path / "work"


def test_the_slurm_script_starts_one_ray_with_a_token_of_its_own(slurm):
    run, work = slurm
    done = run("configs/sd21.yaml", "--out", str(work / "run"), "steps=3")
    assert done.returncode == 0, done.stderr
    words = done.stdout.splitlines()
    # 20000 + 70007 % 20000
    assert words[:5] == ["symmetric-run", "--address", "10.0.0.5:30007", "--min-nodes", "2"]
    assert {"--num-cpus=32", "--num-gpus=4"} <= set(words)
    behind = words[words.index("--") + 1 : -2]
    assert behind == ["python", "jobs/train.py", "configs/sd21.yaml", "--out", str(work / "run"), "steps=3"]
    assert words[-2:] == ["mode token", "token 600 65"]  # 64 hexadecimal digits and the end of the line
    assert not list(work.glob(".omr-ray-token*"))  # gone with the job


def test_a_requeued_slurm_job_resumes_and_one_without_a_directory_is_refused(slurm):
    run, work = slurm
    (work / "run").mkdir()
    (work / "run/config.yaml").write_text("")
    assert "--resume" in run("configs/sd21.yaml", "--out", str(work / "run")).stdout.splitlines()
    refused = run("configs/sd21.yaml")
    assert refused.returncode != 0 and "--out DIR" in refused.stderr


def test_every_job_is_a_command_of_the_same_program():
    for name in ("train", "evaluate", "finetune", "reward_train", "data_build"):
        done = ran(sys.executable, ROOT / f"jobs/{name}.py", "--help", env={**os.environ, "PYTHONPATH": str(ROOT)})
        assert done.returncode == 0 and done.stdout.startswith(f"usage: omr-ray {name.replace('_', ' ')}"), done.stderr
