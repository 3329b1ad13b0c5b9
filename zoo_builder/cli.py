"""The command `zoo-builder`."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
import json
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from jsonargparse import ArgumentParser, Namespace

from weightspace import __version__, recipes
from weightspace.components import faults, plugins, usage
from weightspace.terminal import printable
from zoo_builder import bring_command, list_command
from zoo_builder.bench import command as bench_command
from zoo_builder.studies import command as study_command

if TYPE_CHECKING:
    from zoo_builder.share import Share
    from zoo_builder.workers.processes import Engine

ENGINES = {"processes": "zoo_builder.workers.processes", "ray": "zoo_builder.workers.ray"}
"""Module of each engine, which has a function `run_shards`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status is 0 (done), 1 (a check found something), 2 (bad input), 130 (interrupted)."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    commands = {"build": _build, "verify": _verify, "label": _label, "info": _info, "list": _list, "study": _study}
    commands |= {"bench": _bench, "import": _import}
    previous = signal.signal(signal.SIGTERM, _terminated)
    argv, debug = faults.take_option(sys.argv[1:] if argv is None else argv)
    try:
        options = _parser().parse_args(plugins.take_option(argv))
        return commands[options.subcommand](options[options.subcommand])
    except KeyboardInterrupt:
        print("zoo-builder: interrupted; run the same command again to go on.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of the output has ended, as in `zoo-builder list families | head -1`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        print(f"zoo-builder: {printable(faults.line_of(error, debug))}", file=sys.stderr)
        return 2
    finally:
        signal.signal(signal.SIGTERM, previous)


def _terminated(number: int, frame: FrameType | None) -> None:
    print("zoo-builder: terminated; run the same command again to go on.", file=sys.stderr)
    raise SystemExit(128 + number)


class _Parser(ArgumentParser):
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        super().error(usage.in_words(message, self.prog), ex)


def _parser() -> ArgumentParser:
    parser = _Parser(
        prog="zoo-builder",
        version=__version__,
        description="Builds, checks and describes zoos of recurrent networks.",
        epilog=f"Example: zoo-builder build --config quickstart-tiny --out zoo. {plugins.HELP} {faults.HELP}",
    )
    commands = parser.add_subcommands(required=True)
    _add_build(commands)
    verify = _Parser(
        description="Checks every byte of a zoo against its zoo.json; exit status 1 if there is a fault.",
        epilog="Example: zoo-builder verify zoo --repair",
    )
    verify.add_argument("folder", type=str, help="the zoo's folder")
    verify.add_argument("--repair", action="store_true", help="make what is damaged again, with the same bytes")
    verify.add_argument("--json", action="store_true", help="print one JSON document")
    commands.add_subcommand("verify", verify, help="check every byte of a zoo")
    _add_label(commands)
    _add_import(commands)
    info = _Parser(
        description="Counts models by family, task, split and status, and gives the range of each label.",
        epilog="Example: zoo-builder info zoo --json",
    )
    info.add_argument("folder", type=str, help="the zoo's folder")
    info.add_argument("--json", action="store_true", help="print one JSON document")
    commands.add_subcommand("info", info, help="what a zoo holds")
    listing = _Parser(description=list_command.DESCRIPTION, epilog=list_command.EPILOG)
    list_command.add_options(listing)
    commands.add_subcommand("list", listing, help="what there is to build with")
    _add_study(commands)
    _add_bench(commands)
    return parser


def _add_build(commands: Any) -> None:
    build = _Parser(
        description="Builds the zoo of a recipe, or goes on with a build that was stopped.",
        epilog="Example: zoo-builder build --config quickstart --out zoo --workers 2",
    )
    build.add_argument("--config", type=str, required=True, help="the recipe: a YAML file, or a name of `list recipes`")
    build.add_argument("--out", type=str, required=True, help="the zoo's folder")
    build.add_argument("--seed", type=int, help="replaces the recipe's seed")
    build.add_argument("--workers", type=int, help="number of processes (one per core unless given; one on CUDA)")
    build.add_argument("--engine", choices=list(ENGINES), default="processes", help="who runs the workers")
    build.add_argument("--address", type=str, help="of a Ray cluster (own one unless given)")
    build.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where models learn and are measured")
    build.add_argument("--method", choices=["native", "torch"], help="how models are run (native on the CPU)")
    build.add_argument("--shard", type=str, metavar="I/N", help="make the I-th of N shares only, for job arrays")
    build.add_argument("--dry_run", action="store_true", help="print cohorts, models, bytes and estimated time only")
    build.add_argument("--json", action="store_true", help="print one JSON document")
    commands.add_subcommand("build", build, help="build or resume a zoo")


def _add_label(commands: Any) -> None:
    label = _Parser(
        description="Adds labels to a finished zoo, or measures them again, without retraining.",
        epilog="Example: zoo-builder label zoo --labels MemoryCapacity FixedPoints",
    )
    label.add_argument("folder", type=str, help="the zoo's folder")
    names = "labels, or columns of labels, of `zoo-builder list labels`"
    label.add_argument("--labels", nargs="+", type=str, required=True, help=names)
    label.add_argument("--workers", type=int, help="number of processes (one per core unless given; one on CUDA)")
    label.add_argument(
        "--other_version",
        action="store_true",
        help="measure with the versions and machine at hand where others built the zoo; zoo.json then says so",
    )
    label.add_argument("--json", action="store_true", help="print one JSON document")
    commands.add_subcommand("label", label, help="add labels to a finished zoo")


def _add_import(commands: Any) -> None:
    bring = _Parser(description=bring_command.DESCRIPTION, epilog=bring_command.EPILOG)
    bring_command.add_options(bring)
    commands.add_subcommand("import", bring, help="make a zoo of networks trained elsewhere")


def _add_bench(commands: Any) -> None:
    bench = _Parser(description=bench_command.DESCRIPTION, epilog=bench_command.EPILOG)
    bench_command.add_options(bench)
    commands.add_subcommand("bench", bench, help="training speed beside the alternatives")


def _add_study(commands: Any) -> None:
    study = _Parser(description="Reproduces phenomena of papers at a small size.", epilog=study_command.EPILOG)
    run = _Parser(description=study_command.DESCRIPTION, epilog=study_command.EPILOG)
    study_command.add_options(run)
    table = _Parser(description=study_command.TABLE_DESCRIPTION, epilog=study_command.TABLE_EPILOG)
    study_command.add_table_options(table)
    commands.add_subcommand("study", study, help="reproduce a phenomenon of a paper")
    parts = study.add_subcommands(required=True)
    parts.add_subcommand("run", run, help="run studies and judge them by their gates")
    parts.add_subcommand("table", table, help="what finished studies measured, as Markdown")


def _refuse_without_locks() -> None:
    if importlib.util.find_spec("fcntl") is None:
        raise ValueError(
            "Zoos are built and changed on POSIX systems only (Linux, macOS, WSL): this one has no `fcntl`, whose "
            "locks keep builders apart. What only reads a zoo works here."
        )


def _build(options: Namespace) -> int:
    _refuse_without_locks()
    from zoo_builder.share import Share

    share = None if options.shard is None else Share.parse(options.shard)
    if options.dry_run:
        return _dry_run(options, share)
    from zoo_builder.build import build

    built = build(
        recipes.named(options.config, "zoo"),
        options.out,
        seed=options.seed,
        workers=options.workers,
        device=options.device,
        method=options.method,
        share=share,
        engine=_engine(options),
    )
    fields = {**dataclasses.asdict(built), "path": str(built.path)}
    counts = f"{built.models:,} models, {built.rows:,} rows, {built.shards:,} shards"
    state = "finished" if built.fingerprint else f"unfinished, {built.missing:,} shards missing"
    text = f"{built.path}: {counts} ({built.built:,} built now), {state}"
    _print(fields, text, options.json)
    return 0


def _engine(options: Namespace) -> Engine:
    run_shards = importlib.import_module(ENGINES[options.engine]).run_shards
    engine: Engine = run_shards
    if options.address is None:
        return engine
    if options.engine != "ray":
        raise ValueError(f"`--address {options.address}` has no effect on `--engine {options.engine}`; leave it out.")
    return functools.partial(run_shards, address=options.address)


def _dry_run(options: Namespace, share: Share | None) -> int:
    from zoo_builder.executor import ROLLOUTS, chosen_method, refuse_missing_device
    from zoo_builder.planning.estimate import estimate, table
    from zoo_builder.planning.plan import make_plan
    from zoo_builder.planning.recipe import read_recipe
    from zoo_builder.workers.processes import chosen_workers

    refuse_missing_device(options.device)
    plan = make_plan(read_recipe(recipes.named(options.config, "zoo"), options.seed, options.device))
    workers = chosen_workers(options.workers, options.device)
    workers *= share.count if share else 1
    method = ROLLOUTS[chosen_method(options.device, options.method)]
    estimated = estimate(plan, workers, options.device, method)
    _print(estimated, table(estimated), options.json)
    return 0


def _verify(options: Namespace) -> int:
    from weightspace.store import verify

    folder = Path(options.folder)
    faults = verify(folder)
    if faults and options.repair:
        _refuse_without_locks()
        from zoo_builder.build import repair

        logging.getLogger(__name__).info("%d fault(s) found, repairing.", len(faults))
        faults = repair(folder)
    rows = [dataclasses.asdict(fault) for fault in faults]
    text = "\n".join(f"{fault.path!r}: {fault.problem}" for fault in faults) or f"{folder}: every byte is as promised"
    _print({"path": str(folder), "passed": not faults, "faults": rows}, text, options.json)
    return 1 if faults else 0


def _label(options: Namespace) -> int:
    _refuse_without_locks()
    from zoo_builder.relabel import relabel

    done = relabel(options.folder, options.labels, options.workers, other_version=options.other_version)
    fields = {**dataclasses.asdict(done), "path": str(done.path)}
    text = f"{done.path}: {done.rows:,} rows, {len(done.columns)} columns measured: {', '.join(done.columns)}"
    _print(fields, text, options.json)
    return 0


def _import(options: Namespace) -> int:
    _refuse_without_locks()
    fields, text = bring_command.brought(options)
    _print(fields, text, options.json)
    return 0


def _info(options: Namespace) -> int:
    from zoo_builder.overview import info, info_text

    overview = info(options.folder)
    _print(overview, info_text(overview), options.json)
    return 0


def _list(options: Namespace) -> int:
    rows, text = list_command.listed(options)
    _print(rows, text, options.json or options.schema)
    return 0


def _study(options: Namespace) -> int:
    if options.subcommand == "table":
        rows, text = study_command.table(options.table)
        _print(rows, text, options.table.json)
        return 0
    _refuse_without_locks()
    results, text = study_command.run(options.run)
    _print(results, text, options.run.json)
    return 0 if all(result["passed"] for result in results) else 1


def _bench(options: Namespace) -> int:
    result, text = bench_command.measured(options)
    _print(result, text, options.json)
    return 0


def _print(value: Any, text: str, as_json: bool) -> None:
    """Print the result of a command, its only output on stdout."""
    print(json.dumps(value, allow_nan=False, sort_keys=True, indent=1) if as_json else printable(text))


if __name__ == "__main__":
    sys.exit(main())
