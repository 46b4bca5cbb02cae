import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from omr_ray.config.reading import with_overrides
from omr_ray.config.run import RunConfig
from omr_ray.plan import plan
from omr_ray.plan.shapes import shape_of
from omr_ray.plan.work import trajectory_bytes
from omr_ray.types import UserError
from tests.tiny import make_tiny_sd, make_tiny_sdxl
from tests.tiny_image_reward import make_tiny_image_reward, tiny_image_reward

CONFIGS = Path(__file__).parents[2] / "configs"


def test_the_published_settings_fit_their_four_gpus():
    result = plan(RunConfig.load(CONFIGS / "sd21.yaml"))
    step = result.step
    assert (result.latent, result.lora_parameters) == ((4, 96, 96), 829_952)
    assert (step.rounds, step.samples_per_round, step.trained_rows) == (4, 64, 256)
    assert step.sampling_forwards == 64 * 2 * (70 + 3 * 42)  # guidance counts twice; strength 0.6 of 70 is 42
    assert step.learning_forwards == 256 * 2
    assert step.reference_forwards == 0
    assert step.bytes_per_trajectory == (8 * 77 + 2 * 4 * 4 * 96 * 96 + 20 + 4 * 16 * 320 + 3 * 768 * 768,) * 4
    assert result.nodes == ({"learner": 4, "rollout": 4, "reward": 4},)
    assert any("4 rounds" in note for note in result.notes)


def test_vllm_takes_nine_tenths_of_its_part_of_a_gpu():
    config = RunConfig.load(CONFIGS / "sd21.yaml", ["rewards.preference.engine=vllm"])
    with pytest.raises(UserError, match="reserves 0.24 GPU of 39.5 GiB, that is 8.5; lower rewards.preference.batch_size"):
        plan(config)
    (reward,) = [actor for actor in plan(with_overrides(config, ["rewards.preference.batch_size=2"])).actors if actor.pool == "reward"]
    assert reward.total_gib == pytest.approx(0.9 * 0.24 * 39.5)
    assert reward.memory_gib["KV cache"] > 0


def test_the_fashion_config_fits_too():
    result = plan(RunConfig.load(CONFIGS / "sdxl_fashion.yaml"))
    assert result.lora_parameters == 4 * 5_806_080  # rank 16
    assert result.step.samples_per_round == 40


@pytest.mark.parametrize("make", [make_tiny_sd, make_tiny_sdxl])
def test_a_directory_is_read_as_the_policy_that_it_holds(tmp_path, make):
    from omr_ray.diffusion.policy import Policy
    from omr_ray.diffusion.sampler import MultiRoundSampler
    from omr_ray.types import Dialogue, Round

    make(tmp_path)
    policy, shape = Policy.from_pretrained(str(tmp_path), rank=3, alpha=3.0), shape_of(str(tmp_path))
    lora = sum(parameter.numel() for parameter in policy.lora_parameters().values())
    assert shape.lora_parameters(3) == lora
    assert shape.unet_parameters == sum(parameter.numel() for parameter in policy.network.parameters()) - lora
    assert shape.pixels == (policy.height, policy.width)
    sampler = MultiRoundSampler(
        policy,
        steps=4,
        eta=1.0,
        guidance_scale=1.0,
        strength=(0.5,),
        siblings=2,
        window=(1, 4),
        train_steps_per_round=2,
        shared_window=True,
    )
    rollout = sampler.sample([Dialogue(id="d", intent="i", rounds=(Round(index=1, utterance="u", prompt="p"),))], seed=0, policy_version=0)[
        0
    ]
    trajectory = rollout.trajectories[0][0]
    assert trajectory_bytes(shape, policy.latent_shape(), stored=2, pixels=int(np.prod(shape.pixels))) == trajectory.nbytes


def small(**values):
    model = {"kind": "diffusers", "path": "stable-diffusion-v1-5/stable-diffusion-v1-5"}
    rewards = {"preference": {"path": "Qwen/Qwen2-VL-2B-Instruct", "dtype": "bfloat16", "batch_size": 1}}
    cluster = {"nodes": 2, "cpus_per_node": 4, "memory_gib_per_node": 64, "gpus_per_node": 2, "gpu_memory_gib": 24}
    sampler = {"batch_size": 4}
    workers = {kind: {"num_gpus": 1} for kind in ("rollout", "reward", "learner")}
    base = {"name": "small", "model": model, "rewards": rewards, "cluster": cluster, "sampler": sampler, "workers": workers}
    return RunConfig.model_validate(base | {"learner": {"micro_batch": 2}} | values)


def test_pools_are_spread_and_a_gpu_is_not_given_twice():
    assert plan(small()).nodes == ({"learner": 1, "rollout": 1}, {"reward": 1})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["workers.rollout.count=4"], "no room for rollout actor 4 of 4, which needs 1 GPU, 0 left; lower workers.rollout.count"),
        (["workers.reward.num_cpus=5"], "no room for reward actor 1 of 1, which needs 5 CPUs"),
        (["cluster.memory_gib_per_node=2"], "GiB of main memory"),
        (["learner.micro_batch=64"], "workers.learner: one actor needs about .* lower learner.micro_batch"),
        (["workers.rollout.num_gpus=0.1"], "workers.rollout: one actor needs .* or raise workers.rollout.num_gpus"),
        (["learner.ranks=2", "workers.learner.num_gpus=0.5"], "above 0.5 with 2 ranks, got 0.5"),
        (["model.path=someone/unknown"], "neither a directory nor a hub id of a known family"),
        (["rewards.preference.path=someone/unknown"], "rewards.preference.path"),
        (["sampler.height=500"], "multiples of 8, got 500 x 512"),
        (["sampler.window=[60, 70]", "sampler.strength=[0.5]"], "holds none of the 35 steps of round 2"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_remedy(overrides, message):
    with pytest.raises(UserError, match=message):
        plan(with_overrides(small(), overrides))


def test_zero_stages_share_what_they_say_they_share():
    def parts(stage):
        config = with_overrides(small(), [f"learner.zero_stage={stage}", "learner.ranks=2", "workers.reward.num_gpus=0", "cluster.nodes=3"])
        return plan(config).actors[2].memory_gib

    adapter = 4 * 797_184 / 2**30
    unet, rest = 2 * 859_520_964 / 2**30, 2 * (123_060_480 + 83_653_863) / 2**30
    assert parts(0)["optimizer"] == pytest.approx(2 * adapter)
    assert parts(1)["optimizer"] == pytest.approx(3 * adapter / 2)  # moments and master weights, half each
    assert parts(2)["gradients"] == pytest.approx(adapter / 2)
    assert parts(3)["weights"] == pytest.approx(unet / 2 + rest)


def test_rounds_come_from_the_dialogues_where_they_are(tmp_path):
    for name, rounds in (("a", 2), ("b", 5)):
        (tmp_path / f"{name}.json").write_text(json.dumps({"rounds": [{"prompt": "p"}] * rounds}))
    result = plan(small(dialogues={"kind": "json", "path": str(tmp_path)}))
    assert result.step.rounds == 5
    assert not result.notes


def test_added_terms_count_where_their_weights_are_known(tmp_path):
    make_tiny_image_reward(tmp_path)
    parameters = sum(parameter.numel() for parameter in tiny_image_reward().parameters())

    def term(name, **scorer):
        return {"name": name, "weight": 1, "scorer": scorer}

    here, there = term("here", type="imagereward", path=str(tmp_path)), term("there", type="imagereward", path="/absent")
    function, http = term("mine", type="function", path="my:reward"), term("far", type="http", url="http://host/")
    preference = {"path": "Qwen/Qwen2-VL-2B-Instruct", "dtype": "bfloat16", "batch_size": 1}
    result = plan(small(rewards={"preference": preference, "terms": [here, there, function, http]}))
    memory = result.actors[1].memory_gib
    assert memory["weights of here"] == 4 * parameters / 2**30
    assert [note.split(":")[0] for note in result.notes if "terms" in note] == ["rewards.terms, there", "rewards.terms, mine"]


def test_a_plan_is_plain_json_and_a_table(capsys):
    result = plan(small())
    values = json.loads(json.dumps(result.to_json()))
    assert values["step"]["trajectories"] == result.step.trajectories
    assert values["actors"][0]["total_gib"] == pytest.approx(sum(values["actors"][0]["memory_gib"].values()))
    result.print()
    assert "rollout" in capsys.readouterr().out


def test_planning_loads_neither_torch_nor_ray():
    script = "import sys; from omr_ray.plan import plan; print([m for m in ('torch', 'ray', 'diffusers') if m in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert printed.stdout.strip() == "[]"
