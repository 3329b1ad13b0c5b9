"""Encoders compared: each trained on the same zoo, frozen, and probed beside the same baselines."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from probes.encoder_runs import COSTS, MAX_EPOCHS, Budget, Run, finished
from probes.evaluation import Evaluation, evaluate, ordered
from probes.feature_sets import Embedding, baselines, refuse_unknown_baselines
from probes.fitting import metrics_of
from probes.page.render import Extras, render
from probes.problem import read_rows, refuse_unposed
from probes.report import choose_targets, fewer, heading_of, refuse_wrong_splits, write
from probes.run_extras import extras_of
from probes.targets import Target
from weightspace import encoders as encoder_files
from weightspace import objectives as objective_files
from weightspace.components.discovery import refuse_unknown_name
from weightspace.store import Division, Zoo, divisions, open_zoo


def benchmark(
    zoo: Path | str,
    out: Path | str,
    encoders: Sequence[str] = ("MessagePassing",),
    objective: str | Sequence[str] = "Supervised",
    seeds: int = 1,
    cpu_minutes: float | None = None,
    targets: Sequence[str] = (),
    splits: Sequence[str] = ("in_distribution",),
    max_epochs: int = MAX_EPOCHS,
    progress: bool = False,
    updates: int | None = None,
    baseline_names: Sequence[str] = (),
) -> dict[str, Any]:
    """Train, freeze and probe each encoder with each objective and seed; writes benchmark.json, returned, and a report.

    Each is trained anew for each of the `splits`, and for each fold of one that has folds. `cpu_minutes` or `updates`
    bound one training. `baseline_names` are the baselines, all if empty. Finished runs in `out` are read back; one that
    fails is a row with its error. Seeds are averaged, and so are ends of intervals, which speak of test models alone.
    """
    objectives = [objective] if isinstance(objective, str) else list(objective)
    _refuse_unusable(encoders, objectives, seeds, splits, baseline_names)
    _refuse_unusable_budget(cpu_minutes, updates)
    opened = open_zoo(zoo)
    chosen = choose_targets(opened, targets)
    parts = _parts(opened, splits, chosen)
    budget = Budget(cpu_minutes=cpu_minutes, updates=updates, max_epochs=max_epochs)
    planned, folder = _planned(encoders, objectives, seeds, parts), Path(out) / "runs"
    runs, several = [finished(run, zoo, folder, chosen, budget, progress) for run in planned], len(objectives) > 1
    feature_sets = [*_embeddings(runs, several), *(bars := baselines(opened, baseline_names))]
    chosen = ordered(chosen, feature_sets)
    evaluation = evaluate(opened.table, feature_sets, chosen, splits=splits)
    evaluation.rows.extend(_failed(runs, several, chosen))
    extras = extras_of(runs, [name_of(run, several) for run in runs], folder, opened, evaluation)
    averaged = replace(evaluation, rows=_averaged(evaluation.rows, runs, several))
    document = _document(averaged, runs, extras) | {
        "zoo": opened.fingerprint, "objective": objectives if several else objectives[0],
        "targets": [target.name for target in chosen], "baselines": [bar.name for bar in bars],
    }  # fmt: skip
    title = f"Encoders on {Path(zoo).resolve().name}, trained with {', '.join(objectives)}"
    heading = heading_of(title, opened, fewer(bars, baseline_names))
    page = render(averaged, read_rows(opened.table), feature_sets, chosen, heading, extras)
    write(Path(out), "benchmark.json", document, page)
    return document


def _parts(zoo: Zoo, splits: Sequence[str], targets: Sequence[Target]) -> list[Division]:
    """The divisions that encoders are trained for; ValueError where no target can be probed on any of them."""
    parts = [part for split in splits for part in divisions(zoo.table, split)]
    refuse_unposed(read_rows(zoo.table), targets, parts)
    return parts


def _document(averaged: Evaluation, runs: Sequence[Run], extras: Extras) -> dict[str, Any]:
    """Content of benchmark.json: the runs, and their rows averaged over seeds."""
    return {
        "rows": averaged.rows,
        "runs": [run.record for run in runs],
        "leaderboards": [board.record for board in extras.leaderboards],
        "excluded": averaged.excluded,
        "splits": averaged.splits,
    }


def _planned(encoders: Sequence[str], objectives: Sequence[str], seeds: int, parts: Sequence[Division]) -> list[Run]:
    """The runs of each encoder: with every objective, and untrained, by seed, split and fold."""
    asked = itertools.product(encoders, [*objectives, None], range(seeds), parts)
    return [Run(encoder=e, objective=o, seed=s, split=part.split, fold=part.fold) for e, o, s, part in asked]


def name_of(run: Run, several: bool) -> str:
    """The name of a run's features in tables: with its objective where there are several, its seed after the first."""
    named = f"{run.encoder}-{run.objective}" if several and run.objective else run.encoder
    return f"{'embedding' if run.objective else 'untrained'}:{named}" + (f"#{run.seed}" if run.seed else "")


def _embeddings(runs: Sequence[Run], several: bool) -> list[Embedding]:
    """Embeddings of each encoder, objective and seed, for every split and fold that training came to an end for."""
    alike: dict[str, list[Run]] = {}
    for run in runs:
        if run.embeddings is not None:
            alike.setdefault(name_of(run, several), []).append(run)
    return [
        Embedding(
            name=name,
            learned_with=same[0].learned_with,
            reads="queries" if same[0].queries else "weights",
            label_adjacent=same[0].label_adjacent,
            encoder=f"{same[0].encoder}#{same[0].seed}",
            made_for={(run.split, run.fold): run.embeddings for run in same if run.embeddings is not None},
        )
        for name, same in alike.items()
    ]


def _failed(runs: Sequence[Run], several: bool, targets: Sequence[Target]) -> Iterator[dict[str, Any]]:
    """A row without a value, with the error as its reason, for each target of a run that failed."""
    for run, target in itertools.product([run for run in runs if run.error], targets):
        metric = metrics_of(run.split)[0][0] if target.kind == "regression" else "accuracy"
        row: dict[str, Any] = {"features": name_of(run, several), "probe": "ridge", "target": target.name}
        row |= {"metric": metric, "split": run.split, "value": None, "low": None, "high": None, "num_folds": 1}
        row |= {"num_train": 0, "num_test": 0, "num_seeds": 1, "learned_with": None, "label_adjacent": False}
        if metric == "kendall_tau":
            row["pairs"] = "within_cell"
        yield row | {"reason": run.error}


def _refuse_unusable(
    encoders: Sequence[str], objectives: Sequence[str], seeds: int, splits: Sequence[str], baseline_names: Sequence[str]
) -> None:
    """Raise ValueError for what would only fail after training."""
    refuse_unknown_baselines(baseline_names)
    if not splits:
        raise ValueError("`splits` is empty; name at least one.")
    refuse_wrong_splits(splits)
    if seeds < 1:
        raise ValueError(f"`seeds` (={seeds}) must be at least 1.")
    known_encoders: Mapping[str, Any] = encoder_files.available()
    known_objectives: Mapping[str, Any] = objective_files.available()
    sides = (("encoder", encoders, known_encoders), ("objective", objectives, known_objectives))
    for what, names, known in sides:
        if len(set(names)) < len(names) or not names:
            raise ValueError(f"`{what}s` (={list(names)}) must name at least one {what}, and each once.")
        for name in names:
            refuse_unknown_name(what, name, sorted(known))


def _refuse_unusable_budget(cpu_minutes: float | None, updates: int | None) -> None:
    """Raise ValueError for a budget that is none, or for two."""
    if cpu_minutes is not None and not 0 < cpu_minutes < math.inf:
        raise ValueError(f"`cpu_minutes` (={cpu_minutes}) must be above 0; leave it out for {MAX_EPOCHS} epochs.")
    if updates is not None and updates < 1:
        raise ValueError(f"`updates` (={updates}) must be at least 1; leave it out for {MAX_EPOCHS} epochs.")
    if cpu_minutes is not None and updates is not None:
        raise ValueError("Both `cpu_minutes` and `updates` are given; leave one of them out.")


def _averaged(rows: Sequence[dict[str, Any]], runs: Sequence[Run], several: bool) -> list[dict[str, Any]]:
    """Rows with values and interval ends averaged over seeds, costs beside the rows of the embedding itself."""
    alike: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for single in rows:
        # Seeds share a name here: `embedding:NAME#1 - statistics` and `embedding:NAME - statistics` are one row.
        row = single | {"features": re.sub(r"#\d+", "", single["features"])}
        identity = tuple(row.get(name) for name in ("features", "of", "probe", "target", "split", "metric"))
        alike.setdefault(identity, []).append(row)
    return [_average(same, runs, several) for same in alike.values()]


def _average(same: Sequence[dict[str, Any]], runs: Sequence[Run], several: bool) -> dict[str, Any]:
    """The mean row of several seeds, with the costs of their encoder."""
    learned = same[0]["features"].startswith(("embedding:", "untrained:"))
    # Of seeds that failed there are rows without a value, which are no part of the mean.
    known = sum(single["value"] is not None for single in same)
    row = same[0] | {"num_seeds": max(known, 1) if learned else 1}
    for name in ("value", "low", "high"):
        values = [single[name] for single in same if single[name] is not None]
        row[name] = float(np.mean(values)) if values else None
    if row["low"] is not None:
        row.pop("reason", None)
    named = [run for run in runs if run.costs and re.sub(r"#\d+", "", name_of(run, several)) == row["features"]]
    costs = [run.costs for run in named if run.costs and run.split == row["split"]]
    for name in COSTS:
        row[name] = float(np.mean([getattr(cost, name) for cost in costs])) if costs else None
    return row
