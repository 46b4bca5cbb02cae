"""Metrics say what their libraries say of the same images: tiny models with random weights, in the real formats."""

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torchmetrics.functional.multimodal import clip_score
from transformers import BlipConfig, BlipForImageTextRetrieval, CLIPModel
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from omr_ray.config.comparison import ComparisonConfig
from omr_ray.config.run import DiffusersModel, RunConfig
from omr_ray.evaluation.asked import Asked
from omr_ray.evaluation.measuring import metric_from
from omr_ray.types import UserError
from tests.tiny import WIDTH, make_tiny_clip, make_tiny_sd, tokenizer

SIDE = 16
TEXTS = ["a red dress", "a hat at night", "shorts"]


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def asked(images):
    return [
        Asked(
            dialogue="d",
            round=n + 1,
            sibling=0,
            image=image,
            prompt=text,
            intent=TEXTS[0],
            previous=images[n - 1] if n else None,
            target=images[0],
        )
        for n, (image, text) in enumerate(zip(images, TEXTS, strict=True))
    ]


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory):
    return make_tiny_clip(tmp_path_factory.mktemp("clip") / "model")


@pytest.fixture(scope="module")
def tiny_blip(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("blip")
    text = {
        "vocab_size": 514,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "encoder_hidden_size": 16,
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": 8,
    }
    special = {"bos_token_id": 512, "eos_token_id": 513, "pad_token_id": 513, "sep_token_id": 513}
    config = BlipConfig(text_config={**text, **special}, vision_config=vision, image_text_hidden_size=8)
    BlipForImageTextRetrieval(config).save_pretrained(path)
    tokenizer().save_pretrained(path)
    BlipImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(path)
    return path


def measured(name, asked, metrics, run=None):
    config = ComparisonConfig(name="t", run="unused", metrics=metrics)
    found = metric_from(name, config, run or RunConfig(name="t")).measure(asked)
    return {(value.measure, value.round): value.value for value in found if value.value is not None}


class OfTensors(CLIPModel):
    """CLIP as torchmetrics 1.9 expects it: since transformers 5 its features come inside an output object."""

    def get_image_features(self, *given, **named):
        return super().get_image_features(*given, **named).pooler_output

    def get_text_features(self, *given, **named):
        return super().get_text_features(*given, **named).pooler_output


def test_clip_is_torchmetrics_clip_score(asked, images, tiny_clip):
    found = measured("clip", asked, ({"type": "clip", "path": str(tiny_clip)},))
    model, processor = OfTensors.from_pretrained(tiny_clip), CLIPImageProcessorPil.from_pretrained(tiny_clip)

    def both(text=None, images=None, **options):  # the processor that torchmetrics calls: transformers' own needs torchvision
        made = {} if text is None else dict(tokenizer()(text, padding="max_length", truncation=True, return_tensors="pt"))
        return made | ({} if images is None else dict(processor(images, return_tensors="pt", input_data_format="channels_first")))

    for n, text in enumerate(TEXTS):
        library = clip_score(torch.tensor(images[n]).movedim(-1, 0), text, model_name_or_path=lambda: (model, both))
        assert max(0.0, 100 * found["prompt", n + 1]) == pytest.approx(float(library), abs=1e-3)
    assert found["target", 1] == pytest.approx(1, abs=1e-5)


def test_blip_is_the_models_own_retrieval_score(asked, images, tiny_blip):
    found = measured("blip", asked, ({"type": "blip", "path": str(tiny_blip)},))
    model = BlipForImageTextRetrieval.from_pretrained(tiny_blip).eval()
    pixels = BlipImageProcessorPil.from_pretrained(tiny_blip)(
        list(images), return_tensors="pt", input_data_format="channels_last"
    ).pixel_values
    for n, text in enumerate(TEXTS):
        inputs = tokenizer()([text], return_tensors="pt")
        with torch.no_grad():
            said = model(
                input_ids=inputs.input_ids, attention_mask=inputs.attention_mask, pixel_values=pixels[n : n + 1], use_itm_head=False
            )
        assert found["prompt", n + 1] == pytest.approx(float(said.itm_score), abs=1e-4)


def test_an_aesthetic_head_is_its_layers_on_the_unit_embedding(asked, images, tiny_clip, tmp_path):
    rng = np.random.default_rng(1)
    shapes = {"layers.0.weight": (4, WIDTH), "layers.0.bias": (4,), "layers.2.weight": (1, 4), "layers.2.bias": (1,)}
    head = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    save_file(head, tmp_path / "head.safetensors")
    settings = {"type": "aesthetic", "path": str(tmp_path / "head.safetensors"), "clip": str(tiny_clip)}
    found = measured("aesthetic", asked, (settings,))
    pixels = CLIPImageProcessorPil.from_pretrained(tiny_clip)(
        list(images), return_tensors="pt", input_data_format="channels_last"
    ).pixel_values
    with torch.no_grad():
        unit = CLIPModel.from_pretrained(tiny_clip).get_image_features(pixels).pooler_output.numpy()
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    wanted = (unit @ head["layers.0.weight"].T + head["layers.0.bias"]) @ head["layers.2.weight"].T + head["layers.2.bias"]
    assert [found["prompt", n] for n in (1, 2, 3)] == pytest.approx(wanted[:, 0].tolist(), abs=1e-4)


def test_a_feature_distance_is_nothing_between_equal_images_and_is_not_called_lpips(asked, tmp_path):
    run = RunConfig(name="t", model=DiffusersModel(path=str(make_tiny_sd(tmp_path / "sd")), dtype="float32"))
    found = measured("features", asked, (), run)
    assert found["target", 1] == pytest.approx(0, abs=1e-5)
    assert found["previous", 2] > 1e-4
    assert ("previous", 1) not in found


def test_what_has_no_weights_says_so():
    config = ComparisonConfig(name="t", run="unused")
    for name, said in (("lpips", "lpips.path"), ("blip", "blip.path"), ("aesthetic", "aesthetic.path")):
        with pytest.raises(UserError, match=f"no weights are given; set metrics, {said}"):
            metric_from(name, config, RunConfig(name="t"))


def test_lpips_is_torchmetrics_own(images, tmp_path):
    torchvision = pytest.importorskip("torchvision")
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    from omr_ray.evaluation.perceptual import Lpips

    side = np.random.default_rng(0).integers(0, 256, (2, 2, 64, 64, 3), dtype=np.uint8)
    backbone = torchvision.models.alexnet(weights=None)
    save_file(
        {name: array.numpy() for name, array in backbone.state_dict().items() if name.startswith("features.")},
        tmp_path / "alex.safetensors",
    )
    ours = Lpips.load(tmp_path / "alex.safetensors", "alex")
    library = LearnedPerceptualImagePatchSimilarity("alex", reduction="none")
    library.net = ours._network
    one, other = (torch.tensor(part).movedim(-1, 1).float() / 127.5 - 1 for part in side)
    assert ours.distances(*side) == pytest.approx(library(one, other).flatten(), abs=1e-5)
    assert ours.distances(side[0], side[0]).abs().max() == pytest.approx(0, abs=1e-6)
