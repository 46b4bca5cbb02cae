import pytest
import yaml

from omr_ray.config.sweep import SweepConfig
from omr_ray.types import UserError

PLAIN = {"name": "s", "run": "configs/atelier.yaml", "space": {"rewards.schedule.alpha": {"type": "uniform", "low": 0, "high": 1}}}
GRID = {"type": "choice", "values": [0.1, 0.2]}
VARIANTS = {"type": "variants", "variants": {"a": [], "b": ["steps=3"]}, "seeds": [0, 1]}


def load(tmp_path, **values):
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump(PLAIN | values))
    return SweepConfig.load(file)


@pytest.mark.parametrize("name", ["total", "reward/total", "reward/diversity"])
def test_the_total_reward_is_no_objective_and_the_error_says_why(tmp_path, name):
    with pytest.raises(UserError, match="made with the weights that are swept.*choose among preference, consistency"):
        load(tmp_path, objectives=[name])


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"objectives": ["beauty"]}, "unknown objective 'beauty'"),
        ({"objectives": ["preference", "preference"]}, "stands twice"),
        ({"space": {"evaluation.seed": GRID}}, "'evaluation.seed' cannot be swept: evaluation is the same"),
        ({"space": {"rewards": GRID}}, "'rewards' cannot be swept: rewards.preference"),
        ({"space": {}}, "search random needs a space"),
        ({"search": {"type": "grid"}}, "rewards.schedule.alpha is a range"),
        ({"search": VARIANTS}, "takes no space"),
        ({"space": {}, "search": VARIANTS | {"variants": {"a": [], "b": ["seed=3"]}}}, "seeds are listed once"),
        ({"space": {"x": {"type": "uniform", "low": 1, "high": 1}}}, "must be less than high"),
        ({"space": {"x": {"type": "choice", "values": [1, 1]}}}, "stands twice"),
        ({"scheduler": {"type": "population", "every": 15}}, "multiple of intermediate.every"),
        ({"scheduler": {"type": "population"}, "search": {"type": "optuna"}}, "takes search random, not optuna"),
        ({"scheduler": {"type": "population"}, "space": {"lora.rank": GRID}}, "hands weights on: lora.rank"),
        ({"scheduler": {"type": "asha", "grace": 5}}, "nothing is known before"),
    ],
)
def test_faults_are_found_before_anything_starts(tmp_path, values, says):
    with pytest.raises(UserError, match=says):
        load(tmp_path, **values)


def test_every_end_of_the_space_is_a_valid_run(tmp_path):
    with pytest.raises(UserError, match=r"rewards.schedule.alpha.*greater than or equal to 0"):
        load(tmp_path, space={"rewards.schedule.alpha": {"type": "uniform", "low": -1, "high": 1}}).base()
    with pytest.raises(UserError, match="unknown key 'sampler.stepz'"):
        load(tmp_path, space={"sampler.stepz": GRID}).base()
    with pytest.raises(UserError, match="embedded world only"):
        load(tmp_path, run="configs/sd21.yaml", objectives=["rounds_to_intent"]).base()


@pytest.mark.parametrize("name", ["schedule", "ablations"])
def test_the_shipped_sweeps_are_valid(name):
    config = SweepConfig.load(f"configs/sweep_{name}.yaml")
    assert config.base().name == "atelier"
