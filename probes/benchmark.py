"""Encoders compared: each trained on the same zoo, frozen, and probed beside the same baselines."""

from __future__ import annotations

import itertools
import logging
import math
import re
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from probes.evaluation import evaluate
from probes.feature_sets import Embedding, baselines
from probes.problem import read_rows, refuse_unposed
from probes.report import choose_targets, refuse_wrong_splits, render, write
from probes.targets import Target
from weightspace import encoders as encoder_files
from weightspace import objectives as objective_files
from weightspace.components.discovery import refuse_unknown_name
from weightspace.data.datamodule import ZooDataModule
from weightspace.data.targets import Target as Learned
from weightspace.store import Division, divisions, open_zoo
from weightspace.training.embed import embed_rows, embed_stacks
from weightspace.training.module import EmbeddingModule, fit
from weightspace.training.restoring import load

logger = logging.getLogger(__name__)

MAX_EPOCHS = 40
MAX_EPOCHS_IN_BUDGET = 10_000
"""With a budget of CPU minutes the budget ends training, not the number of epochs."""


COSTS = ("parameters", "models_per_cpu_second", "peak_memory_mb")


@dataclass(frozen=True, kw_only=True)
class Trained:
    """One encoder trained with one seed for one split or fold: embeddings (rows, embedding_dim), and what they cost."""

    encoder: str
    seed: int
    split: str
    fold: int | None
    learned_with: str
    embeddings: np.ndarray
    parameters: int
    models_per_cpu_second: float
    peak_memory_mb: float
    training_cpu_seconds: float

    @property
    def name(self) -> str:
        """What tables call the embeddings; seeds after the first carry their number in it."""
        return f"embedding:{self.encoder}" + (f"#{self.seed}" if self.seed else "")

    @property
    def cost(self) -> dict[str, Any]:
        """What training and embedding took."""
        told = ("encoder", "seed", "split", "fold", *COSTS, "training_cpu_seconds")
        return {name: getattr(self, name) for name in told}


def benchmark(
    zoo: Path | str,
    out: Path | str,
    encoders: Sequence[str] = ("MessagePassing",),
    objective: str = "Supervised",
    seeds: int = 1,
    cpu_minutes: float | None = None,
    targets: Sequence[str] = (),
    splits: Sequence[str] = ("in_distribution",),
    max_epochs: int = MAX_EPOCHS,
    progress: bool = False,
) -> dict[str, Any]:
    """Train, freeze and probe each encoder with each seed; writes benchmark.json, returned too, and report.html.

    Each is trained anew for each of the `splits`, and for each fold of one that has folds. `cpu_minutes` bounds one
    training. Values of several seeds are averaged, and so are the ends of their intervals, which therefore speak of
    test models and not of seeds.
    """
    _refuse_unusable(encoders, objective, seeds, splits, cpu_minutes)
    opened = open_zoo(zoo)
    chosen = choose_targets(opened, targets)
    parts = [part for split in splits for part in divisions(opened.table, split)]
    refuse_unposed(read_rows(opened.table), chosen, parts)
    trained = []
    for name, seed, part in itertools.product(encoders, range(seeds), parts):
        logger.info("Training %s with %s, seed %d, for %s.", name, objective, seed, part.name)
        run = Path(out) / "runs" / _run_name(name, objective, seed, part)
        data = ZooDataModule(zoo, seed=seed, split=part.split, fold=part.fold)
        module = make(name, objective, chosen, seed)
        trained.append(train(module, data, run, max_epochs=max_epochs, cpu_minutes=cpu_minutes, progress=progress))
    feature_sets = [*_embeddings(trained), *baselines(opened)]
    evaluation = evaluate(opened.table, feature_sets, chosen, splits=splits)
    document = {
        "rows": _averaged(evaluation.rows, trained),
        "runs": [one.cost for one in trained],
        "zoo": opened.fingerprint,
        "objective": objective,
        "targets": [target.name for target in chosen],
        "excluded": evaluation.excluded,
        "splits": evaluation.splits,
    }
    title = f"Encoders on {Path(zoo).resolve().name}, trained with {objective}"
    page = render(evaluation, read_rows(opened.table), feature_sets, chosen, title, opened.fingerprint)
    write(Path(out), "benchmark.json", document, page)
    return document


def _run_name(encoder: str, objective: str, seed: int, part: Division) -> str:
    """A run's folder; of what was trained for another split than `in_distribution`, with the split and fold."""
    of_part = "" if part.split == "in_distribution" else f"-{part.split}"
    of_part += "" if part.fold is None else f"-{part.fold}"
    return f"{encoder}-{objective}-{seed}{of_part}"


def _embeddings(trained: Sequence[Trained]) -> list[Embedding]:
    """Embeddings of each encoder and seed, for every split and fold it was trained for."""
    alike: dict[str, list[Trained]] = {}
    for one in trained:
        alike.setdefault(one.name, []).append(one)
    return [
        Embedding(
            name=name,
            learned_with=same[0].learned_with,
            made_for={(one.split, one.fold): one.embeddings for one in same},
        )
        for name, same in alike.items()
    ]


def _refuse_unusable(
    encoders: Sequence[str], objective: str, seeds: int, splits: Sequence[str], cpu_minutes: float | None
) -> None:
    """Raise ValueError for what would only fail after training."""
    if not splits:
        raise ValueError("`splits` is empty; name at least one.")
    refuse_wrong_splits(splits)
    if seeds < 1:
        raise ValueError(f"`seeds` (={seeds}) must be at least 1.")
    if cpu_minutes is not None and not 0 < cpu_minutes < math.inf:
        raise ValueError(f"`cpu_minutes` (={cpu_minutes}) must be above 0; leave it out for {MAX_EPOCHS} epochs.")
    if len(set(encoders)) < len(encoders) or not encoders:
        raise ValueError(f"`encoders` (={list(encoders)}) must name at least one encoder, and each once.")
    for name in encoders:
        refuse_unknown_name("encoder", name, sorted(encoder_files.available()))
    refuse_unknown_name("objective", objective, sorted(objective_files.available()))


def make(encoder: str, objective: str, targets: Sequence[Target], seed: int) -> EmbeddingModule:
    """An encoder of its default size with an objective, initialised by the seed.

    An objective with labels learns the very targets that are probed, with their bounds.
    """
    torch.manual_seed(seed)
    made: Any = encoder_files.available()[encoder]
    goal: Any = objective_files.available()[objective]
    if goal.learned_with == "labels":
        return EmbeddingModule(made(), goal(targets=_learned(targets)), seed=seed)
    return EmbeddingModule(made(), goal(), seed=seed)


def _learned(targets: Sequence[Target]) -> list[Learned]:
    return [
        Learned(name=target.name, low=target.low, high=target.high, trained_only=target.leave_out_step_0)
        for target in targets
        if target.kind == "regression"
    ]


def train(
    module: EmbeddingModule,
    data: ZooDataModule,
    run: Path,
    *,
    max_epochs: int = MAX_EPOCHS,
    cpu_minutes: float | None = None,
    progress: bool = False,
) -> Trained:
    """Train a module in the folder `run`, and embed every row of the zoo with its best checkpoint."""
    _forget_peak_memory()
    start = time.process_time()
    epochs = MAX_EPOCHS_IN_BUDGET if cpu_minutes else max_epochs
    best = fit(module, data, run, max_epochs=epochs, cpu_minutes=cpu_minutes, progress=progress)
    cpu_seconds = time.process_time() - start
    frozen = load(best).encoder.eval()
    embeddings = embed_rows(frozen, data).double().numpy()
    return Trained(
        encoder=type(module.encoder).__name__,
        seed=module.seed,
        split=data.division.split,
        fold=data.division.fold,
        learned_with=module.objective.learned_with,
        embeddings=embeddings,
        parameters=sum(p.numel() for p in frozen.parameters()),
        models_per_cpu_second=_throughput(frozen, data),
        peak_memory_mb=_peak_memory_mb(),
        training_cpu_seconds=cpu_seconds,
    )


def _throughput(encoder: encoder_files.Encoder, data: ZooDataModule, seconds: float = 1.0) -> float:
    """Models embedded per second of CPU time, loading left out, over about a second of batches."""
    batches = [batch.stacks for _, batch in zip(range(8), data.predict_dataloader(), strict=False)]
    embed_stacks(encoder, batches[0])
    models, start = 0, time.process_time()
    while time.process_time() - start < seconds:
        for stacks in batches:
            embed_stacks(encoder, stacks)
            models += sum(len(stack) for stack in stacks)
    return models / (time.process_time() - start)


def _forget_peak_memory() -> None:
    """Make the peak start from now, where Linux lets us; elsewhere it is that of the whole process."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        logger.debug("The peak of memory cannot be reset here.")


def _peak_memory_mb() -> float:
    """Peak resident memory of this process, in MiB."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(float(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _averaged(rows: Sequence[dict[str, Any]], trained: Sequence[Trained]) -> list[dict[str, Any]]:
    """Rows with values and interval ends averaged over seeds, costs beside the rows of the embedding itself."""
    alike: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for one in rows:
        # Seeds share a name here: `embedding:NAME#1 - statistics` and `embedding:NAME - statistics` are one row.
        row = one | {"features": re.sub(r"#\d+", "", one["features"])}
        identity = tuple(row.get(name) for name in ("features", "of", "probe", "target", "split", "metric"))
        alike.setdefault(identity, []).append(row)
    return [_average(same, trained) for same in alike.values()]


def _average(same: Sequence[dict[str, Any]], trained: Sequence[Trained]) -> dict[str, Any]:
    learned = same[0]["features"].startswith("embedding:")
    row = same[0] | {"num_seeds": len(same) if learned else 1}
    for name in ("value", "low", "high"):
        values = [one[name] for one in same if one[name] is not None]
        row[name] = float(np.mean(values)) if values else None
    if row["low"] is not None:
        row.pop("reason", None)
    own = (row["features"], row["split"])
    runs = [one.cost for one in trained if (f"embedding:{one.encoder}", one.split) == own]
    for name in COSTS:
        row[name] = float(np.mean([run[name] for run in runs])) if runs else None
    return row
