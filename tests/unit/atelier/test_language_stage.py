"""The training of the embedded language model: what it is told, where it is told, and a very short run of the whole stage."""

import json
import shutil
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from omr_ray import atelier
from omr_ray.atelier import WEIGHTS, answers
from omr_ray.atelier.dialogues import split_of
from omr_ray.atelier.pretrain import pretrain
from omr_ray.atelier.stages import language_model, loop, soft_renders
from omr_ray.atelier.stages.conversations import Conversations, Example
from omr_ray.atelier.stages.language_figures import fresh_render, language_figures, right_share
from omr_ray.atelier.stages.language_losses import NOT_SAID, LanguageLosses, with_answers
from omr_ray.atelier.stages.talk import ORDERS, draw_talk
from omr_ray.atelier.world import ASPECTS, parse, random_scene
from omr_ray.config.dialogue import TransformersLanguage
from omr_ray.loading import language_model_from
from omr_ray.types import UserError
from omr_ray.vlm.inputs import ConversationInputs
from omr_ray.vlm.templates import DESCRIBE, SPLIT, TO_PROMPT
from omr_ray.vlm.transformers_engine import TransformersEngine
from tests.tiny_qwen import make_tiny_qwen

IMAGE = np.zeros((32, 32, 3), np.uint8)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Every byte is a token, so that ids can be read back letter by letter."""
    path = make_tiny_qwen(tmp_path_factory.mktemp("qwen"))
    return ConversationInputs(AutoTokenizer.from_pretrained(path), Qwen2VLImageProcessorPil.from_pretrained(path))


def conversations(split="train"):
    return Conversations(split, lambda rng: (IMAGE, random_scene(rng)))


def fields(example):
    return json.loads(example.request.messages[1].text or "{}")


def test_every_answer_has_the_form_that_was_asked_for():
    rng, draw = np.random.default_rng(0), conversations()
    examples = [example for _ in range(10) for example in draw.descriptions(7, rng) + draw.prompts(8, rng) + draw.dialogues(8, rng)]
    for example in examples:
        example.request.form.model_validate_json(example.answer)
    named = {f"describe_{aspect}" for aspect in ASPECTS} | {"split", "clarify", "to_prompt", "route", "in_words"}
    assert {example.name for example in examples} == named


def test_labels_follow_from_what_the_model_reads():
    rng, draw = np.random.default_rng(1), conversations()
    for rounds in (1, 2, 3, 6) * 20:
        read = fields(example := draw.to_prompt(rounds, rng))
        assert json.loads(example.answer) == {"prompt": answers.to_prompt(read["history"], read["latest"])}
        example = draw.split_prompt(rng)
        assert json.loads(example.answer) == answers.split(fields(example)["prompt"])
        example = draw.ordered(rounds, rng)
        read = fields(example)
        assert any(order in read["latest"] for order in ORDERS["train"])
        if example.name == "to_prompt":
            assert json.loads(example.answer) == {"prompt": answers.to_prompt(read["history"], read["latest"])}
        else:
            assert json.loads(example.answer) == {"reply": "picture"}


def test_no_order_is_a_wish_and_none_that_is_judged_was_learnt():
    assert all(parse(order) == {} for orders in ORDERS.values() for order in orders)
    assert not set(ORDERS["train"]) & set(ORDERS["heldout"])


def test_intents_and_pictures_keep_to_their_split():
    rng = np.random.default_rng(2)
    for split in ("train", "heldout"):
        assert {split_of(draw_talk(split, rounds, rng).scene) for rounds in (1, 2, 4) * 10} == {split}
    assert {split_of(fresh_render(rng)[1]) for _ in range(20)} == {"heldout"}


def test_a_talk_is_what_its_prompts_say():
    talk = draw_talk("train", 5, np.random.default_rng(3))
    prompts = [system.split(". ")[0] for _, system in talk.history if system.startswith("a ")]
    assert len(prompts) == 4 and set(parse(prompts[-1])) <= set(talk.named)
    assert {aspect: getattr(talk.scene, aspect) for aspect in talk.named} == dict(talk.named)


EXAMPLES = [
    Example(name="describe_color", request=DESCRIBE["color"](images=(IMAGE,)), answer='{"description":"red"}'),
    Example(name="split", request=SPLIT(prompt="a hat"), answer='{"content":"hat"}'),
]


def test_the_answers_alone_are_learnt(inputs):
    batch, labels = with_answers(inputs, EXAMPLES, CPU)
    asked = inputs([example.request.messages for example in EXAMPLES], CPU)
    length, end = asked["input_ids"].shape[1], "<|im_end|>"
    for row, example in enumerate(EXAMPLES):
        said = labels[row][labels[row] != NOT_SAID]
        assert inputs.tokenizer.decode(said) == example.answer + end and len(said) == len(example.answer) + 1
        assert batch["input_ids"][row, length : length + len(said)].tolist() == said.tolist()
        assert batch["attention_mask"][row, length:].tolist() == [1] * len(said) + [0] * (labels.shape[1] - len(said))
    for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
        assert torch.equal(batch[name][:, :length], asked[name])
    assert torch.equal(batch["pixel_values"], asked["pixel_values"]) and batch["mm_token_type_ids"][:, length:].sum() == 0


class NextToken:
    """A network that knows the token after each column of `known`, and says of all other columns something wrong with certainty."""

    def __init__(self, vocabulary, known):
        self.vocabulary, self.known = vocabulary, known
        self.lm_head = lambda states: states

    def model(self, input_ids, **_):
        following = input_ids.roll(-1, 1)
        wrong = torch.full_like(following, self.vocabulary - 1)
        told = torch.zeros_like(following, dtype=torch.bool)
        told[:, self.known] = True
        return SimpleNamespace(last_hidden_state=50.0 * torch.nn.functional.one_hot(torch.where(told, following, wrong), self.vocabulary))


def test_the_loss_reads_the_states_before_each_token_of_the_answers(inputs):
    length = inputs([example.request.messages for example in EXAMPLES], CPU)["input_ids"].shape[1]
    longest = len(EXAMPLES[0].answer) + 1
    for known, expected in ((slice(length - 1, length + longest - 1), 0.0), (slice(0, length - 1), 50.0), (slice(length, None), None)):
        losses = LanguageLosses(NextToken(len(inputs.tokenizer), known), inputs, torch.nn.ModuleDict(), CPU)
        loss, seen = losses.answers(EXAMPLES)
        first_wrong = 2 * 50 / (longest + len(EXAMPLES[1].answer) + 1)  # of each answer only the first letter
        assert float(loss) == pytest.approx(first_wrong if expected is None else expected, abs=1e-3)
        assert len(seen) == 1  # one picture


def test_right_answers_are_counted_whole():
    def says(*texts):
        return SimpleNamespace(complete=lambda requests, max_tokens: list(texts))

    assert right_share(says('{"description": "red"}', '{"content":"hat"}'), EXAMPLES) == 1.0
    assert right_share(says('{"description":"red', '{"content":"hat","size":"small"}'), EXAMPLES) == 0.0
    assert right_share(says("red", '{"content":"hat","size":null}'), EXAMPLES) == 0.5


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A directory of weights in which the stage has run for 30 steps on few pictures, through `pretrain`; and its record."""
    out = tmp_path_factory.mktemp("weights") / "weights"
    shutil.copytree(WEIGHTS, out, ignore=shutil.ignore_patterns("language_model*", "logs"))
    record = json.loads((out / "pretrain.json").read_text())
    record.pop("language_model", None)
    (out / "pretrain.json").write_text(json.dumps(record))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(soft_renders, "RENDERS", 120)
        patch.setattr(soft_renders, "RECONSTRUCTED", 16)
        patch.setattr(soft_renders, "REPAINTED", 16)
        patch.setattr(loop, "STEPS_BETWEEN_LOGS", 5)
        patch.setattr(language_model, "PROMPTS", 4)
        patch.setattr(language_model, "DIALOGUES", 4)
        patch.setattr(language_model, "conversation_text", partial(language_model.conversation_text, count=10))
        patch.setattr(language_model, "language_figures", partial(language_figures, count=1))
        budget = language_model.Budget(steps=30, batch=7, learning_rate=2e-3, warmup=5, ema_decay=0.9)
        patch.setitem(pretrain.__globals__["STAGES"], "language_model", (language_model.train_language_model, budget))
        pretrain(out, stages=["language_model"])
    return out


@pytest.mark.timeout(900)
def test_thirty_steps_lower_every_loss(trained):
    rows = [json.loads(line) for line in (trained / "logs" / "language_model.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [5, 10, 15, 20, 25, 30]
    for name in ("loss", "descriptions", "prompts", "dialogues"):
        assert rows[-1][name] < 0.7 * rows[0][name], name


@pytest.mark.timeout(900)
def test_the_record_has_a_figure_for_every_template_and_aspect(trained):
    record = json.loads((trained / "pretrain.json").read_text())["language_model"]
    named = {f"{kind}_{aspect}" for kind in ("describe", "soft") for aspect in (*ASPECTS, "mean")}
    named |= {"split", "clarify", "to_prompt", "route", "in_words", "orders"}
    assert named <= set(record) and all(0 <= record[name] <= 1 for name in named)
    assert record["steps"] == 30 and record["seconds"] > 0


@pytest.mark.timeout(900)
def test_what_was_trained_answers_through_the_engine_of_large_models(trained):
    engine = TransformersEngine.from_pretrained(trained / "language_model")
    image = np.zeros((64, 64, 3), np.uint8)
    requests = [*(DESCRIBE[aspect](images=(image,)) for aspect in ASPECTS), TO_PROMPT["even"](history=[["a hat", "a hat"]], latest="red")]
    said = engine.complete([request.messages for request in requests], max_tokens=12)
    assert len(said) == 8 and all(len(engine.inputs.tokenizer(text)["input_ids"]) <= 16 for text in said)
    assert engine.network.config.text_config.max_position_embeddings == 4096
    assert sum(file.stat().st_size for file in (trained / "language_model").iterdir()) < 6e6


def test_a_language_model_that_is_not_there_yet_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(atelier, "WEIGHTS", tmp_path)
    with pytest.raises(UserError, match=r"language_model: these embedded weights are not there; make them with `omr-ray atelier pretrain`"):
        language_model_from(TransformersLanguage())


def test_the_stage_is_refused_before_those_it_needs(tmp_path):
    with pytest.raises(UserError, match="'language_model' needs 'autoencoder' first"):
        pretrain(tmp_path, stages=["language_model"])
