"""Tables of simulated dialogues, by hand; and a simulation that goes on where it was cut off."""

import json

import numpy as np
import pytest

from omr_ray import cli
from omr_ray.config.comparison import Excite
from omr_ray.config.serve import ServeConfig
from omr_ray.evaluation.interactive import figures
from omr_ray.evaluation.interactive.in_process import EngineSystem
from omr_ray.evaluation.interactive.kept import Kept
from omr_ray.evaluation.interactive.simulate import Simulation, Subject, simulated
from omr_ray.evaluation.interactive.talking import FULL, SCRATCH, VARIANTS, TalkedTurn
from omr_ray.evaluation.interactive.thresholds import ExcitedImage, excited_images
from omr_ray.types import UserError
from tests.scripted_models import ScriptedModels


def turn(dialogue, number, satisfied=False, **changes):
    plain = {"seed": 0, "utterance": "", "answer": None, "prompt": "a dress", "status": "done", "modality": "picture", "wrong": ("color",)}
    unknown = {"question": None, "answered": None, "ambiguity": None, "consistency": None, "seconds": 1.0}
    return TalkedTurn(dialogue=dialogue, turn=number, satisfied=satisfied, **plain | unknown | changes)


def ending(dialogue, at, limit=8, **changes):
    """The turns of a dialogue whose user is satisfied in turn `at`; None: never."""
    return [turn(dialogue, number, number == at, **changes) for number in range(1, (at or limit) + 1)]


# Turns that the users of intents a and b need, with seed 0 and seed 1.
FULL_TALKS = {0: ending("a", 2) + ending("b", 4), 1: ending("b", 4) + ending("a", 2)}
SILENT_TALKS = {0: ending("a", 3) + ending("b", None), 1: ending("a", 5) + ending("b", 8)}
FOUND = {"full": FULL_TALKS, "no-questions": SILENT_TALKS}


def rows(result, table=0):
    return dict(result.tables[table].rows)


def values(cells):
    return [cell.value for cell in cells]


def test_turns_used_by_intent_and_seed():
    assert figures.turns_used(FULL_TALKS, 8).tolist() == [[2, 2], [4, 4]]
    assert figures.turns_used(SILENT_TALKS, 8).tolist() == [[3, 5], [9, 8]]


def test_rounds_to_intent_and_what_is_lost_against_the_full_system():
    result = figures.overview(FOUND, 8)
    used, more, success, less, dialogues, faults, seconds = rows(result)["no-questions"]
    assert used.value == 6.25 and more.value == 3.25  # (4 + 8.5) / 2, and - 3
    assert (more.low, more.high) == (2.0, 4.5)  # the two intents: 4 - 2 and 8.5 - 4
    assert success.value == 0.75 and less.value == -0.25 and (less.low, less.high) == (-0.5, 0.0)
    assert (dialogues.value, faults.value, seconds.value) == (4, 0, 6.0)  # (3 + 5) / 2 and (8 + 8) / 2 turns of a second
    assert rows(result)["full"][0].value == 3 and rows(result)["full"][1].text == "–"
    assert values(rows(result, 1)["no-questions"]) == [0, 0, 0.25, 0, 0.25, 0, 0, 0.25, 0.25]


def test_turns_without_an_image_are_counted():
    talks = {0: [turn("a", 1, status="failed"), turn("a", 2, modality="words"), turn("a", 3, True)]}
    assert rows(figures.overview({"full": talks}, 8))["full"][5].value == 2


def test_success_by_turns_beside_the_papers():
    result = figures.success_by_turns(FOUND, 8)
    assert values(rows(result)["full"]) == [0.5, 1, 1, 1]
    assert values(rows(result)["no-questions"]) == [0, 0.25, 0.5, 0.75]
    assert values(rows(result)["the paper"]) == [70, 85, 87, 88] and rows(result)["the paper"][0].published
    assert values(rows(result, 1)["no-questions"]) == [-0.5, -0.75, -0.5, -0.25]


def test_questions_by_what_became_of_them():
    asked = {"question": "color", "answered": True, "ambiguity": 0.5}
    talks = {0: [turn("a", 1, **asked), turn("a", 2, **asked | {"answered": False}), turn("a", 3, True, **asked | {"answered": None})]}
    talks[0] += [turn("b", 1), turn("b", 2, True, question="size", ambiguity=0.1)]
    result = figures.questions({"full": talks, "no-questions": SILENT_TALKS})
    assert values(rows(result)["full"]) == [4, 1, 1, 2, 0.75, pytest.approx(0.4)]
    assert {aspect: values(cells) for aspect, cells in rows(result, 1).items()} == {"color": [3], "size": [1]}
    assert "no-questions" not in rows(result)


def test_editing_beside_painting_anew():
    edits = {0: [turn("a", 1), turn("a", 2, consistency=0.9), turn("a", 3, True, consistency=0.7), turn("b", 1, True)]}
    anew = {0: [turn("a", 1), turn("a", 2, consistency=0.5), *ending("b", None)[:2]]}
    result = figures.edit_or_scratch({"full": edits, "scratch": anew}, 2)
    assert values(rows(result)["editing"]) == [pytest.approx(0.8), 0.5, 2.0, 0.88, 90]  # turn 3 is beyond the limit of 2
    assert values(rows(result)["from scratch"])[:3] == [0.5, 0, 3.0]
    assert values(rows(result)["editing, change"])[:3] == [pytest.approx(0.3), 0.5, -1.0]
    (gap,) = figures.edit_or_scratch({"full": edits}, 2).missing
    assert gap.remedy == "add scratch to --variants"


def test_thresholds_by_share_of_use_and_gain():
    def images(seed):
        told = [ExcitedImage(dialogue="a", threshold=None, used=False, accuracy=0.5, similarity=0.2)]
        for threshold in Excite().thresholds:
            used = threshold < 0.7
            told.append(
                ExcitedImage(dialogue="a", threshold=threshold, used=used, accuracy=0.5 + 0.25 * used, similarity=0.2 + 0.1 * used * seed)
            )
        return told

    result = figures.attend_and_excite({0: images(0), 1: images(1)})
    assert list(rows(result)) == ["0.8", "0.75", "0.73", "0.7", "0.68", "0.66", "without"]
    assert values(rows(result)["0.66"]) == [1, pytest.approx(25), 0.25, 95.8, 1.3]  # 0.05 of 0.2
    assert values(rows(result)["0.7"]) == [0, 0, 0, 51.6, 2.36]
    assert values(rows(result)["without"])[1:3] == [0.2, 0.5]


def test_every_threshold_paints_the_intents_from_the_same_noise():
    from omr_ray.atelier.dialogues import make_dialogues
    from omr_ray.config.generation import AttendAndExcite

    class Painter:
        calls = []

        def excited(self, prompts, seeds, settings, adapter):
            self.calls.append((tuple(prompts), tuple(seeds), settings and settings.threshold, settings and settings.iterations, adapter))
            return np.zeros((len(prompts), 64, 64, 3), np.uint8), np.full(len(prompts), settings is not None)

        def similarity(self, images, texts):
            return np.full(len(texts), 0.25, np.float32)

        def accuracy(self, images, prompts):
            return np.ones(len(prompts))

    painter, dialogues = Painter(), make_dialogues("heldout", 2, rounds=1)
    found = excited_images(painter, painter, dialogues, seed=3, settings=AttendAndExcite(iterations=2), adapter="x")
    assert [call[2:] for call in painter.calls] == [(None, None, "x"), *((threshold, 2, "x") for threshold in Excite().thresholds)]
    assert len({call[:2] for call in painter.calls}) == 1 and painter.calls[0][0] == tuple(dialogue.intent for dialogue in dialogues)
    assert len(found) == 14 and [one.used for one in found] == [False, False] + [True] * 12


# -- the whole -----------------------------------------------------------------------------------------------------------


class Counted:
    """A subject of scripted models that counts how many systems were asked for."""

    def __init__(self):
        self.models, self.systems = ScriptedModels(miss=0.25), []

    def read(self, images):
        return self.models.read(images)

    def system(self, variant):
        self.systems.append(variant.name)
        return EngineSystem(self.models, ServeConfig(), variant)

    def subject(self):
        variants = (FULL, VARIANTS["no-questions"], SCRATCH)
        return Subject(system=self.system, excited=None, variants=variants, made_by=lambda variant: f"scripted {variant.name}")


def test_a_simulation_that_was_cut_off_repeats_nothing(tmp_path):
    counted, simulation = Counted(), Simulation(intents=3, seeds=(0, 1), max_turns=4)
    first = simulated(ServeConfig(), Kept(str(tmp_path)), simulation, counted.subject(), counted)
    assert counted.systems == ["full"] * 2 + ["no-questions"] * 2 + ["scratch"] * 2 and first["parts"] == first["of"] == 6
    (tmp_path / "talks/scratch/seed-1/part-00000.parquet").unlink()
    again = simulated(ServeConfig(), Kept(str(tmp_path)), simulation, counted.subject(), counted)
    assert counted.systems[6:] == ["scratch"] and again["parts"] == 1
    steady = [[row for row in told["figures"] if row["column"] != "seconds a dialogue"] for told in (first, again)]
    assert steady[0] == steady[1] and len(steady[0]) > 30
    page = (tmp_path / "report.html").read_text()
    assert "scripted no-questions" in page and "the paper" in page and "data:image/png;base64" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert json.loads((tmp_path / "success-by-turns.json").read_text())["figures"]
    more = Simulation(intents=3, seeds=(0, 1, 2), max_turns=4)
    assert simulated(ServeConfig(), Kept(str(tmp_path)), more, counted.subject(), counted)["parts"] == 3
    with pytest.raises(UserError, match="made with other settings"):
        simulated(ServeConfig(), Kept(str(tmp_path)), Simulation(intents=4, max_turns=4), counted.subject(), counted)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--variants", "nope"], "'nope' is unknown; choose among full, no-questions"),
        (["--variants", "no-adapter", "--url", "http://127.0.0.1:9"], "no-adapter cannot be had here"),
        (["--seeds", "0", "0"], "different numbers"),
        (["--skip-probability", "2"], "must lie in 0..1, got 2"),
        (["--url", "http://127.0.0.1:9", "--adapter", "x"], "--adapter goes without --url"),
        (["--url", "http://127.0.0.1:9", "--key-env", "NO_SUCH_KEY"], "NO_SUCH_KEY is empty"),
        (["model={kind: diffusers, path: x}"], "model.kind is not atelier"),
    ],
)
def test_what_cannot_be_simulated_is_refused(arguments, says, tmp_path, capsys):
    assert cli.main(["simulate", "configs/serve_atelier.yaml", "--out", str(tmp_path), *arguments]) == 2
    assert says in capsys.readouterr().err and not list(tmp_path.iterdir())
