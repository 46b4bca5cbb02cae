"""`omr-ray evaluate --protocol`: paint once a model on the rollout workers, measure on the reward workers, then the papers' protocols.

models x tasks x parts   images     (kept; a part that is there is not painted again)
metrics x those          values     (kept; a metric without weights is skipped by name, with the reason)
protocols                tables and drawings of stored values; no model is loaded for them
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, closing
from functools import cached_property, partial
from typing import Any

import numpy as np

from omr_ray.atelier import WEIGHTS
from omr_ray.atelier.oracle import SIDE, Oracle
from omr_ray.config.comparison import Adapted, Base, ComparisonConfig, ImageFolder, Model, Scheduled
from omr_ray.config.generation import AttendAndExcite
from omr_ray.config.run import AtelierModel, RunConfig
from omr_ray.evaluation.asked import Asked
from omr_ray.evaluation.assigning import assign_votes
from omr_ray.evaluation.generating import dialogue_images, many_of_one_prompt, session_images, sessions
from omr_ray.evaluation.papers import EXCITE, chosen, outcome, pages, tasks
from omr_ray.evaluation.papers.result import DIALOGUES, PROMPTS, SCRATCH, SELECTION, SESSIONS, SWITCHING, Context, Trained
from omr_ray.evaluation.papers.tdri import excite_task
from omr_ray.evaluation.stored import MadeImage, Results, at_size
from omr_ray.evaluation.switching import painted_together, switch
from omr_ray.evaluation.trained import of_sweep
from omr_ray.loading import language_model_from
from omr_ray.progress import Counting
from omr_ray.ray_session import connected
from omr_ray.types import Dialogue, UserError
from omr_ray.vlm.engine import LanguageModel
from omr_ray.workers.launch import source_from
from omr_ray.workers.painters import Painter, folder_images, painter_for
from omr_ray.workers.placement import total_cpus
from omr_ray.workers.pool import MeasurePool, RolloutPool

PLAIN, ABLATIONS = "excite-off", "omr-fig8"
SAMPLED = Base | Adapted | Scheduled  # by this run's own diffusion model, from the prompts as they are
ALWAYS = ("preference", "oracle", "features")  # what needs no weights beyond the run's own
# Which metrics a task is asked for; those of the config are added where they are among them.
METRICS = {
    DIALOGUES: ("preference", "oracle", "features", "clip", "blip", "lpips", "aesthetic"),
    SESSIONS: ("oracle", "features", "clip", "blip"),
    SCRATCH: ("oracle", "features"),
    PROMPTS: ("oracle", "clip"),
    SELECTION: ("oracle", "preference", "clip", "blip", "aesthetic"),
    EXCITE: ("oracle", "preference", "clip", "blip"),
}


def compare(config: ComparisonConfig, out: str, *, protocol: str) -> dict[str, Any]:
    """Everything `protocol` ("all" or one of PROTOCOLS) needs, then its results below `out`. Goes on where it was cut off."""
    names, run = chosen(protocol), config.base()
    trials = of_sweep(config.ablation_sweep) if config.ablation_sweep is not None and ABLATIONS in names else Trained()
    work = Comparison(config, run, Results(out), tasks(names), trials)
    with ExitStack() as stack:
        work.paint(stack)
        skipped = work.measure(stack)
    context = Context(config=config, run=run, results=work.results, skipped=skipped, absent=work.absent, trials=trials)
    results = [outcome(name, context) for name in names]
    left_out = {name: f"left out: {why}" for name, why in work.absent.items()}
    written = pages.write(results, context, made_by=list((work.weights | left_out).items()))
    gaps = {result.name: [gap.what for gap in result.missing] for result in results if result.missing}
    return {**written, "skipped_metrics": skipped, "left_out_models": work.absent, "missing": gaps}


class Comparison:
    """What has to be painted and measured for some tasks."""

    def __init__(self, config: ComparisonConfig, run: RunConfig, results: Results, wanted: Sequence[str], trials: Trained) -> None:
        self.config, self.run, self.results = config, run, results
        self.weights: dict[str, str] = {}
        self.absent: dict[str, str] = {}  # models that cannot be had, and why
        self._trials = {model.name for model in trials.models}
        self._models: list[Model] = [*config.models, *trials.models]
        self._dialogues = source_from(run).held_out(run.evaluation.dialogues)
        self._tasks = [one for task in wanted for one in (self._excite_tasks() if task == EXCITE else [task])]
        self._oracle = Oracle.from_pretrained(WEIGHTS / "oracle") if isinstance(run.model, AtelierModel) else None

    def paint(self, stack: ExitStack) -> None:
        """Images of every model, task and part that are not there yet."""
        stack.enter_context(connected(total_cpus(self.run)))
        with closing(RolloutPool(self.run)) as pool:
            painters = self._painters(pool)
            self.results.claim(self._made_from(painters))
            todo = [
                (model, task, part)
                for model in self._models
                for task in self._tasks_of(model)
                for part in range(len(self._parts(task)))
                if not self._made(model, task, part)
            ]
            with Counting(len(todo), "parts painted") as bar:
                for model, task, part in todo:
                    if task == SWITCHING:
                        self._switch(model, painters[model.name], pool, part)
                    else:
                        made = self._painted(model, painters[model.name], pool, task, self._parts(task)[part])
                        self.results.write_images(model.name, task, part, made)
                    bar.advance(f"{model.name}, {task}")
            self.weights = {
                model.name: f"images of {model.path}" if isinstance(model, ImageFolder) else _weights(painters[model.name])
                for model in self._models
            }
        voted = [model.name for model in self._models if model.name not in self._trials]
        assign_votes(self.results, self.config, voted, self._dialogues)

    def measure(self, stack: ExitStack) -> dict[str, str]:
        """Values of every metric that are not there yet. Returns what was skipped, and why."""
        skipped: dict[str, str] = {}
        names = (*ALWAYS, *(metric.type for metric in self.config.metrics))
        with closing(MeasurePool(self.config, self.run)) as pool, Counting(len(names), "metrics") as bar:
            for metric in names:
                try:
                    pool.load(metric)
                except UserError as error:
                    skipped[metric] = str(error)
                    bar.advance(f"{metric} skipped")
                    continue
                for model, task, part in self._unmeasured(metric):
                    values = pool.measure(metric, self._asked(self.results.images(model, task, part), task))
                    self.results.write_values(model, task, metric, part, values)
                bar.advance(metric)
        return skipped

    # -- what there is to do ---------------------------------------------------------------------------------------------

    def _made(self, model: Model, task: str, part: int) -> bool:
        if task == SWITCHING:
            return self.results.has_turns(model.name, part)
        return self.results.has_images(model.name, task, part)

    def _painters(self, pool: RolloutPool) -> dict[str, Painter | None]:
        """Ready to paint; a model that cannot be had is left out by name. Raises UserError where none can be had."""
        painters: dict[str, Painter | None] = {}
        for model in self._models:
            try:
                painters[model.name] = painter_for(model, pool, self.run, self.results.folder)
            except UserError as error:
                self.absent[model.name] = str(error)
        self._models = [model for model in self._models if model.name in painters]
        if not self._models:
            raise UserError(f"none of the models can be had; {'; '.join(f'{name}: {why}' for name, why in self.absent.items())}")
        return painters

    def _excite_tasks(self) -> list[str]:
        return [PLAIN, *(excite_task(threshold) for threshold in self.config.excite.thresholds)]

    def _tasks_of(self, model: Model) -> list[str]:
        """A folder and a trial of a sweep have their dialogues alone; selection and Attend-and-Excite the first model that is sampled here.

        The dialogue engine edits latents, and words are judged by the oracle: it talks through models that are sampled here.
        """
        if isinstance(model, ImageFolder) or model.name in self._trials:
            return [task for task in self._tasks if task == DIALOGUES]
        first = next((one.name for one in self._models if isinstance(one, SAMPLED)), None)
        mine = [task for task in self._tasks if model.name == first or not (task == SELECTION or task.startswith(EXCITE))]
        mine = [task for task in mine if task != SWITCHING or isinstance(model, SAMPLED)]
        return [task for task in mine if self._oracle is not None or task not in (SESSIONS, SCRATCH, SWITCHING)]

    def _parts(self, task: str) -> list[list[Dialogue]]:
        limits = {SELECTION: self.config.selection.prompts}
        limit = self.config.excite.prompts if task.startswith(EXCITE) else limits.get(task, len(self._dialogues))
        chunk = 4 if task == SELECTION else self.config.chunk  # 64 images for each of them
        held = self._dialogues[:limit]
        return [list(held[start : start + chunk]) for start in range(0, len(held), chunk)]

    def _unmeasured(self, metric: str) -> list[tuple[str, str, int]]:
        return [
            (model.name, task, part)
            for model in self._models
            for task in self._tasks_of(model)
            if metric in METRICS.get(EXCITE if task.startswith(EXCITE) else task, ())
            for part in self.results.parts(model.name, task)
            if not self.results.has_values(model.name, task, metric, part)
        ]

    def _painted(self, model: Model, painter: Painter | None, pool: RolloutPool, task: str, held: Sequence[Dialogue]) -> list[MadeImage]:
        judged, strength = self.run.evaluation, self.run.sampler.strength
        if isinstance(model, ImageFolder):
            return folder_images(model, held, judged.siblings)
        assert painter is not None
        generate, seed = painter.generate, judged.seed
        if task in (SESSIONS, SCRATCH):
            assert self._oracle is not None
            options: dict[str, Any] = {"strength": strength, "siblings": judged.siblings, "edit": task == SESSIONS}
            turns = sessions(generate, self._read, held, judged.max_rounds, seed, **options)
            return session_images(held, turns, judged.siblings)
        if task in (SELECTION, PLAIN):
            siblings = self.config.selection.images if task == SELECTION else 1
            return many_of_one_prompt(lambda prompts, seeds: (generate(prompts, seeds=seeds)[0], None), held, seed, siblings=siblings)
        if task.startswith(EXCITE):
            excite = partial(pool.excite, attention=AttendAndExcite(threshold=float(task.removeprefix("excite-"))))
            return many_of_one_prompt(excite, held, seed, siblings=1)
        siblings = judged.siblings if task == DIALOGUES else 1
        return dialogue_images(generate, held, seed, strength=strength, siblings=siblings, edit=task == DIALOGUES)

    def _read(self, images: np.ndarray) -> list[dict[str, str]]:
        """What images u8 [N H W 3] show, those of an endpoint too, which may have any size."""
        assert self._oracle is not None
        return self._oracle.read(np.stack([at_size(image, (SIDE, SIDE)) for image in images]))

    def _switch(self, model: Model, painter: Painter | None, pool: RolloutPool, part: int) -> None:
        """OMR table 2: the turns of one part, judged as they are made."""
        assert painter is not None and self._oracle is not None
        paint, judged = partial(painted_together, painter.generate, pool.encode), self.run.evaluation
        turns = switch(
            self._language, paint, self._oracle.read, self._parts(SWITCHING)[part], seed=judged.seed, strength=self.run.sampler.strength
        )
        self.results.write_turns(model.name, part, turns)

    @cached_property
    def _language(self) -> LanguageModel:
        """The dialogue engine's, in this process."""
        return language_model_from(self.config.language)

    def _asked(self, made: Sequence[MadeImage], task: str) -> list[Asked]:
        """What metrics are asked: the image before it where rounds follow one another, the target where the round has one."""
        pixels = {(one.dialogue, one.round, one.sibling): one.pixels for one in made}
        follows = task in (DIALOGUES, SESSIONS, SCRATCH)
        targets = (
            {(held.id, round_.index): round_.target for held in self._dialogues for round_ in held.rounds}
            if task in (DIALOGUES, PROMPTS)
            else {}
        )
        return [
            Asked(
                dialogue=one.dialogue,
                round=one.round,
                sibling=one.sibling,
                image=pixels[one.dialogue, one.round, one.sibling],
                prompt=one.prompt,
                intent=one.intent,
                previous=pixels.get((one.dialogue, one.round - 1, one.sibling)) if follows else None,
                target=targets.get((one.dialogue, one.round)),
            )
            for one in made
        ]

    def _made_from(self, painters: dict[str, Painter | None]) -> dict[str, Any]:
        """What images and values depend on; a model or a metric may be added later, and none changed."""
        run, judged = self.run, self.run.evaluation
        shared = {
            "model": run.model,
            "lora": run.lora,
            "sampler": run.sampler,
            "dialogues": run.dialogues,
            "preference": run.rewards.preference,
        }
        told: dict[str, Any] = {f"run.{name}": _plain(part) for name, part in shared.items()}
        told |= {"run.seed": run.seed, "evaluation": _plain(judged), "chunk": self.config.chunk}
        told["language"] = _plain(self.config.language)
        told |= {"selection": _plain(self.config.selection), "excite.prompts": self.config.excite.prompts}
        for model in self._models:
            told[f"model {model.name}"] = model.model_dump(mode="json", exclude={"published"}) | {
                "sha256": getattr(painters[model.name], "sha256", "")
            }
        return told | {f"metric {metric.type}": _plain(metric) for metric in self.config.metrics}


def _weights(painter: Painter | None) -> str:
    return "" if painter is None else painter.weights


def _plain(part: Any) -> Any:
    return part.model_dump(mode="json")
