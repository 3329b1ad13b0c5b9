"""The command `zoo-builder study run`: its options and its run."""

from __future__ import annotations

from typing import Any

DESCRIPTION = """Reproduces a phenomenon of a paper at a small size: builds the study's zoo in OUT/NAME, measures it,
compares the numbers with the study's gates and draws the paper's figure. OUT/NAME/result.json holds the gates with
their values, OUT/NAME/figure.png the figure. The exit status is 1 if a gate fails. A zoo that an earlier run finished
is read, not built again."""
EPILOG = "Example: zoo-builder study run Timescales --out studies"


def add_options(parser: Any) -> None:
    """Give a parser the options of the command."""
    add = parser.add_argument
    add("names", nargs="*", type=str, metavar="NAME", help="studies, as in `zoo-builder list studies`")
    add("--all", action="store_true", help="run every study")
    add("--out", type=str, required=True, help="the folder of the results, one folder in it for each study")
    add("--seed", type=int, help="replaces the seed of the study's recipes")
    add("--workers", type=int, default=1, help="number of processes; 1 is this process itself")
    add("--json", action="store_true", help="print one JSON document: a list of results")


def run(options: Any) -> tuple[list[dict[str, Any]], str]:
    """Results of the studies, as one document and as text."""
    from zoo_builder.workers import in_process
    from zoo_builder.workers.processes import chosen_workers

    in_process.prepare()
    from zoo_builder import studies
    from zoo_builder.studies.run import result_text, run_study

    workers = chosen_workers(options.workers, "cpu")
    if options.all == bool(options.names):
        raise ValueError(f"Give names of studies or `--all`, and not both; there are {sorted(studies.available())}.")
    names = sorted(studies.available()) if options.all else dict.fromkeys(options.names)
    # All names are looked up before the first study runs.
    chosen = [studies.load(name) for name in names]
    results, texts = [], []
    for study in chosen:
        results.append(run_study(study, options.out, seed=options.seed, workers=workers))
        texts.append(result_text(study, results[-1]))
    return results, "\n".join(texts)
