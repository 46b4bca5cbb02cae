"""What the reward model learns from one pass over pairs of images under one prompt.

preference   the preference loss on the answer position (OMR section 3.2), and one common zero for all prompts
running      the same reward read after every word: is what was said so far true?
caption      the words of the prompt, predicted from the image that fits and the words before
aspects      the seven aspects of the image, from the token behind it, through heads that are thrown away
truth        each named aspect on its own, at its last word: true or not? Through a head that is thrown away

All but the first say where to look, which a single bit a pair would take far longer to teach.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Qwen2Tokenizer

from omr_ray.algorithm.preference import preference_loss
from omr_ray.atelier.stages.pairs import Pair
from omr_ray.atelier.world import ASPECTS, named_at
from omr_ray.vlm.reward_model import RewardModel

SHARPNESS = 5.0  # margin of the reward, which is a mean of normalised activations, to log-odds


def word_ends(prompt: str, tokenizer: Qwen2Tokenizer) -> list[int]:
    """For each token of the prompt the index just behind its last character."""
    return [end for _, end in tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]]


def truth_so_far(prompt: str, changed: frozenset[str], tokenizer: Qwen2Tokenizer) -> list[float]:
    """For each token of the prompt, 1 while nothing said up to its end is among the changed aspects, then 0."""
    first_lie = min((at for aspect, at in named_at(prompt).items() if aspect in changed), default=len(prompt) + 1)
    return [float(end < first_lie) for end in word_ends(prompt, tokenizer)]


def truth_by_aspect(prompt: str, changed: frozenset[str], tokenizer: Qwen2Tokenizer) -> list[float]:
    """For each token that ends the naming of an aspect, 1 if that aspect is not among the changed ones, else 0; -1 elsewhere."""
    named = {at: float(aspect not in changed) for aspect, at in named_at(prompt).items()}
    return [named.get(end, -1.0) for end in word_ends(prompt, tokenizer)]


class Losses:
    """The losses of a batch of pairs; rows 0..n-1 are the chosen images, n..2n-1 the rejected ones."""

    def __init__(self, model: RewardModel, heads: nn.ModuleDict, truth: nn.Linear | None = None) -> None:
        self.model, self.heads, self.truth, self.tokenizer = model, heads, truth, model.inputs.tokenizer
        self.image_end = self.tokenizer.convert_tokens_to_ids("<|vision_end|>")

    def __call__(self, images: Tensor, pairs: Sequence[Pair], labels: Tensor) -> dict[str, Tensor]:
        """images f32 [2n 3 64 64] in 0..1, labels i64 [2n 7]; "loss" is the weighted sum, the other parts are detached."""
        count = len(pairs)
        inputs = self.model.inputs(images, [pair.prompt for pair in pairs] * 2)
        hidden = self.model.network.base_model(**inputs, use_cache=False).last_hidden_state
        score = hidden.mean(2)[torch.arange(2 * count, device=images.device), inputs["attention_mask"].sum(1) - 1]
        begin = int((inputs["input_ids"][0] == self.image_end).nonzero()[0]) + 1
        seen, words = hidden[:, begin - 1], hidden[:, begin:]
        aspects = [F.cross_entropy(self.heads[aspect](seen), labels[:, i]) for i, aspect in enumerate(ASPECTS)]
        parts = {
            "preference": _preference(score[:count], score[count:]),
            "running": _agreement(SHARPNESS * words.mean(2), self._told(truth_so_far, pairs, images.device)),
            "caption": self._caption(hidden[:count, begin - 1 :], inputs["input_ids"][:count, begin:], pairs),
            "aspects": torch.stack(aspects).sum(),
        }
        loss = parts["preference"] + parts["running"] + 0.3 * parts["caption"] + 0.3 * parts["aspects"]
        if self.truth is not None:
            parts["truth"] = _agreement(self.truth(words)[..., 0], self._told(truth_by_aspect, pairs, images.device))
            loss = loss + parts["truth"]
        parts["right"] = (score[:count] > score[count:]).float().mean()
        return {"loss": loss} | {name: value.detach() for name, value in parts.items()}

    def _told(self, tell, pairs: Sequence[Pair], device: torch.device) -> Tensor:
        """What `tell` says of every word for both rows of every pair: f32 [2n words], -1 where nothing is told."""
        rows = [tell(pair.prompt, frozenset(), self.tokenizer) for pair in pairs]
        rows += [tell(pair.prompt, pair.changed, self.tokenizer) for pair in pairs]
        return nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=-1).to(device)

    def _caption(self, before: Tensor, ids: Tensor, pairs: Sequence[Pair]) -> Tensor:
        """Cross-entropy of the prompts' tokens `ids` [n L] given the states before each of them [n L+1 D]."""
        told = self._told(truth_so_far, pairs, ids.device)[: len(pairs)] >= 0
        length = told.shape[1]
        return F.cross_entropy(self.model.network.lm_head(before[:, :length][told]), ids[:, :length][told])


def _preference(chosen: Tensor, rejected: Tensor) -> Tensor:
    pair = preference_loss(chosen, rejected, beta=SHARPNESS).mean()
    # The difference alone would let scores drift apart between prompts; here fitting and not have one zero for all.
    return pair + 0.5 * (F.softplus(-SHARPNESS * chosen) + F.softplus(SHARPNESS * rejected)).mean()


def _agreement(logits: Tensor, told: Tensor) -> Tensor:
    """Binary cross-entropy of logits [N L] against told [N L'] in {0, 1}, where it is not -1."""
    logits = logits[:, : told.shape[1]]
    return F.binary_cross_entropy_with_logits(logits[told >= 0], told[told >= 0])
