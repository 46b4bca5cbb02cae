"""Adapters as files: exported in three forms that other tools read, and read back from each of them.

    PEFT       adapter_config.json, adapter_model.safetensors   base_model.model.<module>.lora_A.weight
    diffusers  pytorch_lora_weights.safetensors                 unet.<module>.lora_A.weight
    kohya      <name>_kohya.safetensors                         lora_unet_<module with _>.lora_down.weight, .alpha

Here names are "<module>.lora_A.weight" [rank, in] and "<module>.lora_B.weight" [out, rank] (`Policy.lora_parameters`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from peft import LoraConfig

from omr_ray.diffusion.policy import TARGETS, lora_config
from omr_ray.types import UserError
from omr_ray.weights import read_metadata, read_safetensors, reported, write_atomic, write_safetensors_atomic

PEFT_CONFIG, PEFT_FILE, DIFFUSERS_FILE = "adapter_config.json", "adapter_model.safetensors", "pytorch_lora_weights.safetensors"
PEFT_PREFIX, DIFFUSERS_PREFIX, KOHYA_PREFIX = "base_model.model.", "unet.", "lora_unet_"
DIFFUSERS_METADATA = "lora_adapter_metadata"  # where diffusers keeps rank and alpha; without it alpha is taken for the rank
OWN_METADATA = "omr_ray"  # JSON object of strings: what made the adapter

# A kohya name has lost its dots: these are the modules that can carry our LoRA, with the numbers between them.
_KOHYA_MODULE = re.compile(
    r"(mid_block|(?:down|up)_blocks_\d+)_attentions_(\d+)_transformer_blocks_(\d+)_(attn[12])_(to_[qkv]|to_out_0)$",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """LoRA weights and what is needed to use them: W + (alpha / rank) B A (OMR eq. 10)."""

    weights: Mapping[str, np.ndarray]  # f32, by our names
    rank: int
    alpha: float
    base_model: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)

    def weights_for(self, rank: int, alpha: float) -> dict[str, np.ndarray]:
        """The weights for a policy of that rank and alpha: a different alpha goes into B. Raises UserError for another rank."""
        if rank != self.rank:
            raise UserError(f"the adapter has rank {self.rank}, the policy {rank}; set lora.rank to {self.rank}")
        factor = self.alpha / alpha
        return {name: value * np.float32(factor) if ".lora_B." in name else value for name, value in self.weights.items()}


def export_adapter(adapter: Adapter, directory: str | Path, card: str, name: str = "lora") -> None:
    """Write all three forms and README.md (`card`) into `directory`. Raises UserError where the disk is full."""
    directory = Path(directory)
    arrays = {key: np.asarray(value, np.float32) for key, value in adapter.weights.items()}
    own = {"format": "pt", OWN_METADATA: json.dumps(dict(adapter.metadata), sort_keys=True)}
    config = _peft_config(adapter)
    diffusers = {DIFFUSERS_METADATA: json.dumps({f"{DIFFUSERS_PREFIX}{key}": value for key, value in config.items()}, sort_keys=True)}
    write_atomic(directory / PEFT_CONFIG, json.dumps(config, indent=2, sort_keys=True).encode())
    write_safetensors_atomic(directory / PEFT_FILE, {PEFT_PREFIX + key: value for key, value in arrays.items()}, own)
    write_safetensors_atomic(
        directory / DIFFUSERS_FILE, {DIFFUSERS_PREFIX + key: value for key, value in arrays.items()}, {**own, **diffusers}
    )
    kohya = {"ss_network_module": "networks.lora", "ss_network_dim": str(adapter.rank), "ss_network_alpha": str(adapter.alpha)}
    write_safetensors_atomic(directory / f"{name}_kohya.safetensors", _to_kohya(arrays, adapter.alpha), {**own, **kohya})
    write_atomic(directory / "README.md", card.encode())


def load_adapter(path: str | Path) -> Adapter:
    """Read an adapter: a directory in the PEFT or diffusers form, or one safetensors file of any of the three.

    Raises UserError for a missing, damaged or pickled file, and for keys that are not LoRA on attention q, k, v, out.
    """
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in (PEFT_FILE, DIFFUSERS_FILE) if (path / name).is_file()]
        if not found:
            pickles = [path / name for name in ("adapter_model.bin", "pytorch_lora_weights.bin") if (path / name).is_file()]
            if pickles:
                raise UserError(f"{pickles[0]}: pickled weights are never opened; convert the adapter to safetensors")
            raise UserError(f"{path}: neither {PEFT_FILE} nor {DIFFUSERS_FILE} in it; give an exported adapter")
        path = found[0]
    arrays = read_safetensors(path)
    header = read_metadata(path)
    names = list(arrays)
    if names and all(name.startswith(KOHYA_PREFIX) for name in names):
        weights, alpha = _from_kohya(arrays, path)
        base_model = ""
    else:
        weights = {_own_name(name, path): value for name, value in arrays.items()}
        alpha, base_model = _alpha_beside(path, header)
    weights = {name: np.asarray(value, np.float32) for name, value in weights.items()}
    rank = _rank(weights, path)
    with reported(path):
        metadata = json.loads(header.get(OWN_METADATA, "{}"))
    return Adapter(weights=weights, rank=rank, alpha=float(rank if alpha is None else alpha), base_model=base_model, metadata=metadata)


def model_card(base_model: str, title: str, figures: Mapping[str, object]) -> str:
    """README.md of an exported adapter, with the front matter that the Hugging Face hub reads.

    Example: model_card("stabilityai/stable-diffusion-2-1", "OMR, 200 steps", {"accuracy after": "0.91 [0.89, 0.93]"})
    """
    rows = "\n".join(f"| {name} | {value} |" for name, value in figures.items())
    return f"""---
base_model: {base_model}
library_name: diffusers
tags: [text-to-image, lora, peft, omr-ray]
---

# {title}

A LoRA adapter on the attention (q, k, v, out) of `{base_model}`, trained with omr-ray over multi-round dialogues.

| | |
|---|---|
{rows}

```python
pipeline.load_lora_weights("this directory", weight_name="{DIFFUSERS_FILE}")
```

The same weights in three forms: PEFT (`{PEFT_FILE}`), diffusers (`{DIFFUSERS_FILE}`) and kohya (`*_kohya.safetensors`).
"""


# -- names -----------------------------------------------------------------------------------------------------------------


def _peft_config(adapter: Adapter) -> dict[str, object]:
    config = LoraConfig.to_dict(lora_config(adapter.rank, adapter.alpha))
    config.update(base_model_name_or_path=adapter.base_model or None, target_modules=list(TARGETS), inference_mode=True)
    return json.loads(json.dumps(config, default=list))


def _own_name(name: str, path: Path) -> str:
    """The name without what PEFT or diffusers put before it."""
    for prefix in (PEFT_PREFIX, DIFFUSERS_PREFIX):
        if name.startswith(prefix) and name.endswith((".lora_A.weight", ".lora_B.weight")):
            return name.removeprefix(prefix)
    raise UserError(f"{path}: unknown key {name!r}; give a LoRA of a UNet in the PEFT, diffusers or kohya form")


def _to_kohya(weights: Mapping[str, np.ndarray], alpha: float) -> dict[str, np.ndarray]:
    exported = {}
    for name, value in weights.items():
        module, _, kind = name.removesuffix(".weight").rpartition(".")
        key = KOHYA_PREFIX + module.replace(".", "_")
        exported[f"{key}.{'lora_down' if kind == 'lora_A' else 'lora_up'}.weight"] = value
        exported[f"{key}.alpha"] = np.array(alpha, np.float32)
    return exported


def _from_kohya(arrays: Mapping[str, np.ndarray], path: Path) -> tuple[dict[str, np.ndarray], float | None]:
    weights, alphas = {}, set()
    for name, value in arrays.items():
        module, _, kind = name.removeprefix(KOHYA_PREFIX).partition(".")
        match = _KOHYA_MODULE.match(module)
        if not match or kind not in ("lora_down.weight", "lora_up.weight", "alpha"):
            raise UserError(f"{path}: unknown key {name!r}; give LoRA on attention q, k, v, out, in diffusers' block names")
        if kind == "alpha":
            alphas.add(float(value))
            continue
        block, attention, transformer, attn, target = match.groups()
        block = re.sub(r"_blocks_(\d+)$", r"_blocks.\1", block)
        target = target.replace("to_out_0", "to_out.0")
        own = f"{block}.attentions.{attention}.transformer_blocks.{transformer}.{attn}.{target}"
        weights[f"{own}.{'lora_A' if kind == 'lora_down.weight' else 'lora_B'}.weight"] = value
    if len(alphas) > 1:
        raise UserError(f"{path}: every module must have one alpha, found {sorted(alphas)}; export it again with one")
    return weights, alphas.pop() if alphas else None


def _alpha_beside(path: Path, header: Mapping[str, str]) -> tuple[float | None, str]:
    """lora_alpha and base model, from adapter_config.json for a PEFT file, or from a diffusers file's header."""
    config = path.parent / PEFT_CONFIG
    if path.name == PEFT_FILE and config.is_file():
        with reported(config):
            values = json.loads(config.read_text())
            return values.get("lora_alpha"), values.get("base_model_name_or_path") or ""
    with reported(path):
        values = json.loads(header.get(DIFFUSERS_METADATA, "{}"))
    return values.get(f"{DIFFUSERS_PREFIX}lora_alpha"), values.get(f"{DIFFUSERS_PREFIX}base_model_name_or_path") or ""


def _rank(weights: Mapping[str, np.ndarray], path: Path) -> int:
    """The rank, which must be the same everywhere; A and B must come in pairs."""
    ranks = {int(value.shape[0] if ".lora_A." in name else value.shape[1]) for name, value in weights.items() if value.ndim == 2}
    modules = [{name.split(f".lora_{side}.")[0] for name in weights if f".lora_{side}." in name} for side in "AB"]
    if len(ranks) != 1 or modules[0] != modules[1] or any(value.ndim != 2 for value in weights.values()):
        raise UserError(f"{path}: a LoRA needs A and B of every module, all of one rank, found ranks {sorted(ranks)}; export it again")
    return ranks.pop()
