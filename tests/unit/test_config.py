from pathlib import Path

import pytest

from omr_ray.config.comparison import ComparisonConfig
from omr_ray.config.data import DataConfig
from omr_ray.config.finetune import FinetuneRun
from omr_ray.config.generation import AttendAndExcite, Pose
from omr_ray.config.reading import dump, with_overrides
from omr_ray.config.reward_model import RewardRun
from omr_ray.config.run import RunConfig
from omr_ray.config.serve import ServeConfig
from omr_ray.config.sweep import SweepConfig
from omr_ray.types import UserError

CONFIGS = Path(__file__).parents[2] / "configs"


def refused(*overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        RunConfig.load(CONFIGS / "atelier.yaml", overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("file", sorted(p.name for p in CONFIGS.glob("*.yaml")))
def test_every_shipped_config_loads_and_survives_a_dump(file, tmp_path):
    kinds = {"data": DataConfig, "reward": RewardRun, "serve": ServeConfig, "sweep": SweepConfig, "compare": ComparisonConfig}
    kind = FinetuneRun if file.endswith("_dialogue.yaml") else kinds.get(file.split("_")[0], RunConfig)
    loaded = kind.load(CONFIGS / file)
    (tmp_path / "again.yaml").write_text(dump(loaded))
    assert kind.load(tmp_path / "again.yaml") == loaded


def test_an_override_reaches_into_a_list():
    changed = DataConfig.load(CONFIGS / "data_atelier.yaml", ["sources.0.pairs=5"])
    assert changed.sources[0].pairs == 5 and changed.sources[0].dialogues == 2000
    with pytest.raises(UserError, match="'1' is no place in a list of 1; they are counted from 0"):
        DataConfig.load(CONFIGS / "data_atelier.yaml", ["sources.1.pairs=5"])


def test_overrides_are_typed_and_nested():
    changed = RunConfig.load(CONFIGS / "atelier.yaml", ["sampler.steps=12", "algorithm.clip_range=1e-4", "sampler.strength=[0.5,0.4]"])
    assert changed.sampler.steps == 12
    assert changed.algorithm.clip_range == 1e-4
    assert changed.sampler.strength == (0.5, 0.4)
    assert with_overrides(changed, ["sampler.steps=20"]).sampler.steps == 20


def test_an_unknown_key_names_the_file_the_key_and_the_nearest_known_one():
    message = refused("algorithm.klweight=1")
    assert "atelier.yaml" in message and "'algorithm.klweight'" in message and "'kl_weight'" in message
    assert "'alpha'" in refused("rewards.schedule.alfa=1")
    assert "'steps'" in refused("sampler.stepz=3")


def test_a_wrong_type_names_key_rule_and_value():
    message = refused("sampler.steps=abc")
    assert "sampler.steps" in message and "integer" in message and "'abc'" in message


def test_rules_between_keys():
    assert "T1 <= T2 <= steps (5)" in refused("sampler.window=[1,6]")
    assert "at least 2 for ppo" in refused("sampler.siblings=1")
    assert "learner.ranks (5)" in refused("learner.ranks=5")
    assert "learner.ranks; set that" in refused("workers.learner.count=2")


def test_supervised_training_without_a_loss_or_without_the_reference_it_asks_for():
    with pytest.raises(UserError, match="both 0: nothing would be learned"):
        FinetuneRun.load(CONFIGS / "atelier_dialogue.yaml", ["text_image.weight=0", "multi_round.weight=0"])
    with pytest.raises(UserError, match="lora is null: the frozen model is not there"):
        FinetuneRun.load(CONFIGS / "atelier_dialogue.yaml", ["lora=null", "reference.weight=1"])


def test_files_that_are_no_config(tmp_path):
    with pytest.raises(UserError, match="no such config file"):
        RunConfig.load(tmp_path / "absent.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(UserError, match="mapping of keys to values, got list"):
        RunConfig.load(tmp_path / "list.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1")
    with pytest.raises(UserError, match="not readable as YAML"):
        RunConfig.load(tmp_path / "broken.yaml")


TERM = "{name: sharp, weight: 0.5, scorer: {type: function, path: 'my.rewards:sharp'}}"
HTTP = "{name: far, weight: -1, scorer: {type: http, url: 'http://host/score', timeout_s: 60, attempts: 9}}"


def test_terms_that_users_add():
    config = RunConfig.load(CONFIGS / "atelier.yaml", [f"rewards.terms=[{TERM}]", "rewards.terms.0.weight=0.25"])
    (term,) = config.rewards.terms
    assert (term.name, term.weight, term.scorer.path) == ("sharp", 0.25, "my.rewards:sharp")
    assert RunConfig.load(CONFIGS / "atelier.yaml").rewards.terms == ()


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        (f"[{TERM}, {TERM}]", "terms need names of their own, got sharp, sharp"),
        (f"[{TERM.replace('sharp', 'consistency', 1)}]", "rewards.terms.0.name: must be letters, digits and _ and none of diversity"),
        (f"[{TERM.replace('sharp', 'total', 1)}]", "got 'total'"),
        (f"[{TERM.replace('sharp', 'a-b', 1)}]", "got 'a-b'"),
        (f"[{TERM.replace('my.rewards:sharp', 'my/rewards.py')}]", "rewards.terms.0.scorer.path"),
        (f"[{HTTP.replace('http:', 'ftp:')}]", "rewards.terms.0.scorer.url"),
        (f"[{HTTP}]", "far: all attempts of a request may take 780 s, which must be less than workers.timeout_s (600)"),
        (f"[{HTTP.replace('attempts', 'atempts')}]", "the nearest known one is 'attempts'"),
    ],
)
def test_a_term_that_cannot_be_is_refused(terms, message):
    assert message in refused(f"rewards.terms={terms}")


def test_infonce_needs_dialogues_that_compete():
    assert "dialogues_per_step must be at least 2 for infonce" in refused(
        "rewards.mutual_information={type: infonce}", "dialogues_per_step=1"
    )


def test_what_leads_a_generation_has_the_papers_range():
    for threshold in (0.66, 0.68, 0.70, 0.73, 0.75, 0.80):  # TDRI table 6
        assert AttendAndExcite(threshold=threshold).iterations == 1
    with pytest.raises(ValueError, match="threshold"):
        AttendAndExcite(threshold=1.1)
    assert Pose.model_validate({"estimator": {"kind": "onnx", "path": "rtmpose.onnx"}}).estimator.path == "rtmpose.onnx"
    with pytest.raises(ValueError, match="path"):
        Pose.model_validate({"estimator": {"kind": "onnx"}})


def test_overlap_is_off_unless_asked_for_and_refuses_what_it_cannot_hold():
    load = lambda *overrides: RunConfig.load(CONFIGS / "atelier.yaml", overrides)  # noqa: E731
    assert load().overlap is None
    assert load("overlap.max_staleness=2").overlap.max_staleness == 2 and load("overlap={}").overlap.max_staleness == 1
    assert load("algorithm={type: refl}", "overlap.max_staleness=0").overlap.max_staleness == 0
    assert "must be 0 for refl: it has no importance ratio" in refused("algorithm={type: refl}", "overlap.max_staleness=1")
    assert "overlap.max_staleness (24) must be less than steps (24)" in refused("overlap.max_staleness=24")
    assert "more than workers.max_attempts x workers.timeout_s (1800)" in refused("overlap.wait_s=1800")
    assert "overlap.max_staleness" in refused("overlap.max_staleness=-1")


def test_a_learner_group_may_shrink_to_one_rank_and_never_be_more_than_all():
    load = lambda *overrides: RunConfig.load(CONFIGS / "atelier.yaml", overrides)  # noqa: E731
    assert (load().learner.ranks, load().learner.min_ranks) == (2, 1)
    assert load("learner.min_ranks=2").learner.min_ranks == 2
    assert "learner.min_ranks (3) must be at most learner.ranks (2)" in refused("learner.min_ranks=3")
    assert "learner.min_ranks" in refused("learner.min_ranks=0")
