"""Parts of a benchmark's report beside its rows: leaderboards, learning curves, weights behind predictions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from probes.curves import LOG, read_curves
from probes.encoder_runs import BEST, Run, frozen
from probes.evaluation import Evaluation
from probes.feature_sets import Embedding
from probes.leaderboard import boards
from probes.page.render import Extras
from probes.report import attributions
from weightspace.store import Zoo, split_title

MOST_EXPLAINED = 4
"""Encoders for which the report shows what predictions rest on."""


def method_of(name: str) -> str:
    """The name that all seeds of an encoder and objective share."""
    return re.sub(r"#\d+$", "", name)


def extras_of(runs: Sequence[Run], names: Sequence[str], folder: Path, zoo: Zoo, evaluation: Evaluation) -> Extras:
    """The parts for finished runs in a folder, whose features have these names; predictions are of the first seeds."""
    named = zip(runs, names, strict=True)
    trained = [(run, name) for run, name in named if run.objective and run.embeddings is not None]
    embeddings = {p.features.name: p.features for p in evaluation.predictions if isinstance(p.features, Embedding)}
    first = [(run, name) for run, name in trained if (run.seed, run.split, run.fold) == (0, *_first_part(trained))]
    pairs = [(frozen(folder / run.folder / BEST), embeddings[name]) for run, name in first[:MOST_EXPLAINED]]
    curves = [
        curve
        for run, name in trained
        for curve in read_curves(
            folder / run.folder / LOG,
            name=method_of(name).removeprefix("embedding:"),
            seed=run.seed,
            objective=str(run.objective),
            part=split_title(run.split, run.fold),
        )
    ]
    methods = {name: (method_of(name), run.seed) for run, name in trained}
    return Extras(
        leaderboards=boards(evaluation.rows, methods),
        curves=curves,
        attributions=attributions(pairs, zoo, evaluation),
    )


def _first_part(trained: Sequence[tuple[Run, str]]) -> tuple[str, int | None]:
    """The split and fold of the first run, of which predictions are explained."""
    return (trained[0][0].split, trained[0][0].fold) if trained else ("", None)
