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
    found = [
        next(
            (
                row["value"]
                for row in rows
                if (row["features"], row["probe"]) == side and all(row[k] == difference[k] for k in same)
            ),
            None,
        )
        for side in sides
    ]
    return Comparison(embedding, baseline, difference, *found)


def sentence(rows: Sequence[Row]) -> str:
    """The answer on the first split that has embeddings: what each reads better or worse, with intervals."""
    compared = comparisons(rows)
    if not compared:
        return "No embedding stands beside the baselines here: an answer needs some (`weightspace embed`)."
    split = compared[0].difference["split"]
    here = [one for one in compared if one.difference["split"] == split]
    names = list(dict.fromkeys(one.embedding for one in here))
    if len(names) > MOST_NAMED:
        told = "; ".join(_counted(target, same) for target, same in _by_target(here).items())
        return f"On {TITLES[split]}, of {len(names)} embeddings beside the strongest baseline of their kind: {told}."
    return f"On {TITLES[split]}, " + "; ".join(_told(name, here) for name in names) + "."


def _by_target(compared: Sequence[Comparison]) -> dict[str, list[Comparison]]:
    targets = dict.fromkeys(one.difference["target"] for one in compared)
    return {target: [one for one in compared if one.difference["target"] == target] for target in targets}


def _counted(target: str, same: Sequence[Comparison]) -> str:
    """How many embeddings read a target better, worse or neither, the better ones by name."""
    sides: dict[str, list[str]] = {"better": [], "worse": [], "undecided": []}
    for one in same:
        sides.setdefault(one.verdict, []).append(_plain(one.embedding))
    words = [f"{len(names)} {side}" for side, names in sides.items() if names]
    named = f" ({', '.join(sides['better'])})" if sides["better"] else ""
    words = [word + named if word.endswith("better") else word for word in words]
    return f"{target} {', '.join(words)}"


def _plain(name: str) -> str:
    return name.removeprefix("embedding:")


def _told(name: str, compared: Sequence[Comparison]) -> str:
    """One embedding in a clause: targets that it reads better first, then worse, then those left open."""
    mine = [one for one in compared if one.embedding == name]
    sides = {side: [one for one in mine if one.verdict == side] for side in ("better", "worse", "undecided")}
    rival = "the strongest baseline of its kind"
    words = {
        "better": f"reads {{}} better than {rival}",
        "worse": "reads {} worse" + ("" if sides["better"] else f" than {rival}"),
        "undecided": "leaves {} undecided" + ("" if sides["better"] or sides["worse"] else f" beside {rival}"),
    }
    parts = [words[side].format(_listed(found)) for side, found in sides.items() if found]
    learned = LEARNED[mine[0].difference["learned_with"]]
    return f"{_plain(name)} ({learned}) " + (_joined(parts) or "has no defined difference from its baselines")


def _listed(found: Sequence[Comparison]) -> str:
    return _joined([one.difference["target"] + "†" * bool(one.difference["label_adjacent"]) for one in found])


def _joined(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def metadata_sentence(rows: Sequence[Row]) -> str | None:
    """Where metadata alone wins, in a sentence; None where it does so nowhere."""
    lost: dict[str, dict[str, list[str]]] = {}
    for one in beaten_by_metadata(rows):
        row = one.difference
        where = f"{'within' if is_headline(row) else 'between'} cells on {TITLES[row['split']]}"
        margin = f"{-row['value']:.2f} than {_plain(one.embedding)}"
        lost.setdefault(where, {}).setdefault(row["target"], []).append(margin)
    if not lost:
        return None
    told = (f"{w}, {', '.join(f'{t} (by {_joined(by)})' for t, by in targets.items())}" for w, targets in lost.items())
    return f"Metadata alone (family, size, task, step, hyper-parameters: no weights) reads better: {'; '.join(told)}."


def answer_lines(rows: Sequence[Row]) -> Iterator[str]:
    """The answer for a terminal: a short table of each embedding beside its strongest baseline."""
    compared = comparisons(rows)
    if not compared:
        yield from _bars(rows)
    table = [("target", "split", "metric", "embedding", "", "strongest baseline", "", "difference", "")]
    for one in compared:
        row = one.difference
        name = row["target"] + " †" * bool(row["label_adjacent"])
        margin = interval(row) if row["low"] is not None else "n/a"
        table.append(
            (name, row["split"], METRICS[row["metric"]], _plain(one.embedding), _number(one.value), one.baseline,
             _number(one.bar), margin, one.verdict)
        )  # fmt: skip
    if compared:
        widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
        for line in table:
            yield "  ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()
        if any(one.difference["label_adjacent"] for one in compared):
            yield "† made from, or trained on, ingredients of this label: a high value says less"
        yield ""
    yield sentence(rows)
    told = metadata_sentence(rows)
    if told:
        yield told
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
