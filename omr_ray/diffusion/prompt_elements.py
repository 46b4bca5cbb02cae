"""Which tokens of a prompt are its elements: what Attend-and-Excite looks for in the picture (TDRI eq. 8).

The rule: an element is a content word, that is, every word but the stop words below, single ASCII letters and digits (half of
"t-shirt"; CLIP cuts numbers into digits), ends of contractions ("'re") and what has no letter at all. A word that the
tokenizer cuts into pieces is one element. The papers let a person choose the tokens; in a dialogue nobody does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Words that name nothing to be seen, by kind.
_ARTICLES_AND_PRONOUNS = """a an the this that these those it its i you he she they we me him her them my your his their our one some any
each"""
_PREPOSITIONS_AND_CONJUNCTIONS = """and or but of in on at by to from with for into onto over under above below behind beside between near
against among around through as up down off out about like"""
_AUXILIARIES = "is are was were be been being am do does did has have had can could will would should may might must"
_NEGATIONS = "no not nothing without"  # what follows names what is not there; the word itself cannot be looked for
_THE_PICTURE = "picture photo photograph image view seen"
STOP_WORDS = frozenset(" ".join([_ARTICLES_AND_PRONOUNS, _PREPOSITIONS_AND_CONJUNCTIONS, _AUXILIARIES, _NEGATIONS, _THE_PICTURE]).split())


def prompt_elements(tokenizer: Any, ids: Sequence[int]) -> list[list[int]]:
    """For each element of a prompt, in its order, the places of its tokens among the CLIP token ids `ids` [L].

    Example: "a red t-shirt" as <start> a red t - shirt <end> gives [[2], [5]].
    """
    special = set(tokenizer.all_special_ids)
    elements, word = [], []
    for place, (number, token) in enumerate(zip(ids, tokenizer.convert_ids_to_tokens(list(ids)), strict=True)):
        if number in special:
            continue
        word.append(place)
        if token.endswith("</w>"):  # how CLIP's tokenizer marks the end of a word
            if _is_content(tokenizer.decode([ids[part] for part in word]).strip().lower()):
                elements.append(word)
            word = []
    return elements


def element_weights(tokenizer: Any, prompt_ids: np.ndarray) -> Tensor:
    """The elements of N prompts as weights f32 [N M L]: row m averages the tokens of element m, and is 0 where there are fewer than M.

    prompt_ids i64 [N E L]. SDXL's two encoders cut words alike, so the first one's ids [:, 0] say where a word stands.
    """
    found = [prompt_elements(tokenizer, ids) for ids in prompt_ids[:, 0].tolist()]
    weights = torch.zeros(len(found), max(1, *map(len, found)), prompt_ids.shape[-1])
    for row, elements in enumerate(found):
        for number, places in enumerate(elements):
            weights[row, number, places] = 1 / len(places)
    return weights


def _is_content(word: str) -> bool:
    if word in STOP_WORDS or word.startswith("'") or (len(word) == 1 and word.isascii()):
        return False
    return any(character.isalnum() for character in word)
