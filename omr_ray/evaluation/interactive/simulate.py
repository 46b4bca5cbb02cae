"""`omr-ray simulate`: users with hidden intents talk to every variant of a system; what is kept is not talked again; then the page."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from omr_ray.atelier import WEIGHTS
from omr_ray.atelier.dialogues import make_dialogues
from omr_ray.config.generation import AttendAndExcite
from omr_ray.config.reading import dump
from omr_ray.config.run import AtelierModel
from omr_ray.config.serve import ServeConfig
from omr_ray.evaluation.interactive import figures
from omr_ray.evaluation.interactive.in_process import EngineSystem, LoadedModels
from omr_ray.evaluation.interactive.kept import THRESHOLDS, Kept, talks
from omr_ray.evaluation.interactive.over_http import HttpSystem
from omr_ray.evaluation.interactive.talking import FULL, SCRATCH, VARIANTS, System, TalkedTurn, Variant, talk
from omr_ray.evaluation.interactive.thresholds import ExcitedImage, excited_images
from omr_ray.evaluation.papers import pages
from omr_ray.evaluation.papers.people import grid
from omr_ray.evaluation.papers.result import Drawing, Result
from omr_ray.evaluation.stored import MadeImage
from omr_ray.progress import Counting
from omr_ray.types import Dialogue, UserError

PART = 64  # intents that are talked about together
PICTURES = 3  # users whose images are shown
ADAPTER = "shared/simulated"


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    """What is simulated. Example: Simulation(intents=200, seeds=(0, 1, 2))"""

    intents: int = 200
    seeds: tuple[int, ...] = (0, 1, 2)
    max_turns: int = 8
    skip_probability: float = 0.1
    variants: tuple[str, ...] | None = None  # None: all that there can be

    def __post_init__(self) -> None:
        if self.intents < 1 or self.max_turns < 1 or not self.seeds or min(self.seeds) < 0 or len(set(self.seeds)) < len(self.seeds):
            raise UserError("--intents and --turns must be at least 1, and --seeds different numbers from 0 on; give others")
        if not 0 <= self.skip_probability <= 1:
            raise UserError(f"--skip-probability must lie in 0..1, got {self.skip_probability:g}; 0.1 skips every tenth question")
        for name in self.variants or ():
            if name not in VARIANTS:
                raise UserError(f"--variants: {name!r} is unknown; choose among {', '.join(VARIANTS)}")

    def parts(self) -> list[list[Dialogue]]:
        """One round a dialogue: the first wish, which names two to four aspects of the intent; what follows is the user's own."""
        held = make_dialogues("heldout", self.intents, rounds=1)
        return [held[start : start + PART] for start in range(0, len(held), PART)]


class Judge(Protocol):
    def read(self, images: np.ndarray) -> list[dict[str, str]]: ...

    def accuracy(self, images: np.ndarray, prompts: Sequence[str]) -> np.ndarray: ...


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What users talk to: a system for each batch of them; and what it paints for the thresholds, where that can be had."""

    system: Callable[[Variant], System]
    excited: Callable[[Sequence[Dialogue], int], list[ExcitedImage]] | None
    variants: tuple[Variant, ...]
    made_by: Callable[[Variant], str]
    made_from: dict[str, Any] = field(default_factory=dict)


def simulate(
    config: ServeConfig, out: str, simulation: Simulation, *, adapter: Path | None, url: str | None, key_env: str | None
) -> dict[str, Any]:
    """Everything that is missing below `out`, then the report. Raises UserError."""
    if not isinstance(config.model, AtelierModel):
        raise UserError(
            "users can be simulated where images can be read exactly: model.kind is not atelier; take configs/serve_atelier.yaml"
        )
    if url is not None and adapter is not None:
        raise UserError("--adapter goes without --url: a service has adapters of its own; leave one of the two out")
    from omr_ray.atelier.oracle import Oracle

    judge = Oracle.from_pretrained(WEIGHTS / "oracle")
    kept = Kept(out)
    subject = service(url, key_env, simulation) if url is not None else engine(config, kept, judge, simulation, adapter)
    return simulated(config, kept, simulation, subject, judge)


def engine(config: ServeConfig, kept: Kept, judge: Judge, simulation: Simulation, adapter: Path | None) -> Subject:
    """The engine in this process."""
    config, sha256 = _with_adapter(config, kept, adapter)
    models = LoadedModels(config)
    id = None if adapter is None else ADAPTER
    settings = config.attention or AttendAndExcite()

    def made_by(variant: Variant) -> str:
        worn = f"adapter {adapter} ({sha256[:12]})" if adapter is not None and variant.adapted else "no adapter"
        language = config.dialogue.language
        return f"atelier, {worn}; language by {getattr(language, 'model', None) or getattr(language, 'path', '')}; {_said(variant)}"

    return Subject(
        system=lambda variant: EngineSystem(models, config, variant, id),
        excited=lambda dialogues, seed: excited_images(models, judge, dialogues, seed=seed, settings=settings, adapter=id),
        variants=_chosen(simulation, [one for one in VARIANTS.values() if adapter is not None or one.name != "no-adapter"]),
        made_by=made_by,
        made_from={"adapter": sha256},
    )


def service(url: str, key_env: str | None, simulation: Simulation) -> Subject:
    """A running service. What it leaves out is its own config's affair."""
    key = os.environ.get(key_env, "").strip() if key_env else None
    if key_env and not key:
        raise UserError(f"--key-env: the environment variable {key_env} is empty; put the service's key into it")
    return Subject(
        system=lambda variant: HttpSystem(url, key, variant),
        excited=None,
        variants=_chosen(simulation, [FULL, SCRATCH]),
        made_by=lambda variant: f"the service at {url}; {_said(variant)}",
        made_from={"url": url},
    )


def simulated(config: ServeConfig, kept: Kept, simulation: Simulation, subject: Subject, judge: Judge) -> dict[str, Any]:
    """Talks what is missing, then writes the report."""
    kept.claim(_made_from(config, simulation) | subject.made_from)
    parts, began = simulation.parts(), time.perf_counter()
    work = [(variant, seed, part) for variant in subject.variants for seed in simulation.seeds for part in range(len(parts))]
    todo = [(variant, seed, part) for variant, seed, part in work if not kept.has(talks(variant.name), seed, part)]
    with Counting(len(todo), "parts talked") as bar:
        for variant, seed, part in todo:
            told = talk(
                subject.system(variant),
                judge.read,
                parts[part],
                variant=variant,
                seed=seed,
                max_turns=simulation.max_turns,
                skip_probability=simulation.skip_probability,
                pictures=PICTURES if part == 0 else 0,
            )
            kept.keep(talks(variant.name), seed, part, TalkedTurn, told)
            bar.advance(f"{variant.name}, seed {seed}: {sum(one.satisfied for one in told)} of {len(parts[part])} satisfied")
    for seed in simulation.seeds[:1]:
        for part, dialogues in enumerate(parts):
            if subject.excited is not None and not kept.has(THRESHOLDS, seed, part):
                kept.keep(THRESHOLDS, seed, part, ExcitedImage, subject.excited(dialogues, seed))
    results = outcomes(kept, simulation, subject)
    report = write(results, kept, config, simulation, subject)
    print(f"report: {report}", file=sys.stderr)
    rows = [row for result in results for row in result.rows() if not row["published"]]
    seconds = time.perf_counter() - began
    return {"report": report, "parts": len(todo), "of": len(work), "seconds": seconds, "figures": rows}


def outcomes(kept: Kept, simulation: Simulation, subject: Subject) -> list[Result]:
    """Every table, from what is kept."""
    parts, turns = range(len(simulation.parts())), simulation.max_turns
    found = {
        variant.name: {
            seed: [one for part in parts for one in kept.load(talks(variant.name), seed, part, TalkedTurn)] for seed in simulation.seeds
        }
        for variant in subject.variants
    }
    excited = {}
    if subject.excited is not None:
        first = simulation.seeds[0]
        excited = {first: [one for part in parts for one in kept.load(THRESHOLDS, first, part, ExcitedImage)]}
    return [
        figures.overview(found, turns),
        figures.success_by_turns(found, turns),
        figures.questions(found),
        figures.edit_or_scratch(found, turns),
        figures.attend_and_excite(excited),
        _pictures(found, simulation),
    ]


def write(results: Sequence[Result], kept: Kept, config: ServeConfig, simulation: Simulation, subject: Subject) -> str:
    """report.html, and NAME.json and NAME.csv of every table. Returns where the report is."""
    folder = kept.folder
    for result in results:
        folder.write(f"{result.name}.json", json.dumps(result.as_json(), indent=1, allow_nan=False).encode())
        folder.write(f"{result.name}.csv", result.as_csv().encode())
    page = pages.page(
        results,
        name=f"Simulated dialogues · {config.name}",
        summary=[
            ("Intents", f"{simulation.intents} held out, seeds {', '.join(map(str, simulation.seeds))}"),
            ("Dialogues", f"at most {simulation.max_turns} turns; questions are skipped with probability {simulation.skip_probability:g}"),
            (
                "Denoising",
                f"{config.painting.steps} steps, guidance {config.painting.guidance_scale:g}, edits at {config.painting.strength:g}",
            ),
        ],
        made_by=[(variant.name, subject.made_by(variant)) for variant in subject.variants],
        documents=[("Config", dump(config))],
    )
    folder.write("report.html", page.encode())
    return folder.shown("report.html")


def _pictures(found: dict[str, dict[int, list[TalkedTurn]]], simulation: Simulation) -> Result:
    """The same users with every variant."""
    seed = simulation.seeds[0]
    drawings = []
    for dialogue in (simulation.parts()[0])[:PICTURES]:
        rows = []
        for name, by_seed in found.items():
            told = [one for one in by_seed[seed] if one.dialogue == dialogue.id and one.image is not None]
            rows.append((name, [_made(one, dialogue.intent) for one in told]))
        heads = [f"turn {turn}" for turn in range(1, 1 + max((len(made) for _, made in rows), default=0))]
        drawings.append(Drawing(title=dialogue.intent, svg=grid(rows, heads), wide=True))
    note = "Each row ends where the user was satisfied or the turns were over. Under the pointer: the prompt that the system wrote."
    return Result(name="pictures", source="Contact sheet", title="Some users", note=note, drawings=tuple(drawings))


def _made(one: TalkedTurn, intent: str) -> MadeImage:
    assert one.image is not None
    told: dict[str, Any] = {"dialogue": one.dialogue, "round": one.turn, "sibling": 0, "seed": one.seed, "utterance": one.utterance}
    return MadeImage(**told, prompt=one.prompt or "", intent=intent, image=one.image, seconds=one.seconds)


def _said(variant: Variant) -> str:
    if variant.alone:
        return "the user says the whole wish each time, the language model rewrites it, every image is from scratch, nobody asks"
    return f"{'questions' if variant.asks else 'no questions'}, {'every image from scratch' if variant.mode == 'scratch' else 'edits'}"


def _chosen(simulation: Simulation, possible: Sequence[Variant]) -> tuple[Variant, ...]:
    names = [one.name for one in possible]
    for name in simulation.variants or ():
        if name not in names:
            raise UserError(
                f"--variants: {name} cannot be had here; it needs --adapter, or goes without --url; choose among {', '.join(names)}"
            )
    return tuple(one for one in possible if simulation.variants is None or one.name in simulation.variants)


def _with_adapter(config: ServeConfig, kept: Kept, adapter: Path | None) -> tuple[ServeConfig, str]:
    """The config with a place of its own for adapters, where the given one has the id ADAPTER; and the hash of its content."""
    from omr_ray.diffusion.adapters import export_adapter, load_adapter
    from omr_ray.serving.adapters import FILE, sha256_of

    if adapter is None:
        return config, ""
    loaded = load_adapter(adapter)
    loaded.weights_for(config.lora.rank, config.lora.alpha)
    if "://" in kept.folder.path:
        raise UserError(f"--adapter needs --out on this machine, got {kept.folder.path}; give a directory")
    place = Path(kept.folder.root) / "adapters"
    export_adapter(loaded, place / ADAPTER, card=f"A copy of {adapter}\n")
    return config.model_copy(update={"adapters": str(place)}), sha256_of(place / ADAPTER / FILE)


def _made_from(config: ServeConfig, simulation: Simulation) -> dict[str, Any]:
    """What a part depends on; seeds and variants may be added later."""
    parts = ("model", "lora", "painting", "pose", "attention", "dialogue", "clip")
    told: dict[str, Any] = {name: value for name, value in config.model_dump(mode="json").items() if name in parts}
    return told | {name: getattr(simulation, name) for name in ("intents", "max_turns", "skip_probability")}
