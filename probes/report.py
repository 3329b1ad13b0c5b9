"""From a zoo and files of embeddings to probes.json and one self-contained report.html."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from probes.attribution import Attribution, Encode, explained, made_by
from probes.evaluation import Evaluation, divided, evaluate, left_out, ordered
from probes.feature_sets import Baseline, Embedding, FeatureSet, baselines, read_embeddings
from probes.fitting import metrics_of
from probes.page.portraits import portraits
from probes.page.render import Extras, Heading, render
from probes.picture import picture
from probes.problem import Rows, none_posed, read_rows
from probes.reference import beside
from probes.targets import Target, default_targets, named_target
from weightspace.components.discovery import refuse_unknown_name
from weightspace.store import SPLITS, Division, Zoo, open_zoo, write_durably

LIBRARIES = ("numpy", "scipy", "scikit-learn", "pyarrow")
logger = logging.getLogger(__name__)


def run(
    zoo: Path | str,
    embeddings: Sequence[Path | str],
    out: Path | str,
    targets: Sequence[str] = (),
    seed: int = 0,
    splits: Sequence[str] = (),
    encoders: Sequence[Encode] = (),
    notice: str = "",
    baseline_names: Sequence[str] = (),
    reference: Sequence[Path | str] = (),
) -> list[dict[str, Any]]:
    """Probe embeddings of a zoo beside its baselines; returns the rows.

    Leaves probes.json, report.html and picture.png in `out`. Without `splits`, on all that the zoo has rows for. An
    embedding has rows on the splits that its encoder was trained for; files of one name are taken together, so that
    each split, and each fold, may have an encoder of its own. For `encoders` that made one of the embeddings the report
    says which weights predictions rest on. `notice` stands first. `baseline_names` are the baselines, all if empty.
    `reference` is another zoo and a file of its embeddings, which the map then holds, too. A zoo in which nothing can
    be probed, such as one of three networks, has a page without probes where embeddings of it are given and no targets
    or splits are named.
    """
    opened = open_zoo(zoo)
    learned = read_embeddings(embeddings, opened)
    refuse_wrong_splits(splits)
    _refuse_unused(learned, divided(opened.table, splits))
    mapped = beside(opened, learned, *reference) if reference else None
    Path(out).mkdir(parents=True, exist_ok=True)
    rows, chosen = read_rows(opened.table), ordered(choose_targets(opened, targets), learned)
    reasons = _unposed(rows, chosen, splits)
    if reasons and (targets or splits or not learned):
        raise ValueError(f"No target can be probed: {reasons}")
    pairs = matched(encoders, opened, rows, learned)
    bars = [] if reasons else baselines(opened, baseline_names)
    feature_sets: list[FeatureSet] = [*learned, *bars]
    evaluation = (
        left_out(opened.table, chosen) if reasons else evaluate(opened.table, feature_sets, chosen, seed, splits)
    )
    extras = Extras(attributions=attributions(pairs, opened, evaluation), mapped=mapped, portraits=portraits(opened))
    heading = heading_of(f"Probes of {Path(zoo).resolve().name}", opened, f"{notice} {fewer(bars, baseline_names)}")
    page = render(evaluation, rows, feature_sets, chosen, heading, extras)
    settings = {"seed": seed, "baselines": [bar.name for bar in bars]}
    write(Path(out), "probes.json", _document(opened, evaluation, chosen) | settings, page)
    write_durably(Path(out) / "picture.png", picture(evaluation.rows, rows, learned))
    return evaluation.rows


def _document(zoo: Zoo, evaluation: Evaluation, targets: Sequence[Target]) -> dict[str, Any]:
    """The content of probes.json but its seed."""
    return {
        "rows": evaluation.rows,
        "zoo": zoo.fingerprint,
        "targets": [_described(target) for target in targets],
        "excluded": evaluation.excluded,
        "splits": evaluation.splits,
        "created_with": {"python": platform.python_version()} | {name: metadata.version(name) for name in LIBRARIES},
    }


def _unposed(rows: Rows, targets: Sequence[Target], splits: Sequence[str]) -> str:
    """Why nothing can be probed on any of the splits; "" where something can."""
    parts = (part for part in divided(rows.table, splits).values() if not isinstance(part, str))
    return none_posed(rows, targets, [division for divisions in parts for division in divisions])


def write(out: Path, name: str, document: Mapping[str, Any], page: str) -> None:
    """Write report.html, and the document as JSON of this name, in the folder `out`, each whole or not at all."""
    out.mkdir(parents=True, exist_ok=True)
    write_durably(out / "report.html", page.encode())
    write_durably(out / name, json.dumps(document, sort_keys=True, allow_nan=False, indent=1).encode())


def refuse_wrong_splits(splits: Sequence[str]) -> None:
    """Raise ValueError for the name of a split that does not exist, or that is given twice."""
    for split in splits:
        refuse_unknown_name("split", split, SPLITS)
    if len(set(splits)) < len(splits):
        raise ValueError(f"`splits` (={list(splits)}) must name each split once.")


def _refuse_unused(learned: Sequence[Embedding], parts: Mapping[str, list[Division] | str]) -> None:
    """Raise ValueError where an embedding would have no row on any split, rather than be silent about it."""
    known = {split: divisions for split, divisions in parts.items() if not isinstance(divisions, str)}
    for embedding in learned:
        reasons = [embedding.unavailable(divisions) for divisions in known.values()]
        if all(reasons):
            raise ValueError(
                f"'{embedding.name}' can be judged on none of {', '.join(known)}, for its encoders may have seen what "
                f"is held out: {'; '.join(map(str, reasons))}. Give the embeddings of every fold, or name other splits."
            )


def choose_targets(zoo: Zoo, names: Sequence[str]) -> list[Target]:
    """Targets by name, or those that suit the zoo if none is named."""
    if names:
        return [named_target(zoo.table, name, zoo.path) for name in dict.fromkeys(names)]
    return default_targets(zoo.table, sorted(zoo.manifest.get("labels", {})))


def _described(target: Target) -> dict[str, Any]:
    """A target as JSON, its open bounds as null."""
    fields = dataclasses.asdict(target).items()
    return {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in fields}


def heading_of(title: str, zoo: Zoo, notice: str = "") -> Heading:
    """The heading of a page on a zoo, with the title that the zoo's recipe gives it."""
    zoo_title = str(zoo.manifest.get("recipe", {}).get("title", ""))
    return Heading(title=title, zoo=zoo.fingerprint, zoo_title=zoo_title, notice=notice.strip())


def fewer(bars: Sequence[Baseline], chosen: Sequence[str]) -> str:
    """The notice that only some baselines were probed, those `bars`; "" where none was chosen and all are there."""
    names = ", ".join(bar.name for bar in bars) or "none"
    return f"Only these baselines were probed, by choice: {names}; others may be stronger." if chosen else ""


def matched(
    encoders: Sequence[Encode], zoo: Zoo, rows: Rows, embeddings: Sequence[Embedding]
) -> list[tuple[Encode, Embedding]]:
    """Each encoder with the embedding that it made; ValueError for one that made none of them."""
    pairs = []
    for encode in encoders:
        embedding = made_by(encode, zoo, rows, embeddings)
        if embedding is None:
            known = ", ".join(f"'{each.name}'" for each in embeddings) or "none"
            raise ValueError(
                f"{type(encode).__name__} gives other embeddings than those that are judged ({known}); name the "
                "checkpoints that made them."
            )
        pairs.append((encode, embedding))
    return pairs


def attributions(
    pairs: Sequence[tuple[Encode, Embedding]], zoo: Zoo, evaluation: Evaluation
) -> list[Attribution]:
    """For encoders with the embeddings they made, the weights behind the number that each reads best within cells."""
    return [found for encode, embedding in pairs for found in _of_best(encode, zoo, evaluation, embedding)]


def _of_best(encode: Encode, zoo: Zoo, evaluation: Evaluation, embedding: Embedding) -> list[Attribution]:
    """Attributions on the target that an embedding reads best on the first split that it was made for."""
    headlines = {split: metrics_of(split)[0][0] for split in SPLITS}
    values = {
        (row["split"], row["target"]): row["value"]
        for row in evaluation.rows
        if (row["features"], row["metric"]) == (embedding.name, headlines[row["split"]]) and row["value"] is not None
    }
    if not values:
        return []
    split = next(iter(values))[0]
    best = max((key for key in values if key[0] == split), key=lambda key: values[key])
    prediction = next(
        p
        for p in evaluation.predictions
        if p.features is embedding
        and (p.question.split, p.question.target.name, p.metric) == (*best, headlines[split])
    )
    return explained(encode, zoo, prediction, values[best])
