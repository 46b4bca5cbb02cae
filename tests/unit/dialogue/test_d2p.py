import json

import numpy as np
import pytest

from omr_ray.dialogue.d2p import Exchange, context_vector, preferred, to_prompt
from omr_ray.vlm.templates import TO_PROMPT

HISTORY = (Exchange("i want a dress", "a dress. Which color?"), Exchange("blue", "a blue dress"))
VECTORS = {"i want a dress": [1, 0], "a dress. Which color?": [3, 0], "blue": [0, 2], "a blue dress": [0, 6], "larger": [10, 20]}


def embed(texts):
    return np.array([VECTORS[text] for text in texts])


class Model:
    def complete(self, conversations, *, max_tokens):
        ((self.system, self.user),) = conversations
        return ['{"prompt": "a large blue dress"}']


@pytest.mark.parametrize(
    ("w_h", "w_u", "wording"),
    [(1, 0, "history"), (0.7, 0.3, "history"), (2, 1, "even"), (0.5, 0.5, "even"), (1, 2, "even"), (0.3, 0.7, "latest"), (0, 1, "latest")],
)
def test_the_ratio_of_the_weights_decides_between_three_wordings(w_h, w_u, wording):
    model = Model()
    assert to_prompt(model, HISTORY, "larger", w_h=w_h, w_u=w_u) == "a large blue dress"
    assert preferred(w_h, w_u) == wording
    assert model.system.text == TO_PROMPT[wording].instruction


def test_history_and_latest_utterance_are_fields_of_the_users_message():
    model = Model()
    to_prompt(model, HISTORY, "larger", w_h=1, w_u=1)
    assert model.user.role == "user"
    assert json.loads(model.user.text) == {"history": [list(exchange) for exchange in HISTORY], "latest": "larger"}


def test_the_context_vector_by_hand():
    context = context_vector(embed, HISTORY, "larger", w_h=0.5, w_u=0.25)
    assert context.dtype == np.float32
    np.testing.assert_array_equal(context, [0.5 * 1 + 2.5, 0.5 * 2 + 5])  # the history's mean is [1, 2]


def test_without_history_only_the_utterance_counts():
    np.testing.assert_array_equal(context_vector(embed, (), "larger", w_h=0.5, w_u=0.25), [2.5, 5])
