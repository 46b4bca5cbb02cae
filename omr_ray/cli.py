"""One command, `omr-ray`. Arguments and config are parsed before any heavy import.

Every subcommand takes `--json` and then prints one JSON object as the last line of standard output; everything else
goes to standard error. Exit status: 0, 1 (our fault or the machine's), 2 (the user's fault).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omr_ray import __version__
from omr_ray.types import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parsed(arguments)
    try:
        result = options.run(options)
    except UserError as error:
        return _fail(options, str(error), status=2)
    except KeyboardInterrupt:
        return _fail(options, "interrupted; continue with --resume", status=130)
    except Exception as error:
        if options.traceback:
            raise
        return _fail(options, f"{type(error).__name__}: {_one_line(error)} (--traceback shows where)", status=1)
    if options.json:
        print(json.dumps(result, default=str), flush=True)
    return 0


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Overrides may stand anywhere behind the config: argparse alone takes them only directly behind it."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    strange = [word for word in rest if word.startswith("-") or "=" not in word or not hasattr(options, "overrides")]
    if strange:
        parser.error(f"unrecognized arguments: {' '.join(strange)}")
    if rest:
        options.overrides = [*options.overrides, *rest]
    return options


def _fail(options: argparse.Namespace, message: str, status: int) -> int:
    print(f"omr-ray: {message}", file=sys.stderr)
    if options.json:
        print(json.dumps({"error": message}), flush=True)
    return status


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="omr-ray", description="RLHF for text-to-image diffusion over a dialogue, on Ray")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    train = _command(commands, "train", _train, "train a policy over dialogues; ends with a report", config=True)
    train.add_argument("--out", type=Path, help="run directory (default: runs/NAME)")
    train.add_argument("--resume", action="store_true", help="continue from the last good checkpoint of the run directory")

    evaluate = _command(commands, "evaluate", _evaluate, "judge a policy on held-out dialogues", config=True)
    evaluate.add_argument("--adapter", type=Path, help="adapter to judge, in any of the three exported forms (default: the base)")
    evaluate.add_argument(
        "--protocol",
        metavar="NAME",
        help="a table or figure of the papers, or all; CONFIG is then a comparison, see configs/compare_atelier.yaml",
    )
    evaluate.add_argument(
        "--out", required=True, help="directory for the result; with --protocol also s3://bucket/path or gs://bucket/path"
    )

    finetune = _command(
        commands, "finetune", _finetune, "supervised training of the diffusion model on dialogues, under Ray Train", config=True
    )
    finetune.add_argument("--out", type=Path, help="run directory (default: runs/NAME)")
    finetune.add_argument("--resume", action="store_true", help="continue from the last good checkpoint of the run directory")

    sweep = _command(
        commands, "sweep", _sweep, "many trainings: the reward schedule, any key of a run, or named variants; under Ray Tune", config=True
    )
    sweep.add_argument("--out", type=Path, help="directory of the sweep (default: runs/NAME)")
    sweep.add_argument("--resume", action="store_true", help="go on with what has not ended, and try failed trials again")

    plan = _command(commands, "plan", _plan, "actors, placement, memory and traffic, without loading anything", config=True)
    del plan

    bench = _command(commands, "bench", _bench, "measure rollout, learner, a whole step, or the controller alone", config=True)
    bench.add_argument("--what", choices=["rollout", "learner", "end-to-end", "all", "control-plane"], default="all")
    bench.add_argument("--repeats", type=int, default=3)

    trace = _command(commands, "trace", _trace, "write the timeline of a run in the Chrome trace format")
    trace.add_argument("directory", type=Path, metavar="RUN", help="run directory")
    trace.add_argument("--out", type=Path, help="JSON file (default: RUN/trace.json)")

    atelier = commands.add_parser("atelier", help="the embedded world: pretrain its models, check its oracle, look at it")
    actions = atelier.add_subparsers(metavar="ACTION", required=True)
    pretrain = _command(actions, "pretrain", _atelier_pretrain, "train all embedded models from nothing; resumes")
    pretrain.add_argument("--out", type=Path, required=True, help="directory for the weights")
    pretrain.add_argument("--device", default="cpu")
    pretrain.add_argument("--only", nargs="+", metavar="STAGE", help="these stages, for example language_model (default: all)")
    _command(actions, "oracle", _atelier_oracle, "held-out accuracy of the oracle, by aspect")
    show = _command(actions, "show", _atelier_show, "draw dialogues of the embedded world into a picture")
    show.add_argument("--out", type=Path, required=True, help="PNG file")
    _data_commands(commands)
    _reward_commands(commands)
    serve = _command(commands, "serve", _serve, "the dialogue as a service, on Ray Serve", config=True)
    serve.add_argument("--build", type=Path, metavar="FILE", help="write the Serve YAML for a cluster instead of serving here")
    serve.add_argument("--new-key", metavar="OWNER", help="make an API key, print it and end")
    _simulate_command(commands)
    _votes_commands(commands)
    return parser


def _simulate_command(commands: Any) -> None:
    simulate = _command(
        commands, "simulate", _simulate, "simulated users with hidden intents talk to the system; CONFIG is a service's", config=True
    )
    simulate.add_argument("--out", required=True, help="directory for the result; what is there already is not done again")
    simulate.add_argument("--intents", type=int, default=200, help="held-out intents, one user each (default: 200)")
    simulate.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="SEED")
    simulate.add_argument("--turns", type=int, default=8, help="most of a dialogue (default: 8)")
    simulate.add_argument("--skip-probability", type=float, default=0.1, help="of a clarification question (default: 0.1)")
    simulate.add_argument("--adapter", type=Path, help="adapter of the full system, in any of the three exported forms (default: the base)")
    simulate.add_argument(
        "--variants", nargs="+", metavar="NAME", help="full, no-questions, no-adapter, augmentation, scratch (default: all)"
    )
    simulate.add_argument("--url", help="talk to this running service over HTTP instead, for example http://127.0.0.1:8000")
    simulate.add_argument("--key-env", metavar="NAME", help="environment variable that holds the service's API key")


def _votes_commands(commands: Any) -> None:
    votes = commands.add_parser("votes", help="what users and annotators of the service preferred: out as preference pairs, and in")
    actions = votes.add_subparsers(metavar="ACTION", required=True)
    export = _command(actions, "export", _votes_export, "write votes and annotations as preference pairs in Parquet", config=True)
    export.add_argument("--out", type=Path, required=True, help="directory; `data look` and `reward train` read it")
    export.add_argument("--label-studio", type=Path, metavar="FILE", help="also write everything as Label Studio's JSON")
    import_ = _command(actions, "import", _votes_import, "put up the pairs of Label Studio's JSON, and keep its annotations")
    import_.add_argument("config", type=Path, help="YAML file of the service")
    import_.add_argument("file", type=Path, metavar="FILE", help="JSON that Label Studio exported, images inside")
    import_.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="dotted keys")


def _reward_commands(commands: Any) -> None:
    reward = commands.add_parser("reward", help="the Qwen-VL reward model: train it on preference pairs, judge it")
    actions = reward.add_subparsers(metavar="ACTION", required=True)
    train = _command(actions, "train", _reward_train, "QLoRA or full training on preference pairs, under Ray Train", config=True)
    train.add_argument("--out", type=Path, help="run directory (default: runs/NAME)")
    train.add_argument("--resume", action="store_true", help="continue from the last good checkpoint of the run directory")
    evaluate = _command(actions, "evaluate", _reward_evaluate, "accuracy by source and kind of negative, margins, calibration")
    evaluate.add_argument("model", help="what `reward train` wrote, a directory or hub id, or atelier for the embedded one")
    evaluate.add_argument("--data", required=True, help="what `data build` wrote; its test split is judged")
    evaluate.add_argument("--out", type=Path, required=True, help="directory for the report")
    evaluate.add_argument("--limit", type=int, default=10_000, help="at most so many pairs")
    evaluate.add_argument("--policy", type=Path, metavar="CONFIG", help="also what the model selects among images of this config's policy")
    evaluate.add_argument("--prompts", type=int, default=48, help="held-out prompts for that, 64 images each")
    evaluate.add_argument("--engine", choices=["transformers", "vllm"], default="transformers")
    evaluate.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    evaluate.add_argument("--device", default="cpu")


def _data_commands(commands: Any) -> None:
    data = commands.add_parser(
        "data", help="dialogues and preference pairs as Parquet: build them, look at them, write the papers' JSON forms"
    )
    actions = data.add_subparsers(metavar="ACTION", required=True)
    build = _command(actions, "build", _data_build, "read, filter and split sources; resumes", config=True)
    build.add_argument("--out", required=True, help="directory, s3://bucket/path or gs://bucket/path")
    look = _command(actions, "look", _data_look, "count rows by source, split and kind, and write a page with samples")
    look.add_argument("path", help="what `data build` wrote")
    look.add_argument("--out", type=Path, help="HTML file (default: look.html in the working directory)", default=Path("look.html"))
    export = _command(actions, "export", _data_export, "write a built table in the papers' JSON forms")
    export.add_argument("path", help="what `data build` wrote")
    export.add_argument("--out", type=Path, required=True, help="directory for the files")


def _command(commands: Any, name: str, run: Any, text: str, config: bool = False) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text)
    if config:
        parser.add_argument("config", type=Path, help="YAML file, see configs/")
        parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="dotted keys, for example sampler.steps=20")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--traceback", action="store_true", help="show where an error came from")
    parser.set_defaults(run=run)
    return parser


def _config(options: argparse.Namespace) -> Any:
    from omr_ray.config.run import RunConfig

    return RunConfig.load(options.config, options.overrides)


def _train(options: argparse.Namespace) -> dict:
    config = _config(options)
    from omr_ray.workers.launch import train

    return train(config, options.out or Path("runs") / config.name, resume=options.resume)


def _evaluate(options: argparse.Namespace) -> dict:
    if options.protocol is not None:
        return _compare(options)
    config = _config(options)
    from omr_ray.workers.launch import evaluate

    return evaluate(config, Path(options.out), adapter=options.adapter)


def _compare(options: argparse.Namespace) -> dict:
    from omr_ray.config.comparison import ComparisonConfig

    if options.adapter is not None:
        raise UserError("--adapter goes without --protocol; name the adapter under models of the comparison")
    config = ComparisonConfig.load(options.config, options.overrides)
    config.base()
    from omr_ray.workers.comparison import compare

    result = compare(config, options.out, protocol=options.protocol)
    print(f"report: {result['report']}", file=sys.stderr)
    return result


def _finetune(options: argparse.Namespace) -> dict:
    from omr_ray.config.finetune import FinetuneRun

    config = FinetuneRun.load(options.config, options.overrides)
    from omr_ray.ray_session import connected
    from omr_ray.training.diffusion import train

    with connected(math.ceil(config.trainer.ranks * config.worker.num_cpus)):
        return train(config, options.out or Path("runs") / config.name, resume=options.resume)


def _sweep(options: argparse.Namespace) -> dict:
    from omr_ray.config.sweep import SweepConfig

    config = SweepConfig.load(options.config, options.overrides)
    config.base()
    from omr_ray.sweep import sweep

    return sweep(config, options.out or Path("runs") / config.name, resume=options.resume)


def _plan(options: argparse.Namespace) -> dict:
    from omr_ray.plan import plan

    result = plan(_config(options))
    if not options.json:
        result.print()
    return result.to_json()


def _bench(options: argparse.Namespace) -> dict:
    config = _config(options)
    from omr_ray.bench import bench

    return bench(config, what=options.what, repeats=options.repeats)


def _trace(options: argparse.Namespace) -> dict:
    from omr_ray.evaluation.trace import write_trace

    result = write_trace(options.directory, options.out or options.directory / "trace.json")
    print(f"{result['trace']}: {result['spans']} spans of {result['steps']} steps; open it in Perfetto", file=sys.stderr)
    return result


def _reward_train(options: argparse.Namespace) -> dict:
    from omr_ray.config.reward_model import RewardRun

    config = RewardRun.load(options.config, options.overrides)
    from omr_ray.ray_session import connected
    from omr_ray.training.reward_model import train

    with connected(math.ceil(config.trainer.ranks * config.worker.num_cpus)):
        return train(config, options.out or Path("runs") / config.name, resume=options.resume)


def _reward_evaluate(options: argparse.Namespace) -> dict:
    from omr_ray.config.run import RunConfig
    from omr_ray.workers.reward_evaluation import evaluate

    policy = RunConfig.load(options.policy) if options.policy else None
    loading = {"engine": options.engine, "dtype": options.dtype, "device": options.device}
    return evaluate(options.model, options.data, options.out, limit=options.limit, policy=policy, prompts=options.prompts, **loading)


def _serve(options: argparse.Namespace) -> dict:
    from omr_ray.config.serve import ServeConfig

    config = ServeConfig.load(options.config, options.overrides)
    from omr_ray.serving import launch

    if options.build is not None:
        return launch.write_deployment(config, options.build)
    if options.new_key is not None:
        made = launch.new_key(config, options.new_key)
        print(f"key of {made['owner']}, shown once: {made['key']}", file=sys.stderr)
        return made
    return launch.run(config)


def _simulate(options: argparse.Namespace) -> dict:
    from omr_ray.config.serve import ServeConfig

    config = ServeConfig.load(options.config, options.overrides)
    from omr_ray.evaluation.interactive.simulate import Simulation, simulate

    simulation = Simulation(
        intents=options.intents,
        seeds=tuple(options.seeds),
        max_turns=options.turns,
        skip_probability=options.skip_probability,
        variants=None if options.variants is None else tuple(options.variants),
    )
    return simulate(config, options.out, simulation, adapter=options.adapter, url=options.url, key_env=options.key_env)


def _votes_export(options: argparse.Namespace) -> dict:
    from omr_ray.config.serve import ServeConfig

    config = ServeConfig.load(options.config, options.overrides)
    from omr_ray.serving.votes_export import export

    result = export(config, options.out, options.label_studio)
    print(f"{result['pairs']} pairs; left out: {result['tie']} ties, {result['both_bad']} both bad", file=sys.stderr)
    return result


def _votes_import(options: argparse.Namespace) -> dict:
    from omr_ray.config.serve import ServeConfig

    config = ServeConfig.load(options.config, options.overrides)
    from omr_ray.serving.label_studio import read_file

    result = read_file(config, options.file)
    print(f"{result['pairs']} new pairs, {result['annotations']} annotations", file=sys.stderr)
    for reason, count in result["reasons"].items():
        print(f"{count} tasks not taken: {reason}", file=sys.stderr)
    return result


def _data_build(options: argparse.Namespace) -> dict:
    from omr_ray.config.data import DataConfig

    config = DataConfig.load(options.config, options.overrides)
    from omr_ray.data.build import build
    from omr_ray.ray_session import connected

    with connected():
        return build(config, options.out)


def _data_look(options: argparse.Namespace) -> dict:
    from omr_ray.data.look import look

    return look(options.path, options.out)


def _data_export(options: argparse.Namespace) -> dict:
    from omr_ray.data.export import export

    return export(options.path, options.out)


def _atelier_pretrain(options: argparse.Namespace) -> dict:
    from omr_ray.atelier.pretrain import STAGES, pretrain

    return pretrain(options.out, stages=options.only or tuple(STAGES), device=options.device)


def _atelier_oracle(options: argparse.Namespace) -> dict:
    from omr_ray.atelier import WEIGHTS
    from omr_ray.atelier.oracle import Oracle

    accuracy = Oracle.from_pretrained(WEIGHTS / "oracle").evaluate_on_renders()
    for aspect, value in accuracy.items():
        print(f"{aspect:12} {value:.4f}", file=sys.stderr)
    return {"held_out_accuracy": accuracy}


def _atelier_show(options: argparse.Namespace) -> dict:
    from omr_ray.atelier.dialogues import contact_sheet

    return {"picture": contact_sheet(options.out)}


if __name__ == "__main__":
    sys.exit(main())
