"""What the embedded language model learns from a batch of conversations.

answer       cross-entropy of the answer's tokens and of the token that ends it, given the conversation; nothing else is learnt to say
aspects      the seven aspects of the picture, from the token behind it, through heads that are thrown away: seven labels a picture
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omr_ray.atelier.stages.conversations import Example
from omr_ray.vlm.inputs import ConversationInputs

NOT_SAID = -100  # a label that cross-entropy passes over
END = "<|im_end|>"


def with_answers(inputs: ConversationInputs, examples: Sequence[Example], device: torch.device) -> tuple[dict[str, Tensor], Tensor]:
    """The network's inputs for N conversations of which each is followed by its answer, and the labels of the answers, i64 [N A].

    The conversations are as at inference, padded on the left, and end at column L; the answers fill the A columns behind it from the
    left. The state at column L - 1 + a is to give label a, so that the labels are the last A tokens, or NOT_SAID.
    """
    batch = inputs([example.request.messages for example in examples], device)
    end = inputs.tokenizer.convert_tokens_to_ids(END)
    rows = [torch.tensor([*inputs.tokenizer(example.answer, add_special_tokens=False)["input_ids"], end]) for example in examples]
    labels = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=NOT_SAID).to(device)
    said = (labels != NOT_SAID).long()
    batch["input_ids"] = torch.cat([batch["input_ids"], labels.where(said.bool(), end)], 1)
    batch["attention_mask"] = torch.cat([batch["attention_mask"], said], 1)
    batch["mm_token_type_ids"] = torch.cat([batch["mm_token_type_ids"], torch.zeros_like(said)], 1)
    return batch, labels


class LanguageLosses:
    """The losses of batches of conversations under one network, a ForConditionalGeneration."""

    def __init__(self, network: Any, inputs: ConversationInputs, heads: nn.ModuleDict, device: torch.device) -> None:
        self.network, self.inputs, self.heads, self.device = network, inputs, heads, device
        self.image_end = inputs.tokenizer.convert_tokens_to_ids("<|vision_end|>")

    def answers(self, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy of a token of the answers, and the states f32 [M D] behind the M pictures."""
        batch, labels = with_answers(self.inputs, examples, self.device)
        states = self.network.model(**batch, use_cache=False).last_hidden_state
        before = states[:, -labels.shape[1] - 1 : -1]
        said = labels != NOT_SAID
        return F.cross_entropy(self.network.lm_head(before[said]), labels[said]), states[batch["input_ids"] == self.image_end]

    def __call__(
        self, descriptions: Sequence[Example], prompts: Sequence[Example], dialogues: Sequence[Example], shown: Tensor
    ) -> dict[str, Tensor]:
        """shown i64 [N 7]: the class numbers of the descriptions' pictures. "loss" is the weighted sum, the other parts are detached."""
        parts = {}
        parts["descriptions"], seen = self.answers(descriptions)
        parts["prompts"], _ = self.answers(prompts)
        parts["dialogues"], _ = self.answers(dialogues)
        named = [F.cross_entropy(head(seen), shown[:, i].to(self.device)) for i, head in enumerate(self.heads.values())]
        parts["aspects"] = torch.stack(named).sum()
        loss = parts["descriptions"] + parts["prompts"] + parts["dialogues"] + 0.1 * parts["aspects"]
        return {"loss": loss} | {name: value.detach() for name, value in parts.items()}
