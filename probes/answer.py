"""The answer of an evaluation in few words: each embedding beside the strongest baseline of its kind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

TITLES = {
    "in_distribution": "unseen models",
    "new_task": "new tasks",
    "new_size": "new sizes",
    "new_family": "new families",
}
LEARNED = {"labels": "learned with labels", "no_labels": "learned without labels", None: "learned"}
METRICS = {"r2_within_cell": "within-cell R2", "kendall_tau": "within-cell tau", "r2": "R2", "accuracy": "accuracy"}
MOST_NAMED = 2
"""Embeddings that a sentence speaks of one by one; of more it counts."""

UNPROBED = (
    "Nothing is probed: a probe learns from two models or more and is judged on two others, and no label has so many. "
    "What there is to see of each model is on the page: its place and neighbours, its labels, its eigenvalues."
)
Row = Mapping[str, Any]


def is_difference(row: Row) -> bool:
    """Whether a row of probes.json is a difference of two features."""
    return "strongest" in row or "adds" in row


def is_headline(row: Row) -> bool:
    """Whether a row is of the metric that stands first: within cells, or of classes."""
    return row["metric"] in ("r2_within_cell", "accuracy") or row.get("pairs") == "within_cell"


def verdict(row: Row) -> str:
    """A difference in a word: better or worse where its 95% interval leaves out 0."""
    if row["low"] is None:
        return "undefined"
    if row["low"] > 0:
        return "better"
    return "worse" if row["high"] < 0 else "undecided"


@dataclass(frozen=True)
class Comparison:
    """An embedding beside a baseline on one target of one split, in one metric; `difference` is the paired row."""

    embedding: str
    baseline: str
    difference: Row
    value: float | None
    bar: float | None
    above_chance: bool

    @property
    def verdict(self) -> str:
        """The difference in a word."""
        return verdict(self.difference)


def interval(row: Row) -> str:
    """A signed difference with its 95% interval."""
    value, low, high = (f"{round(row[key], 2) + 0.0:+.2f}" for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def comparisons(rows: Sequence[Row]) -> list[Comparison]:
    """Each embedding beside the strongest baseline of its kind, on every split and target, in the headline metric."""
    return [_comparison(rows, row) for row in rows if row.get("strongest") and is_headline(row)]


def beaten_by_metadata(rows: Sequence[Row]) -> list[Comparison]:
    """Where records of a model, none of its weights, tell the label better than an embedding, by either metric."""
    apart = [row for row in rows if is_difference(row) and row["features"].endswith(" - metadata")]
    best: dict[tuple[str, str, str, str], Row] = {}
    for row in apart:
        key = (row["features"], row["target"], row["split"], row["metric"])
        # Of two probes of the records the better one counts.
        if row["value"] is not None and (key not in best or row["value"] < best[key]["value"]):
            best[key] = row
    return [_comparison(rows, row) for row in best.values() if verdict(row) == "worse"]


def _comparison(rows: Sequence[Row], difference: Row) -> Comparison:
    embedding, _, baseline = difference["features"].rpartition(" - ")
    probes = difference["probe"].split(" - ")
    sides = ((embedding, probes[0]), (baseline, probes[-1]))
    same = ("target", "split", "metric")
    value, bar = (
        next(
            (
                row["value"]
                for row in rows
                if (row["features"], row["probe"]) == side and all(row[k] == difference[k] for k in same)
            ),
            None,
        )
        for side in sides
    )
    readable = [tuple(row[key] for key in ("features", *same)) for row in above_chance(rows)]
    is_readable = (embedding, *(difference[key] for key in same)) in readable
    return Comparison(embedding, baseline, difference, value, bar, is_readable)


def sentence(rows: Sequence[Row]) -> str:
    """The answer on the first split that has embeddings: what each reads better or worse, with intervals."""
    compared = comparisons(rows)
    if not rows:
        return UNPROBED
    if not compared:
        return "No embedding stands beside the baselines here: an answer needs some (`weightspace embed`)."
    split = compared[0].difference["split"]
    of_split = [c for c in compared if c.difference["split"] == split]
    names = list(dict.fromkeys(c.embedding for c in of_split))
    if len(names) > MOST_NAMED:
        counts = "; ".join(_counted(target, same) for target, same in _by_target(of_split).items())
        return f"On {TITLES[split]}, of {len(names)} embeddings beside the strongest baseline of their kind: {counts}."
    return f"On {TITLES[split]}, " + "; ".join(_clause(name, of_split) for name in names) + "."


def _by_target(compared: Sequence[Comparison]) -> dict[str, list[Comparison]]:
    targets = dict.fromkeys(c.difference["target"] for c in compared)
    return {target: [c for c in compared if c.difference["target"] == target] for target in targets}


def _counted(target: str, same: Sequence[Comparison]) -> str:
    """How many embeddings read a target better, worse or neither, the better ones by name."""
    sides: dict[str, list[str]] = {"better": [], "worse": [], "undecided": []}
    for comparison in same:
        sides.setdefault(comparison.verdict, []).append(_plain(comparison.embedding))
    words = [f"{len(names)} {side}" for side, names in sides.items() if names]
    named = f" ({', '.join(sides['better'])})" if sides["better"] else ""
    words = [word + named if word.endswith("better") else word for word in words]
    return f"{target} {', '.join(words)}"


def _plain(name: str) -> str:
    return name.removeprefix("embedding:")


def _clause(name: str, compared: Sequence[Comparison]) -> str:
    """One embedding in a clause: targets that it reads better first, then worse, then those left open."""
    of_name = [c for c in compared if c.embedding == name]
    sides = {side: [c for c in of_name if c.verdict == side] for side in ("better", "worse", "undecided")}
    rival = "the strongest baseline of its kind"
    words = {
        "better": f"reads {{}} better than {rival}",
        "worse": "reads {} worse" + ("" if sides["better"] else f" than {rival}"),
        "undecided": "leaves {} undecided" + ("" if sides["better"] or sides["worse"] else f" beside {rival}"),
    }
    parts = [words[side].format(_listed(same)) for side, same in sides.items() if same]
    learned = LEARNED[of_name[0].difference["learned_with"]]
    return f"{_plain(name)} ({learned}) " + (_joined(parts) or "has no defined difference from its baselines")


def _listed(compared: Sequence[Comparison]) -> str:
    return _joined([c.difference["target"] + "†" * bool(c.difference["label_adjacent"]) for c in compared])


def _joined(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def above_chance(rows: Sequence[Row]) -> list[Row]:
    """Embeddings that tell something within cells: their interval lies above 0, and above that of shuffled labels.

    Less than beating a baseline: it is what a short training can show, and nothing where classes are told.
    """
    key = ("target", "split", "metric")
    chance = {tuple(row[k] for k in key): row["high"] for row in rows if row["features"] == "shuffled"}
    alone = [row for row in rows if row["features"].startswith("embedding:") and " + " not in row["features"]]
    return [
        row
        for row in alone
        if not is_difference(row) and is_headline(row) and row["metric"] != "accuracy" and row["low"] is not None
        and row["low"] > max(0.0, chance.get(tuple(row[k] for k in key)) or 0.0)
    ]  # fmt: skip


def chance_sentence(rows: Sequence[Row]) -> str | None:
    """Sentence that names the targets read above chance, where no embedding beats a baseline; None elsewhere."""
    readable = above_chance(rows)
    if not readable or any(comparison.verdict == "better" for comparison in comparisons(rows)):
        return None
    parts = (
        f"{_plain(row['features'])} {row['target']} on {TITLES[row['split']]} ({METRICS[row['metric']]} "
        f"{_number(row['value'])} [{_number(row['low'])}, {_number(row['high'])}])"
        for row in readable
    )
    return f"No baseline is beaten, but more than shuffled labels would leave is read: {', '.join(parts)}."


def metadata_sentence(rows: Sequence[Row]) -> str | None:
    """Where metadata alone wins, in a sentence; None where it does so nowhere."""
    lost: dict[str, dict[str, list[str]]] = {}
    for comparison in beaten_by_metadata(rows):
        row = comparison.difference
        where = f"{'within' if is_headline(row) else 'between'} cells on {TITLES[row['split']]}"
        margin = f"{-row['value']:.2f} than {_plain(comparison.embedding)}"
        lost.setdefault(where, {}).setdefault(row["target"], []).append(margin)
    if not lost:
        return None
    parts = (
        f"{where}, {', '.join(f'{target} (by {_joined(by)})' for target, by in targets.items())}"
        for where, targets in lost.items()
    )
    return f"Metadata alone (family, size, task, step, hyper-parameters: no weights) reads better: {'; '.join(parts)}."


def answer_lines(rows: Sequence[Row]) -> Iterator[str]:
    """The answer for a terminal: a short table of each embedding beside its strongest baseline."""
    compared = comparisons(rows)
    if not compared:
        yield from _bars(rows)
    table = [("target", "split", "metric", "embedding", "", "strongest baseline", "", "difference", "")]
    for comparison in compared:
        row = comparison.difference
        name = row["target"] + " †" * bool(row["label_adjacent"])
        margin = interval(row) if row["low"] is not None else "n/a"
        table.append(
            (name, row["split"], METRICS[row["metric"]], _plain(comparison.embedding), _number(comparison.value),
             comparison.baseline, _number(comparison.bar), margin, comparison.verdict)
        )  # fmt: skip
    if compared:
        widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
        for line in table:
            yield "  ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()
        if any(comparison.difference["label_adjacent"] for comparison in compared):
            yield "† made from, or trained on, ingredients of this label: a high value says less"
        yield ""
    yield sentence(rows)
    of_chance = chance_sentence(rows)
    if of_chance:
        yield of_chance
    of_metadata = metadata_sentence(rows)
    if of_metadata:
        yield of_metadata
    bare = dict.fromkeys(row["split"] for row in rows if row["split"] not in {c.difference["split"] for c in compared})
    if bare and compared:
        yield f"Baselines alone, as no encoder was trained for it: {', '.join(bare)}."


def _bars(rows: Sequence[Row]) -> Iterator[str]:
    """Where there is nothing to compare, what statistics and spectra of weights tell by gradient boosting."""
    for row in rows:
        if is_headline(row) and (row["features"], row["probe"]) == ("statistics+spectra", "gradient_boosting"):
            ends = f" [{_number(row['low'])}, {_number(row['high'])}]"
            name = f"{row['target']}  {row['split']}  {METRICS[row['metric']]} of statistics+spectra by boosting"
            yield f"{name}  {_number(row['value'])}{ends}"


def _number(value: float | None) -> str:
    # Adding 0 to what rounding leaves takes the sign off minus nothing.
    return "n/a" if value is None else f"{round(value, 2) + 0.0:.2f}"
