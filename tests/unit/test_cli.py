"""The command as a person or a script meets it: a process, its exit status, its last line."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def omr_ray(*arguments: str) -> tuple[int, str, str]:
    done = subprocess.run([sys.executable, "-m", "omr_ray.cli", *arguments], capture_output=True, text=True, cwd=ROOT, timeout=120)
    return done.returncode, done.stdout, done.stderr


def test_plan_prints_one_json_object():
    status, out, _ = omr_ray("plan", "configs/atelier.yaml", "--json")
    assert status == 0
    plan = json.loads(out.splitlines()[-1])
    assert plan["step"]["trajectories"] == 4 * 6 * 4


def test_faults_of_the_user_are_one_line_and_status_2(tmp_path):
    for arguments, says in [
        (["train", "configs/atelier.yaml", "sampler.stepz=3"], "nearest known one is 'steps'"),
        (["train", "absent.yaml"], "no such config file"),
        (["train", "configs/atelier.yaml", f"dialogues={{kind: json, path: {tmp_path}}}"], "no *.json dialogue"),
        (["train", "configs/atelier.yaml", "--resume", "--out", str(tmp_path / "none")], "nothing to resume"),
        (["plan", "configs/sd21.yaml", "cluster.gpus_per_node=1"], "gpu"),
    ]:
        status, _, err = omr_ray(*arguments)
        lines = [line for line in err.splitlines() if line.startswith("omr-ray: ")]
        assert status == 2 and len(lines) == 1 and says.lower() in lines[0].lower(), err


def test_with_json_a_fault_is_an_object_too():
    status, out, _ = omr_ray("train", "absent.yaml", "--json")
    assert status == 2 and "no such config file" in json.loads(out)["error"]
