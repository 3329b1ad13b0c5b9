"""Encoders ranked over seeds of training, with the differences between them that seeds can tell."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import scipy.stats

LEVEL = 0.05
ROUNDING = 1e-12


@dataclass(frozen=True)
class Entry:
    """A method with its scores by seed, their mean, and the 95% interval of the mean (Student), null for one seed."""

    name: str
    scores: list[float]
    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Pair:
    """Two methods on the same seeds: mean difference, the smallest that would count, p by Holm, whether it counts."""

    better: str
    worse: str
    difference: float
    critical: float
    p: float
    differ: bool


@dataclass(frozen=True)
class Leaderboard:
    """Methods from best to worst on a target (or the mean over targets) of a split; pairs are empty for one seed."""

    target: str
    split: str
    metric: str
    entries: list[Entry]
    pairs: list[Pair]
    note: str | None = None

    @property
    def record(self) -> dict[str, Any]:
        """The same as JSON."""
        return asdict(self)


def leaderboard(target: str, split: str, metric: str, scores: Mapping[str, Mapping[int, float]]) -> Leaderboard:
    """Rank methods by their mean over the seeds that all of them have; scores are by method and seed.

    Pairs are compared by paired t tests over seeds, p-values adjusted by Holm (1979) over all pairs. Friedman's test
    with Nemenyi's critical differences, usual over many data sets, sees only ranks: with two methods its smallest p of
    three seeds is 0.08, so that it could never tell two encoders apart at affordable numbers of seeds.
    """
    seeds = sorted(set.intersection(*(set(of_seed) for of_seed in scores.values()))) if scores else []
    if not seeds:
        return Leaderboard(target, split, metric, [], [], "no seed has come to an end for all encoders")
    values = {name: np.array([of_seed[seed] for seed in seeds]) for name, of_seed in scores.items()}
    entries = sorted((_entry(name, each) for name, each in values.items()), key=lambda entry: -entry.mean)
    if len(seeds) < 2:
        return Leaderboard(target, split, metric, entries, [], "one seed: nothing can be said about differences")
    pairs = holm([entry.name for entry in entries], values)
    return Leaderboard(target, split, metric, entries, pairs)


def _entry(name: str, scores: np.ndarray) -> Entry:
    mean, low, high = float(scores.mean()), None, None
    if len(scores) > 1:
        half = _half(scores, LEVEL)
        low, high = mean - half, mean + half
    return Entry(name, scores.tolist(), mean, low, high)


def _half(values: np.ndarray, level: float) -> float:
    """Half the width of Student's interval of a mean of values (seeds)."""
    error = values.std(ddof=1) / np.sqrt(len(values))
    return float(scipy.stats.t.ppf(1 - level / 2, len(values) - 1) * error)


def holm(names: Sequence[str], values: Mapping[str, np.ndarray]) -> list[Pair]:
    """Every pair of methods (from best to worst) with scores (seeds), from the smallest p to the largest.

    The i-th smallest of m p-values is held against level / (m - i + 1), and counts only if all smaller ones did; its
    critical difference is the half width of the paired interval at that level.
    """
    apart = {pair: values[pair[0]] - values[pair[1]] for pair in itertools.combinations(names, 2)}
    p = {pair: _p(differences) for pair, differences in apart.items()}
    pairs: list[Pair] = []
    adjusted, remaining = 0.0, len(apart)
    for pair in sorted(apart, key=lambda names: p[names]):
        adjusted = min(1.0, max(adjusted, remaining * p[pair]))
        critical = _half(apart[pair], LEVEL / remaining)
        difference = float(apart[pair].mean())
        pairs.append(Pair(*pair, difference, critical, adjusted, adjusted < LEVEL))
        remaining -= 1
    return pairs


def _p(differences: np.ndarray) -> float:
    """The two-sided p of a paired t test over differences (seeds); 1 where the methods are the same on every seed."""
    mean, error = differences.mean(), differences.std(ddof=1) / np.sqrt(len(differences))
    if error <= ROUNDING * abs(mean):
        # Without spread the statistic is not defined: equality is no evidence, a constant shift the most there is.
        return 1.0 if mean == 0 else 0.0
    return float(2 * scipy.stats.t.sf(abs(mean) / error, len(differences) - 1))


def indistinct(board: Leaderboard) -> dict[str, list[str]]:
    """By method, the others that seeds do not tell it apart from."""
    close: dict[str, list[str]] = {entry.name: [] for entry in board.entries}
    for pair in board.pairs:
        if not pair.differ:
            close[pair.better].append(pair.worse)
            close[pair.worse].append(pair.better)
    return close


def boards(rows: Sequence[Mapping[str, Any]], methods: Mapping[str, tuple[str, int]]) -> list[Leaderboard]:
    """A leaderboard for each split and target, first of the mean over targets that are numbers where there are several.

    rows: of ridge probes before seeds are averaged. methods: by name of features, the method and its seed.
    """
    scores_of: dict[tuple[str, str, str], dict[str, dict[int, float]]] = {}
    for row in rows:
        headline = row["metric"] == "r2_within_cell" or row.get("pairs") == "within_cell"
        if headline and row["features"] in methods and row["value"] is not None and row["probe"] == "ridge":
            name, seed = methods[row["features"]]
            key = (row["split"], row["metric"], row["target"])
            scores_of.setdefault(key, {}).setdefault(name, {})[seed] = row["value"]
    result = []
    for (split, metric), same in itertools.groupby(sorted(scores_of), key=lambda key: key[:2]):
        targets = [key[2] for key in same]
        of_target = [scores_of[split, metric, target] for target in targets]
        if len(targets) > 1:
            result.append(leaderboard("mean over targets", split, metric, _mean(of_target)))
        result += [leaderboard(t, split, metric, scores) for t, scores in zip(targets, of_target, strict=True)]
    return result


def _mean(of_target: Sequence[Mapping[str, Mapping[int, float]]]) -> dict[str, dict[int, float]]:
    """Means over targets, of methods and seeds that have a score on all of them."""
    methods = set.intersection(*(set(scores) for scores in of_target))
    seeds = {name: set.intersection(*(set(scores[name]) for scores in of_target)) for name in sorted(methods)}
    return {
        name: {seed: float(np.mean([scores[name][seed] for scores in of_target])) for seed in sorted(common)}
        for name, common in seeds.items()
        if common
    }
