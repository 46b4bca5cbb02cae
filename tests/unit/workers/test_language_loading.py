import pytest

from omr_ray.config.dialogue import OpenAiLanguage, TransformersLanguage
from omr_ray.loading import language_model_from
from omr_ray.types import UserError
from omr_ray.vlm.engine import Message
from omr_ray.vlm.openai_engine import OpenAiEngine
from tests.tiny_qwen import make_tiny_qwen


def test_a_language_model_of_each_kind(tmp_path):
    make_tiny_qwen(tmp_path)
    here = language_model_from(TransformersLanguage(path=str(tmp_path), batch_size=3))
    assert here.batch_size == 3
    assert len(here.complete([(Message(role="user", text="hat"),)], max_tokens=2)) == 1
    assert isinstance(language_model_from(OpenAiLanguage(url="http://127.0.0.1:9/v1", model="qwen")), OpenAiEngine)


def test_a_missing_model_is_named(tmp_path):
    with pytest.raises(UserError, match="no such model directory"):
        language_model_from(TransformersLanguage(path=str(tmp_path / "absent")))
