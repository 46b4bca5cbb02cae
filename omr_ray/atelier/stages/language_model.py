"""Stage 9: the language model of the dialogue, a small Qwen2.5-VL that answers every template of `vlm.templates`.

It starts as the reward model, which sees garments and reads prompts already, with one layer more and a tokenizer for which every
word of the templates, of the world and of JSON is one token. It learns from conversations whose pictures are renders, and
renders as autoencoder and policy give them back; scenes of the held-out split are in none of them.
"""

import copy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from omr_ray.atelier.dialogues import Split, split_of
from omr_ray.atelier.stages.conversations import Conversations, conversation_text
from omr_ray.atelier.stages.language_figures import language_figures
from omr_ray.atelier.stages.language_losses import LanguageLosses
from omr_ray.atelier.stages.loop import Budget, Trainer
from omr_ray.atelier.stages.qwen import WIDTH, build_qwen
from omr_ray.atelier.stages.renders import labels_of
from omr_ray.atelier.stages.soft_renders import SoftRenders
from omr_ray.atelier.stages.tokenizers import make_qwen_tokenizer
from omr_ray.atelier.world import ASPECTS, VALUES, Scene
from omr_ray.vlm.inputs import ConversationInputs
from omr_ray.vlm.reward_model import RewardModel
from omr_ray.vlm.transformers_engine import TransformersEngine

# batch: descriptions; the other two kinds of conversations are fewer and longer.
BUDGET = Budget(steps=3600, batch=14, learning_rate=2e-3, weight_decay=0.02, ema_decay=0.995)
PROMPTS, DIALOGUES = 12, 14
TOKENS = 1000
LAYERS, POSITIONS = 4, 4096


def start_from(network: Any, tokenizer: Any, reward_model: RewardModel) -> None:
    """Copy into `network` what it has in common with the reward model: the vision tower, the first layers, the words that both know."""
    known, other = network.model, reward_model.network
    known.visual.load_state_dict(other.visual.state_dict())
    for layer, trained in zip(known.language_model.layers, other.language_model.layers, strict=False):
        layer.load_state_dict(trained.state_dict())
    known.language_model.norm.load_state_dict(other.language_model.norm.state_dict())
    words, trained_words = tokenizer.get_vocab(), reward_model.inputs.tokenizer.get_vocab()
    with torch.no_grad():
        for word in words.keys() & trained_words.keys():
            known.language_model.embed_tokens.weight[words[word]] = other.language_model.embed_tokens.weight[trained_words[word]]


class SplitPictures:
    """Pictures of one split's scenes, out of a collection that has all of them."""

    def __init__(self, renders: SoftRenders, split: Split) -> None:
        self.renders = renders
        self.rows = np.array([row for row, scene in enumerate(renders.scenes) if split_of(scene) == split])

    def draw(self, noise: torch.Generator, rng: np.random.Generator) -> tuple[np.ndarray, Scene]:
        """A picture u8 [H W 3] and what it shows."""
        row = int(rng.choice(self.rows))
        pixels = self.renders.pixels(torch.tensor([row]), noise)[0]
        return (pixels * 255).round().byte().permute(1, 2, 0).numpy(), self.renders.scenes[row]


def train_language_model(out: Path, work: Path, *, budget: Budget, seed: int, device: torch.device) -> dict[str, float]:
    """Train, save to `out/language_model`; returns seconds and the share of right answers on held-out intents, by template."""
    torch.manual_seed(seed)
    renders = SoftRenders(out, work, seed, device, repainted=True)
    tokenizer = make_qwen_tokenizer(work / "language_tokenizer", conversation_text(seed), TOKENS)
    network, processor = build_qwen(tokenizer, layers=LAYERS, positions=POSITIONS)
    start_from(network, tokenizer, RewardModel.from_pretrained(out / "reward_model"))
    network = network.to(device).train()
    heads = nn.ModuleDict({aspect: nn.Linear(WIDTH, len(VALUES[aspect])) for aspect in ASPECTS}).to(device)
    losses = LanguageLosses(network, ConversationInputs(tokenizer, processor), heads, device)
    pictures = SplitPictures(renders, "train")

    def loss_at(numbers: np.random.Generator, noise: torch.Generator) -> dict[str, Tensor]:
        shown: list[Scene] = []

        def remembered(rng: np.random.Generator) -> tuple[np.ndarray, Scene]:
            image, scene = pictures.draw(noise, rng)
            shown.append(scene)
            return image, scene

        conversations = Conversations("train", remembered)
        descriptions = conversations.descriptions(budget.batch, numbers)
        labels = torch.tensor([labels_of(scene) for scene in shown])
        return losses(descriptions, conversations.prompts(PROMPTS, numbers), conversations.dialogues(DIALOGUES, numbers), labels)

    def publish() -> None:
        trainer.swap_ema()
        copy.deepcopy(network).half().save_pretrained(out / "language_model")
        trainer.swap_ema()

    modules = {"model": network, "heads": heads}
    trainer = Trainer("language_model", modules, budget, work=work, log=out / "logs" / "language_model.jsonl")
    tokenizer.save_pretrained(out / "language_model")
    processor.save_pretrained(out / "language_model")
    seconds = trainer.run(loss_at, seed=seed, on_checkpoint=publish)
    engine = TransformersEngine.from_pretrained(out / "language_model", device=str(device), batch_size=64)
    soft = partial(SplitPictures(renders, "heldout").draw, torch.Generator().manual_seed(seed))
    return {"seconds": seconds} | language_figures(engine, soft)
