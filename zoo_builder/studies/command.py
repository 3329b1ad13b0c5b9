"""The commands `zoo-builder study run` and `zoo-builder study table`: their options and what they do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

DESCRIPTION = """Reproduces a phenomenon of a paper at a small size: builds the study's zoo in OUT/NAME, measures it,
compares the numbers with the study's gates and draws the paper's figure. OUT/NAME/result.json holds the gates with
their values, OUT/NAME/figure.png the figure. The exit status is 1 if a gate fails. A zoo that an earlier run finished
is read, not built again."""
EPILOG = "Example: zoo-builder study run Timescales --out studies"
TABLE_DESCRIPTION = """Prints the gates of every study with thresholds and the values that finished studies measured, as
Markdown, with a section for each of these. With --out it is written to a file, and the figures, of at most 100 kB each,
into a folder of the same name beside it."""
TABLE_EPILOG = "Example: zoo-builder study table studies --out studies.md"


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


def add_table_options(parser: Any) -> None:
    """Give a parser the options of the table."""
    add = parser.add_argument
    add("folders", nargs="+", type=str, metavar="DIR", help="folders that `study run` left")
    add("--out", type=str, help="the Markdown file to write")
    add("--json", action="store_true", help="print one JSON document: a list of gates with values")


def table(options: Any) -> tuple[list[dict[str, Any]], str]:
    """Rows of the table as one document, and the page, or where it was written, as text."""
    from zoo_builder.studies.table import markdown, results_in, rows_of, write

    results = results_in(options.folders)
    if options.out is None:
        return rows_of(results), markdown(results).rstrip()
    write(results, Path(options.out))
    return rows_of(results), f"{options.out}: {len(results)} studies"
