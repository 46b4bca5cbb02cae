import numpy as np
import pytest

from omr_ray.atelier.world import (
    ASPECTS,
    VALUES,
    WORDINGS,
    Scene,
    all_scenes,
    named_at,
    parse,
    phrase,
    prompt_of,
    random_part,
    random_scene,
    utterance,
)

COAT = {"content": "coat", "style": "striped", "color": "red", "background": "snow"}


def test_the_world_has_every_combination_once():
    assert len(set(all_scenes())) == 7 * 4 * 6 * 3 * 8 * 3 * 4 == 48_384


def test_prompt_by_hand():
    assert prompt_of(COAT) == "a red striped coat in the snow"
    assert prompt_of({"others": "belt", "perspective": "left"}) == "a garment with a belt seen from the left"


def test_every_scene_reads_back_from_its_prompt():
    assert all(parse(prompt_of(scene.aspects())) == scene.aspects() for scene in all_scenes())


def test_every_wording_names_one_value_of_one_aspect():
    for aspect, values in WORDINGS.items():
        for value, wordings in values.items():
            for wording in wordings:
                assert parse(f"a {wording}, please") == {aspect: value}


def test_paraphrases_and_utterances_read_back():
    rng = np.random.default_rng(0)
    for _ in range(500):
        part = random_part(random_scene(rng), rng, low=1)
        assert parse(phrase(part, rng)) == part
        assert parse(utterance(part, rng)) == part
        assert parse(utterance(part, rng, first=True)) == part


def test_the_last_mention_stands():
    assert parse("a red coat, no, a blue one") == {"content": "coat", "color": "blue"}
    assert parse("") == {} == parse("good morning")


def test_words_inside_other_words_are_not_read():
    assert parse("a hatstand, undressed, a blackboard") == {}


def test_where_aspects_are_named():
    assert named_at("a red coat") == {"color": 5, "content": 10}


def test_a_part_agrees_with_its_scene():
    rng = np.random.default_rng(1)
    scene = random_scene(rng)
    sizes = {len(random_part(scene, rng)) for _ in range(200)}
    assert sizes == {2, 3, 4, 5, 6, 7}
    assert all(getattr(scene, aspect) == value for aspect, value in random_part(scene, rng).items())


def test_unknown_values_are_refused_with_what_is_known():
    with pytest.raises(ValueError, match="unknown color 'mauve'; the world has red, orange"):
        prompt_of({"color": "mauve"})
    with pytest.raises(ValueError, match="unknown aspect 'fabric'"):
        phrase({"fabric": "wool"}, np.random.default_rng(0))
    with pytest.raises(ValueError, match="unknown content 'sock'"):
        Scene(**{aspect: values[0] for aspect, values in VALUES.items()} | {"content": "sock"})


def test_a_scene_can_be_edited():
    scene = random_scene(np.random.default_rng(2))
    edited = scene.with_aspects({"color": "pink"})
    assert edited.color == "pink"
    assert all(getattr(edited, aspect) == getattr(scene, aspect) for aspect in ASPECTS if aspect != "color")
