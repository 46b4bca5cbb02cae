"""Stage 3: two tokenizers in their families' real formats, trained on the world's text.

CLIP's is byte-level BPE with an end-of-word mark; Qwen's is byte-level BPE without one, with the chat and
vision tokens. Both hold all 256 bytes, so any text can be encoded, only less compactly.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer, Qwen2Tokenizer

from omr_ray.atelier.world import ASPECTS, VALUES, phrase, prompt_of, random_part, random_scene, utterance

PROMPT_TOKENS = 32
QWEN_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

# Chat roles and the words of questions and summaries, so that talk about pictures is one token a word as well.
_TALK = """system user assistant you are a helpful assistant describe the image what is the garment in this picture which
do you want should it have answer yes or no does the picture show this prompt how well does the image match the prompt
summarise summarize the dialogue into one prompt so far the user said latest wish history question would you like
the user may skip this question please rate score good bad image picture prompt description feedback change nothing else"""


def world_text(seed: int, count: int = 4000) -> Iterator[str]:
    """Prompts, paraphrases and utterances about random scenes, then the words of talk about them."""
    rng = np.random.default_rng([seed, count])
    for _ in range(count):
        part = random_part(random_scene(rng), rng)
        yield from (prompt_of(part), phrase(part, rng), utterance(part, rng), utterance(part, rng, first=True))
    for aspect in ASPECTS:
        for value in VALUES[aspect]:
            yield from [f"{aspect} {value} {aspect} {value}"] * 20
    yield from [_TALK] * 20


def _train_bpe(like: Tokenizer, text: Iterable[str], vocab_size: int, suffix: str) -> tuple[list[str], list[Any]]:
    """The alphabet and merges learnt from text that is normalised and split as `like` does."""
    mark: dict[str, Any] = {"end_of_word_suffix": suffix} if suffix else {}
    learner = Tokenizer(models.BPE(**mark))
    learner.normalizer, learner.pre_tokenizer = like.normalizer, like.pre_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False, **mark)
    learner.train_from_iterator(text, trainer)
    merges = json.loads(learner.to_str())["model"]["merges"]
    return alphabet, [tuple(merge) for merge in merges]


def save_tokenizer(tokenizer: CLIPTokenizer | Qwen2Tokenizer, directory: Path) -> None:
    """`save_pretrained`, and beside it the two older files `vocab.json` and `merges.txt` that many programs read."""
    tokenizer.save_pretrained(directory)
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    (directory / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False) + "\n")
    (directory / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in model["merges"]))


def make_clip_tokenizer(directory: Path, seed: int) -> CLIPTokenizer:
    """Train and save a CLIP tokenizer with a context of 32 tokens, or load the one that a stopped run left there.

    Merges of equal count come out in any order: a second training could give other ids than the weights know.
    """
    if (directory / "tokenizer.json").exists():
        return CLIPTokenizer.from_pretrained(directory)
    alphabet, merges = _train_bpe(CLIPTokenizer().backend_tokenizer, world_text(seed), 900, "</w>")
    tokens = [*alphabet, *(f"{byte}</w>" for byte in alphabet), *("".join(merge) for merge in merges)]
    tokens = list(dict.fromkeys(tokens)) + ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: i for i, token in enumerate(tokens)}
    tokenizer = CLIPTokenizer(vocab, merges, model_max_length=PROMPT_TOKENS)
    save_tokenizer(tokenizer, directory)
    return tokenizer


def make_qwen_tokenizer(directory: Path, text: Iterable[str], size: int = 900) -> Qwen2Tokenizer:
    """Train and save a Qwen2 tokenizer, `size` tokens and those of chat and vision, or load the one that a stopped run left there."""
    if (directory / "tokenizer.json").exists():
        return Qwen2Tokenizer.from_pretrained(directory)
    alphabet, merges = _train_bpe(Qwen2Tokenizer().backend_tokenizer, text, size, "")
    tokens = list(dict.fromkeys([*alphabet, *("".join(merge) for merge in merges)]))
    vocab = {token: i for i, token in enumerate([*tokens, *QWEN_TOKENS])}
    tokenizer = Qwen2Tokenizer(
        vocab,
        merges,
        eos_token="<|im_end|>",
        additional_special_tokens=list(QWEN_TOKENS[1:]),
        model_max_length=1024,
    )
    save_tokenizer(tokenizer, directory)
    return tokenizer
