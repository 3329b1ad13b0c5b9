"""The command `probes`: what embeddings of a zoo know, beside baselines and controls."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, Namespace

from weightspace import __version__
from weightspace.components import faults, plugins, usage
from weightspace.terminal import printable

SPLITS_HELP = "Splits to judge on: in_distribution, new_task, new_size, new_family "
SPLITS_HELP += "(default: all that the zoo has held-out rows for)."
BASELINES_HELP = "Baselines to put beside (default: all): statistics, spectra, statistics+spectra, markov, responses, "
BASELINES_HELP += "metadata; on zoos of many families each takes minutes."
ADJACENT = " *"
TITLES = {"r2_within_cell": "within-cell R2", "kendall_tau": "within-cell Kendall's tau", "accuracy": "accuracy"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status is 0 (done), 2 (bad usage or bad input) or 130 (interrupted)."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    commands = {"run": _run, "benchmark": _benchmark}
    argv, debug = faults.take_option(sys.argv[1:] if argv is None else argv)
    try:
        options = _parser().parse_args(plugins.take_option(argv))
        return commands[options.subcommand](options[options.subcommand])
    except KeyboardInterrupt:
        print("probes: interrupted; nothing was left half-written.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Who reads our output has gone, as in `probes run ... | head -1`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        print(f"probes: {printable(' '.join(faults.line_of(error, debug).split()))}", file=sys.stderr)
        return 2


class _Parser(ArgumentParser):
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        super().error(usage.in_words(message, self.prog), ex)


def _parser() -> ArgumentParser:
    parser = _Parser(
        prog="probes",
        version=__version__,
        description="Asks what embeddings of a zoo know of its labels, beside baselines and controls.",
        epilog="Example: probes run --zoo zoo --embeddings embeddings.safetensors --out probes. "
        f"{plugins.HELP} {faults.HELP}",
    )
    commands = parser.add_subcommands(required=True)
    _add_run(commands)
    _add_benchmark(commands)
    return parser


def _add_run(commands: Any) -> None:
    run = _Parser(
        allow_abbrev=False,
        description="Probes embeddings of a zoo; writes probes.json and report.html, and prints a short table.",
        epilog="Example: probes run --zoo zoo --embeddings labels.safetensors no_labels.safetensors --out probes",
    )
    run.add_argument("--config", action="config", help="YAML file with any of these options.")
    run.add_argument("--zoo", type=str, required=True, metavar="DIR", help="Zoo folder.")
    run.add_argument(
        "--embeddings",
        type=str,
        nargs="+",
        default=[],
        metavar="FILE",
        help="Files of `weightspace embed` for this zoo, each judged on the split (and fold) that its encoder was "
        "trained for; without any, the baselines alone are probed.",
    )
    run.add_argument("--out", type=str, required=True, metavar="DIR", help="Folder for probes.json and report.html.")
    run.add_argument(
        "--targets",
        type=str,
        nargs="+",
        default=[],
        metavar="NAME",
        help="Label columns to probe (default: the headline labels that the zoo has, family and task).",
    )
    run.add_argument("--splits", type=str, nargs="+", default=[], metavar="NAME", help=SPLITS_HELP)
    run.add_argument("--baselines", type=str, nargs="+", default=[], metavar="NAME", help=BASELINES_HELP)
    run.add_argument("--seed", type=int, default=0, help="Seed of resamples and permutations.")
    _add_parts_of_the_page(run)
    _add_printing(run, "probes.json")
    commands.add_subcommand("run", run, help="Probe embeddings of a zoo.")


def _add_parts_of_the_page(run: ArgumentParser) -> None:
    run.add_argument(
        "--checkpoints",
        type=str,
        nargs="+",
        default=[],
        metavar="CKPT",
        help="Checkpoints that made the embeddings, for which the report shows the weights that predictions rest on.",
    )
    run.add_argument(
        "--reference",
        type=str,
        nargs=2,
        default=[],
        metavar=("DIR", "FILE"),
        help="Another zoo and its embeddings by the same encoder, to be on the map: neighbours of the models there.",
    )


def _add_printing(parser: ArgumentParser, name: str) -> None:
    parser.add_argument("--table", action="store_true", help="Print all rows of the headline metric, then the answer.")
    parser.add_argument("--json", action="store_true", help=f"Print the content of {name} instead of the answer.")


def _add_benchmark(commands: Any) -> None:
    benchmark = _Parser(
        allow_abbrev=False,
        description="Trains encoders on a zoo, freezes them and probes their embeddings; writes benchmark.json.",
        epilog="Example: probes benchmark --zoo zoo --encoders MessagePassing --objective Supervised --out benchmark",
    )
    benchmark.add_argument("--config", action="config", help="YAML file with any of these options.")
    benchmark.add_argument("--zoo", type=str, required=True, metavar="DIR", help="Zoo folder.")
    benchmark.add_argument(
        "--encoders", type=str, nargs="+", default=["MessagePassing"], metavar="NAME", help="Encoders to compare."
    )
    benchmark.add_argument(
        "--objective", type=str, nargs="+", default=["Supervised"], metavar="NAME", help="Objectives to learn from."
    )
    benchmark.add_argument("--seeds", type=int, default=1, help="Seeds of each encoder.")
    benchmark.add_argument(
        "--cpu_minutes",
        type=float,
        default=None,
        help="CPU minutes to train one encoder with one seed for one split or fold.",
    )
    benchmark.add_argument(
        "--updates", type=int, default=None, help="Updates to train each for, where CPU minutes are no budget."
    )
    benchmark.add_argument(
        "--targets",
        type=str,
        nargs="+",
        default=[],
        metavar="NAME",
        help="Label columns to learn and probe (default: the headline labels that the zoo has).",
    )
    benchmark.add_argument(
        "--splits",
        type=str,
        nargs="+",
        default=["in_distribution"],
        metavar="NAME",
        help="Splits to train for and judge on: in_distribution, new_task, new_size, new_family (each fold in turn).",
    )
    benchmark.add_argument("--baselines", type=str, nargs="+", default=[], metavar="NAME", help=BASELINES_HELP)
    benchmark.add_argument("--out", type=str, required=True, metavar="DIR", help="Folder for benchmark.json.")
    _add_printing(benchmark, "benchmark.json")
    commands.add_subcommand("benchmark", benchmark, help="Train and compare encoders.")


def _run(options: Namespace) -> int:
    from probes.report import run

    encoders: list[Any] = []
    if options.checkpoints:
        from probes.encoder_runs import frozen

        encoders = [frozen(checkpoint) for checkpoint in options.checkpoints]
    arguments = (options.zoo, options.embeddings, options.out, options.targets, options.seed, options.splits)
    chosen = {"baseline_names": options.baselines, "reference": options.reference}
    rows = run(*arguments, encoders=encoders, **chosen)
    if options.json:
        sys.stdout.write(Path(options.out, "probes.json").read_text(encoding="utf-8") + "\n")
        return 0
    _print(rows, options, "probes.json")
    return 0


def _print(rows: Sequence[Mapping[str, Any]], options: Namespace, name: str) -> None:
    """Print the answer and the paths, after the whole table where that is asked for."""
    from probes.answer import answer_lines

    for line in (*(table_lines(rows) if options.table else ()), *answer_lines(rows)):
        print(printable(line))
    print(f"\nWrote {Path(options.out, name)} and {Path(options.out, 'report.html')}.")


def _benchmark(options: Namespace) -> int:
    from probes.benchmark import benchmark

    document = benchmark(
        zoo=options.zoo,
        out=options.out,
        encoders=options.encoders,
        objective=options.objective,
        seeds=options.seeds,
        cpu_minutes=options.cpu_minutes,
        updates=options.updates,
        targets=options.targets,
        splits=options.splits,
        baseline_names=options.baselines,
        progress=sys.stderr.isatty(),
    )
    if options.json:
        print(json.dumps(document, sort_keys=True, allow_nan=False))
        return 0
    _print(document["rows"], options, "benchmark.json")
    return 0


def table_lines(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A table of the headline metric for each target and split, a line for each row."""
    width = max((len(row["features"]) for row in rows), default=0) + len(ADJACENT)
    headings: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        # Order between cells is not the headline anywhere; of differences, the strongest baseline's and what is added.
        shown = " - " not in row["features"] or row.get("strongest") or row.get("adds")
        if row["metric"] in TITLES and row.get("pairs") != "all" and shown:
            headings.setdefault((row["target"], row["metric"], row["split"]), []).append(row)
    for (target, metric, split), same in headings.items():
        first = same[0]
        counts = f"{first['num_train']} training and {first['num_test']} test rows"
        folds = f" in {first['num_folds']} folds" if first.get("num_folds", 1) > 1 else ""
        yield f"\n{target}: {TITLES[metric]}, {split}, {counts}{folds}"
        for row in same:
            probe = row["probe"].replace("_", " ")
            learned_with = f"  {row['learned_with']}" if row["learned_with"] and " - " not in row["features"] else ""
            name = row["features"] + ADJACENT * bool(row.get("label_adjacent"))
            yield f"  {name:{width}}  {probe:25}  {_interval(row)}{learned_with}".rstrip()
    if any(row.get("label_adjacent") for row in rows):
        yield f"\n{ADJACENT.strip()} made from, or trained on, ingredients of this label: a high value says less"


def _interval(row: Mapping[str, Any]) -> str:
    if row["value"] is None and row.get("reason"):
        return f"   n/a: {row['reason']}"
    value, low, high = ("   n/a" if row[key] is None else f"{row[key]:6.3f}" for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


if __name__ == "__main__":
    sys.exit(main())
