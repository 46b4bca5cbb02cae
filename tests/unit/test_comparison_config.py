from pathlib import Path

import pytest

from omr_ray.config.comparison import Augmented, ComparisonConfig
from omr_ray.types import UserError

SHIPPED = Path(__file__).parents[2] / "configs/compare_atelier.yaml"


def test_the_shipped_config_names_a_run_and_its_models():
    config = ComparisonConfig.load(SHIPPED)
    assert [model.name for model in config.models] == ["Base", "Ours", "Augmented"]
    assert config.base().dialogues.rounds == 8


def test_models_are_told_apart_by_their_type():
    language = "{type: openai, url: 'http://127.0.0.1:1/v1', model: m}"
    config = ComparisonConfig.load(SHIPPED, [f"models=[{{type: base}}, {{type: augmentation, name: GPT-4, language: {language}}}]"])
    assert isinstance(config.models[1], Augmented)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("models.1.name=Base", "models need names of their own"),
        ("models.1.name=a_b", "string_pattern|should match pattern"),
        ("ablations={without diversity: Nobody}", "ablations: 'Nobody' is no model of the list"),
        ("personal={per user: [Ours, Nobody]}", "personal: 'Nobody' is no model of the list"),
        ("personal={per user: []}", "personal"),
        ("metrics=[{type: clip}, {type: clip}]", "a metric stands twice"),
        ("models.1.pth=x", "unknown key 'models.1.pth'; the nearest known one is 'path'"),
        ("selection.images=9", "selection.images"),
    ],
)
def test_a_wrong_config_is_refused_with_its_key(override, said):
    with pytest.raises(UserError, match=said):
        ComparisonConfig.load(SHIPPED, [override])
