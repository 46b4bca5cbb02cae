"""Stage 6: CLIP of the embedded world: an image and a text tower in one space (arXiv:2103.00020).

It compares and chooses (OMR table 1 and fig. 6; TDRI eq. 5). The text tower starts as the policy's text encoder, which can
read already. Batches hold pairs of scenes that differ in what a text says of them: among strangers the garment and the
color are enough to find one's text, and the belt would never be looked at (arXiv:2210.01936).
"""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from omr_ray.atelier.stages.loop import Budget, Trainer
from omr_ray.atelier.stages.pairs import PairMaker, fresh_pairs
from omr_ray.atelier.stages.soft_renders import SoftRenders
from omr_ray.atelier.stages.text_encoder import WIDTH, build_text_encoder, tokenize
from omr_ray.atelier.stages.tokenizers import save_tokenizer
from omr_ray.atelier.world import ASPECTS, VALUES, parse, prompt_of
from omr_ray.vlm.clip import Clip

BUDGET = Budget(steps=2000, batch=48, learning_rate=1.5e-3, weight_decay=0.05, ema_decay=0.995)
SIZE = 64


def build_clip(tokenizer: CLIPTokenizer) -> tuple[Any, Any]:
    """The untrained network, 8-pixel patches and three layers, and its image processor."""
    vision = {
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": SIZE,
        "patch_size": 8,
    }
    text = build_text_encoder(tokenizer).config.to_dict()
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH)
    processor = CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    return CLIPModel(config), processor


def contrastive_loss(similarity: Tensor, fits: Tensor) -> Tensor:
    """CLIP's loss, both ways, on logits f32 [N N] of images by texts; `fits` (bool [N N]) marks what is true of an image.

    A text that happens to be true of another image of the batch as well is no negative of it.
    """
    others = similarity.masked_fill(fits & ~torch.eye(len(fits), dtype=torch.bool, device=fits.device), -torch.inf)
    own = torch.arange(len(others), device=others.device)
    return (F.cross_entropy(others, own) + F.cross_entropy(others.T, own)) / 2


def fitting(prompts: list[str], labels: Tensor) -> Tensor:
    """bool [N N]: whether the scene with class numbers labels[i] (i64 [N 7]) shows all that prompts[j] names."""
    asked = torch.full((len(prompts), len(ASPECTS)), -1)
    for row, prompt in enumerate(prompts):
        for aspect, value in parse(prompt).items():
            asked[row, ASPECTS.index(aspect)] = VALUES[aspect].index(value)
    return ((asked[None] == labels[:, None]) | (asked[None] < 0)).all(2)


def train_clip(out: Path, work: Path, *, budget: Budget, seed: int, device: torch.device) -> dict[str, float]:
    """Train, save to `out/clip`; returns seconds and, by the one aspect changed, how often the fitting image of two is nearer."""
    torch.manual_seed(seed)
    renders = SoftRenders(out, work, seed, device, repainted=True)
    tokenizer = CLIPTokenizer.from_pretrained(out / "tokenizer")
    network, processor = build_clip(tokenizer)
    read = {name: value.float() for name, value in load_file(out / "text_encoder/model.safetensors").items()}
    network.text_model.load_state_dict({name.removeprefix("text_model."): value for name, value in read.items()})
    network = network.to(device)
    heads = nn.ModuleDict({aspect: nn.Linear(WIDTH, len(VALUES[aspect])) for aspect in ASPECTS}).to(device)
    pairs = PairMaker(renders.scenes)
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (processor.image_mean, processor.image_std))

    def loss_at(numbers: np.random.Generator, noise: torch.Generator) -> dict[str, Tensor]:
        batch = [pairs.draw(numbers) for _ in range(budget.batch)]
        rows = torch.tensor([pair.chosen for pair in batch] + [pair.rejected for pair in batch])
        prompts = [pair.prompt for pair in batch]
        prompts += [_same_aspects(pair.prompt, renders.scenes[pair.rejected]) for pair in batch]
        pixels = (renders.pixels(rows, noise).to(device) - mean) / std
        labels = renders.labels[rows]
        output = network(input_ids=tokenize(tokenizer, prompts).to(device), pixel_values=pixels)
        seen = output.vision_model_output.pooler_output
        aspects = torch.stack([F.cross_entropy(heads[a](seen), labels[:, i].to(device)) for i, a in enumerate(ASPECTS)]).sum()
        contrastive = contrastive_loss(output.logits_per_image, fitting(prompts, labels).to(device))
        return {"loss": contrastive + 0.3 * aspects, "contrastive": contrastive.detach(), "aspects": aspects.detach()}

    def publish() -> None:
        trainer.swap_ema()
        copy.deepcopy(network).half().save_pretrained(out / "clip")
        trainer.swap_ema()

    trainer = Trainer("clip", {"clip": network, "heads": heads}, budget, work=work, log=out / "logs" / "clip.jsonl")
    save_tokenizer(tokenizer, out / "clip")
    processor.save_pretrained(out / "clip")
    seconds = trainer.run(loss_at, seed=seed, on_checkpoint=publish)
    return {"seconds": seconds} | pairwise_accuracy(Clip.from_pretrained(out / "clip", device=str(device)))


def _same_aspects(prompt: str, scene: Any) -> str:
    """What is true of `scene` about the aspects that `prompt` names."""
    return prompt_of({aspect: getattr(scene, aspect) for aspect in parse(prompt)})


def pairwise_accuracy(clip: Clip, *, count: int = 200, seed: int = 50_000) -> dict[str, float]:
    """Share of fresh pairs of renders in which the fitting one is nearer to the text, for each aspect as the one thing wrong."""
    rng, accuracy = np.random.default_rng(seed), {}
    for aspect in ASPECTS:
        prompts, images = fresh_pairs(aspect, count, rng)
        score = clip.score(images, prompts * 2)
        accuracy[f"pairs_{aspect}"] = float((score[:count] > score[count:]).float().mean())
    return accuracy | {"pairs_mean": float(np.mean(list(accuracy.values())))}
