"""Tables and figures of TDRI on our models, one function each. Each reads stored values and nothing else."""

from __future__ import annotations

import numpy as np
from sklearn.manifold import TSNE

from omr_ray.evaluation import comparing
from omr_ray.evaluation.metrics import Interval
from omr_ray.evaluation.papers import drawing
from omr_ray.evaluation.papers.omr import rounds_to_intent, rounds_used, share_within
from omr_ray.evaluation.papers.published import (
    TDRI_FIG11,
    TDRI_TABLE1,
    TDRI_TABLE3,
    TDRI_TABLE4,
    TDRI_TABLE6,
    TDRI_TURNS,
)
from omr_ray.evaluation.papers.result import (
    DIALOGUES,
    MEASURES,
    PROMPTS,
    SCRATCH,
    SESSIONS,
    Cell,
    Context,
    Drawing,
    Measure,
    Missing,
    Result,
    Table,
    compared,
)

TEXT = (("clip", "intent"), ("blip", "intent"), ("oracle", "intent"))
IMAGE = (("clip", "target"), ("blip", "target"), ("features", "target"))
AGREEMENT = (("clip", "prompt"), ("blip", "prompt"), ("oracle", "prompt"), ("preference", "prompt"))
TURNS = (2, 4, 6, 8)
SIMPLE, COMPLEX = 3, 5  # most aspects of a simple prompt, fewest of a complex one: our reading, the paper gives no limit
EMBEDDINGS = {"clip": "images, by {clip}", "features": "f(z), the frozen UNet's features"}
MOST_EXACT = 1000
FEWEST_POINTS = 8  # t-SNE of less shows nothing
NO_ORACLE = "only images of the embedded world can be read exactly; elsewhere people say when they are satisfied"


def alignment(context: Context) -> Result:
    """Table 1: prompt and image against the intent, in the last round; votes are in `human_votes`."""
    known = context.known(DIALOGUES, TEXT + IMAGE)
    ours = compared(context, "Our models, last round", DIALOGUES, known, rounds=slice(-1, None))
    names = ("t2i_clip", "t2i_blip", "i2i_clip", "i2i_blip", "human")
    published = Table(
        title="The paper's table 1",
        columns=("T2I CLIP ↑", "T2I BLIP ↑", "I2I CLIP ↑", "I2I BLIP ↑", "Human votes, % ↑"),
        rows=tuple((name, tuple(Cell.paper(row[column]) for column in names)) for name, row in TDRI_TABLE1.items()),
    )
    missing = list(context.gaps(TEXT + IMAGE))
    if not any(model.type == "augmentation" and model.name in context.models for model in context.config.models):
        remedy = "add {type: augmentation, name: GPT-4, language: {type: openai, url: URL, model: NAME}} to models"
        missing.append(Missing(what="Prompt augmentation baselines", why="no language model is among the models", remedy=remedy))
    note = "The intent is the hidden target's full description; the image is compared with the target of its round."
    return Result(note=note, tables=(ours, published), missing=tuple(missing))


def four_rounds(context: Context) -> Result:
    """Table 2: models side by side over the rounds of a dialogue."""
    known = context.known(DIALOGUES, AGREEMENT)
    tables, drawings = [], []
    for measure in known:
        cubes = context.cubes(DIALOGUES, measure)
        found = {name: [comparing.interval(cube[:, r : r + 1]) for r in range(cube.shape[1])] for name, cube in cubes.items()}
        rounds = max(len(row) for row in found.values())
        rows = tuple(
            (name, tuple(Cell.of(one, measure.form) for one in row) + (Cell(),) * (rounds - len(row))) for name, row in found.items()
        )
        tables.append(Table(title=measure.title, columns=tuple(f"round {r}" for r in range(1, rounds + 1)), rows=rows))
        series = {name: {float(r): one for r, one in enumerate(row, start=1) if one} for name, row in found.items()}
        drawings.append(Drawing(title=measure.title, svg=drawing.bands(series, x="round", y="")))
    note = (
        "Each round's image against its own prompt. Bands: 95% intervals over dialogues. "
        "The numbers of the paper's table 2 are lost in the text that we have."
    )
    return Result(note=note, tables=tuple(tables), drawings=tuple(drawings), missing=context.gaps(AGREEMENT))


def edit_or_scratch(context: Context) -> Result:
    """Table 3: editing the last image against painting anew, with the same simulated users and seeds."""
    rows, missing = [], []
    for model in context.models:
        for way, task in (("edit", SESSIONS), ("scratch", SCRATCH)):
            satisfied = context.results.cube(model, task, "oracle", "satisfied")
            if satisfied is None:
                missing.append(Missing(what=f"{model}, {way}", why=NO_ORACLE))
                continue
            used = rounds_used(satisfied, context.run.evaluation.max_rounds)
            distance = context.results.cube(model, task, "features", "previous")
            consistency = None if distance is None or not np.isfinite(distance).any() else comparing.interval(1 - distance)
            share = share_within(used, context.run.evaluation.max_rounds)
            cells = (
                Cell.of(consistency),
                Cell.of(share, "{:.1%}"),
                Cell.of(None if used is None else comparing.interval(used), "{:.2f}"),
                Cell.of(_session_seconds(context, model, task), "{:.2f}"),
                Cell.paper(TDRI_TABLE3[way]["consistency"]),
                Cell.paper(TDRI_TABLE3[way]["satisfaction"], "{:g}%"),
                Cell.paper(TDRI_TABLE3[way]["minutes"]),
            )
            rows.append((f"{model}, {'editing' if way == 'edit' else 'from scratch'}", cells))
    columns = (
        "consistency ↑",
        "satisfied ↑",
        "rounds to intent ↓",
        "seconds a session ↓",
        "paper: consistency",
        "paper: satisfaction",
        "paper: minutes",
    )
    note = (
        "Consistency: cosine of f(z) of consecutive rounds. Satisfied: within all rounds. "
        "Seconds: of painting alone, on this machine beside whatever else ran; the paper's minutes include its users."
    )
    return Result(
        note=note,
        tables=(Table(title="Editing and from scratch", columns=columns, rows=tuple(rows)),) if rows else (),
        missing=tuple(missing),
    )


def turns(context: Context) -> Result:
    """The table of 2, 4, 6 and 8 turns: who is satisfied by then, and how well images fit the intent."""
    fits = next(iter(context.known(SESSIONS, TEXT)), None)
    rows, series = [], {}
    for model in context.models:
        used = rounds_to_intent(context, model)
        if used is None:
            continue
        limit = context.run.evaluation.max_rounds
        series[model] = {float(r): one for r in range(1, limit + 1) if (one := share_within(used, r))}
        for turn in (turn for turn in TURNS if turn <= limit):
            fit = None if fits is None else _standing(context, model, fits, turn)
            cells = (
                Cell.of(share_within(used, turn), "{:.1%}"),
                Cell.of(fit, fits.form if fits else "{:.3f}"),
                Cell.of(_session_seconds(context, model, SESSIONS, turn), "{:.2f}"),
                Cell.paper(TDRI_TURNS[turn]["satisfaction"], "{:g}%"),
                Cell.paper(TDRI_TURNS[turn]["clip"]),
                Cell.paper(TDRI_TURNS[turn]["minutes"]),
            )
            rows.append((f"{model}, {turn} turns", cells))
    if not rows:
        return Result(missing=(Missing(what="Satisfaction by turns", why=NO_ORACLE),))
    columns = (
        "satisfied ↑",
        f"{fits.title if fits else 'fit'} ↑",
        "seconds a session",
        "paper: satisfaction",
        "paper: CLIP",
        "paper: minutes",
    )
    drawn = Drawing(title="Satisfied by turn", svg=drawing.bands(series, x="turns", y="share of sessions"))
    note = (
        "A session that ended earlier keeps its last image. "
        "The simulated user is satisfied when the oracle reads every aspect of the intent off the image."
    )
    return Result(
        note=note, tables=(Table(title="By turns", columns=columns, rows=tuple(rows)),), drawings=(drawn,), missing=context.gaps(TEXT)
    )


def simple_or_complex(context: Context) -> Result:
    """Table 4: success on simple and complex prompts, each painted from noise."""
    from omr_ray.atelier.world import parse

    exact = MEASURES["oracle", "prompt"]
    rows = []
    for model in context.models:
        cube = context.results.cube(model, PROMPTS, "oracle", "prompt")
        if cube is None:
            continue
        named, place = np.full(cube.shape[:2], np.nan), {name: row for row, name in enumerate(context.results.dialogues(model, PROMPTS))}
        for (dialogue, round_), prompt in context.results.prompts(model, PROMPTS).items():
            named[place[dialogue], round_ - 1] = len(parse(prompt))
        for kind, chosen in (("simple", named <= SIMPLE), ("complex", named >= COMPLEX)):
            kept = np.where(chosen[..., None] & np.isfinite(cube), cube, np.nan)
            whole = np.where(np.isfinite(kept), kept == 1, np.nan)
            cells = (
                Cell(value=float(np.isfinite(kept).sum()), form="{:.0f}"),
                Cell.of(comparing.interval(whole), "{:.1%}"),
                Cell.of(comparing.interval(kept), exact.form),
                Cell.paper(TDRI_TABLE4[kind]["success"], "{:g}%"),
                Cell.paper(TDRI_TABLE4[kind]["clip"]),
            )
            rows.append((f"{model}, {kind}", cells))
    if not rows:
        return Result(missing=(Missing(what="Simple and complex prompts", why=NO_ORACLE),))
    columns = ("images", "success ↑", "aspects right (oracle) ↑", "paper: success", "paper: CLIP")
    note = (
        f"Simple: up to {SIMPLE} aspects are named, complex: {COMPLEX} or more (our limits; the paper names none). "
        "Success: the image shows all of them."
    )
    return Result(note=note, tables=(Table(title="Simple and complex", columns=columns, rows=tuple(rows)),))


def attend_and_excite(context: Context) -> Result:
    """Table 6: how often Attend-and-Excite acts at each threshold, and what it brings; same prompts and seeds."""
    if not context.sampled:
        return Result(missing=(Missing(what="Attend-and-Excite", why="it needs a model that is sampled here"),))
    model, plain = context.sampled[0], "excite-off"
    known = context.known(plain, AGREEMENT)
    rows, improvement = [], {}
    for threshold in context.config.excite.thresholds:
        task = excite_task(threshold)
        used = context.results.excited(model, task)
        if used is None:
            continue
        gains = [_relative(context, model, plain, task, measure) for measure in known]
        published = TDRI_TABLE6.get(threshold, (None, None))
        papers = (Cell.paper(published[0], "{:g}%"), Cell.paper(published[1], "{:g}%"))
        rows.append(
            (f"{threshold:g}", (Cell.of(comparing.interval(used), "{:.1%}"), *(Cell.of(gain, "{:+.2f}%") for gain in gains), *papers))
        )
        if gains and gains[0]:
            improvement[threshold] = gains[0]
    if not rows:
        return Result(
            missing=(Missing(what="Attend-and-Excite", why="no images were made for it", remedy="run this protocol by its name"),)
        )
    columns = ("used", *(f"{measure.title}, change" for measure in known), "paper: used", "paper: T2I similarity")
    drawn = (
        (Drawing(title=f"{known[0].title}: change, %", svg=drawing.bands({model: improvement}, x="threshold", y="")),)
        if improvement
        else ()
    )
    note = (
        f"Images of {model} from noise. Used: L_AE of TDRI eq. 8 exceeded the threshold in an early step. "
        "Changes are relative to the same seeds without it, paired."
    )
    if all(cells[0].value == 1 for _, cells in rows):
        note += " Here every image exceeded even the highest threshold, so the thresholds cannot differ: this model's L_AE lies above them."
    return Result(
        note=note, tables=(Table(title="Thresholds", columns=columns, rows=tuple(rows)),), drawings=drawn, missing=context.gaps(AGREEMENT)
    )


def excite_task(threshold: float) -> str:
    return f"excite-{threshold:g}"


def embedding_by_round(context: Context) -> Result:
    """Fig. 9: t-SNE of images by round, and how compact each round is in the embedding's own space."""
    rows, drawings = [], []
    metric = next((name for name in EMBEDDINGS if any(context.results.vectors(model, DIALOGUES, name) for model in context.models)), None)
    for model in context.models:
        found = [] if metric is None else [row for row in context.results.vectors(model, DIALOGUES, metric) if row["sibling"] == 0]
        if len(found) < FEWEST_POINTS:
            continue
        vectors = np.array([row["vector"] for row in found])
        rounds = np.array([row["round"] for row in found])
        perplexity = min(30.0, (len(found) - 1) / 3)
        # Barnes-Hut pays for its threads; among few points the exact gradient is faster, and much so on a busy machine.
        method = "exact" if len(found) <= MOST_EXACT else "barnes_hut"
        places = TSNE(perplexity=perplexity, random_state=context.config.seed, init="pca", method=method).fit_transform(vectors)
        drawings.append(Drawing(title=model, svg=drawing.points(places, [f"round {r}" for r in rounds])))
        spread = {r: _spread(vectors[rounds == r]) for r in sorted(set(rounds.tolist()))}
        rows.append((model, tuple(Cell(value=value) for value in spread.values())))
    if metric is None or not rows:
        return Result(missing=(Missing(what="t-SNE by round", why="nothing was embedded", remedy="leave the features metric on"),))
    width = max(len(cells) for _, cells in rows)
    padded = tuple((name, cells + (Cell(),) * (width - len(cells))) for name, cells in rows)
    table = Table(
        title="Spread: mean distance of unit vectors to their round's center",
        columns=tuple(f"round {r}" for r in range(1, width + 1)),
        rows=padded,
    )
    note = (
        f"Shown: {EMBEDDINGS[metric].format(clip=context.clip)}. "
        "The paper reads from its figure that embeddings grow more compact by round; "
        "the table says it in numbers, which t-SNE's plane does not."
    )
    return Result(note=note, tables=(table,), drawings=tuple(drawings), missing=context.gaps((("clip", "prompt"),)))


def intent_by_round(context: Context) -> Result:
    """Fig. 10: how much of the intent images show by round of a session; heat map."""
    measure = next(iter(context.known(SESSIONS, TEXT)), None)
    if measure is None:
        return Result(missing=(Missing(what="Intent by round", why=NO_ORACLE),))
    limit = context.run.evaluation.max_rounds
    found = {name: [_standing(context, name, measure, turn) for turn in range(1, limit + 1)] for name in context.cubes(SESSIONS, measure)}
    values = np.array([[np.nan if one is None else one.value for one in row] for row in found.values()])
    columns = [str(turn) for turn in range(1, limit + 1)]
    heat = Drawing(title=measure.title, svg=drawing.heat_map(values, list(found), columns, x="round", wide=True), wide=True)
    rows = tuple((name, tuple(Cell.of(one, measure.form) for one in row)) for name, row in found.items())
    note = (
        "A session that ended keeps its last image. In the paper people said how well they felt understood; "
        "its figure peaks around the third round and has no numbers in the text."
    )
    return Result(
        note=note, tables=(Table(title=measure.title, columns=tuple(f"round {c}" for c in columns), rows=rows),), drawings=(heat,)
    )


def rounds_distribution(context: Context) -> Result:
    """Fig. 11: in which round sessions ended."""
    limit = context.run.evaluation.max_rounds
    series: dict[str, dict[str, Interval]] = {}
    for model in context.models:
        used = rounds_to_intent(context, model)
        if used is not None:
            ended = {r: comparing.interval((used == r).astype(float)) for r in range(1, limit + 2)}
            series[model] = {str(r) if r <= limit else "never": one for r, one in ended.items() if one}
    if not series:
        return Result(missing=(Missing(what="Rounds used", why=NO_ORACLE),))
    names = list(next(iter(series.values())))
    rows = [(model, tuple(Cell.of(shares.get(name), "{:.1%}") for name in names)) for model, shares in series.items()]
    rows.append(("the paper", tuple(Cell.paper(TDRI_FIG11.get(r), "{:g}%") for r in range(1, limit + 2))))
    drawn = Drawing(title="Rounds used", svg=drawing.interval_bars(series, y="share of sessions"))
    return Result(tables=(Table(title="Share of sessions", columns=tuple(names), rows=tuple(rows)),), drawings=(drawn,))


def _standing(context: Context, model: str, measure: Measure, turn: int) -> Interval | None:
    """The figure of each session's image after `turn` rounds, or of its last one where it ended before."""
    cube = context.cubes(SESSIONS, measure, (model,)).get(model)
    if cube is None:
        return None
    latest = cube[:, 0]
    for r in range(1, min(turn, cube.shape[1])):
        latest = np.where(np.isfinite(cube[:, r]), cube[:, r], latest)
    return comparing.interval(latest)


def _session_seconds(context: Context, model: str, task: str, turns: int | None = None) -> Interval | None:
    """Seconds that the images of a session took, its first `turns` alone where given."""
    seconds = context.results.seconds(model, task)
    return None if seconds is None else comparing.interval(np.nansum(seconds[:, :turns], axis=1))


def _relative(context: Context, model: str, plain: str, task: str, measure: Measure) -> Interval | None:
    """Change of a figure in per cent of its mean without Attend-and-Excite, paired."""
    before, after = (context.results.cube(model, name, measure.metric, measure.measure) for name in (plain, task))
    found = None if before is None or after is None else comparing.difference(before, after)
    if found is None or before is None:
        return None
    scale = 100 / abs(float(np.nanmean(before)))
    return Interval(value=found.value * scale, low=found.low * scale, high=found.high * scale)


def _spread(vectors: np.ndarray) -> float:
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(min=1e-12)
    return float(np.linalg.norm(unit - unit.mean(axis=0), axis=1).mean())
