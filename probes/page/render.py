"""The page put together: its parts, the data behind its figures, and one HTML text."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup, escape

from probes import answer
from probes.attribution import Attribution
from probes.curves import Curve
from probes.evaluation import Evaluation
from probes.feature_sets import Embedding, FeatureSet
from probes.fitting import metrics_of
from probes.leaderboard import Leaderboard, indistinct
from probes.page.charts import charts
from probes.page.confusions import confusions
from probes.page.heatmaps import pictured
from probes.page.points import MAX_MAPS, Shown, data_of, shown_rows
from probes.problem import Rows
from probes.reference import Mapped
from probes.targets import Target
from weightspace.store import SPLITS


@dataclass(frozen=True, kw_only=True)
class Heading:
    """Heading of a page: its title, fingerprint and title of the zoo, and a notice that stands above all."""

    title: str
    zoo: str
    zoo_title: str = ""
    notice: str = ""


@dataclass(frozen=True, kw_only=True)
class Extras:
    """Parts that not every page has.

    Learning curves, leaderboards over seeds, attributions of predictions, a reference zoo on the map, and what
    `portraits` reads of a small zoo.
    """

    curves: Sequence[Curve] = field(default_factory=list)
    leaderboards: Sequence[Leaderboard] = field(default_factory=list)
    attributions: Sequence[Attribution] = field(default_factory=list)
    mapped: Mapped | None = None
    portraits: Mapping[str, Any] | None = None


def _said(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The answer, in a table and in sentences."""
    return {
        "comparisons": answer.comparisons(rows),
        "sentence": answer.sentence(rows),
        "chance_sentence": answer.chance_sentence(rows),
        "metadata_sentence": answer.metadata_sentence(rows),
    }


def _counted(rows: Rows, shown: Shown) -> dict[str, int]:
    """Numbers of rows and models of the zoo, and of rows on maps, of which only some may be shown."""
    of_zoo = {"num_rows": len(rows.model), "num_models": len(np.unique(rows.model))}
    return {**of_zoo, "num_shown": len(shown.chosen), "num_mapped": len(shown.rows.model)}


def render(
    evaluation: Evaluation,
    rows: Rows,
    feature_sets: Sequence[FeatureSet],
    targets: Sequence[Target],
    heading: Heading,
    extras: Extras | None = None,
) -> str:
    """One HTML page of an evaluation that needs nothing else: figures are inline, nothing is fetched."""
    extras = extras or Extras()
    shown, data = _figures(evaluation, rows, feature_sets, targets, extras)
    # A page without a chosen split ends where its rows do.
    splits = list(dict.fromkeys(row["split"] for row in evaluation.rows))
    parts = {
        "map": bool(data["maps"]),
        "portraits": extras.portraits is not None,
        "judged": bool(data["questions"]),
        "attribution": bool(extras.attributions),
        "leaderboard": bool(extras.leaderboards),
        "curves": bool(extras.curves),
    }
    return _environment().get_template("page.html.j2").render(
        heading=heading,
        **_said(evaluation.rows),
        **_counted(rows, shown),
        reference=None if extras.mapped is None else extras.mapped.title,
        portraits=extras.portraits,
        num_embeddings=sum(isinstance(f, Embedding) and "#" not in f.name for f in feature_sets),
        max_maps=MAX_MAPS,
        targets=targets,
        rows=evaluation.rows,
        excluded=evaluation.excluded,
        held_out=evaluation.splits,
        splits=splits,
        learned_on=_learned_on(evaluation.rows),
        headlines={split: metrics_of(split)[0][0] for split in SPLITS},
        parts=parts,
        data=_script(data),
        confusions=list(confusions(evaluation.predictions)),
        charts=charts(extras.curves),
        leaderboards=[(board, indistinct(board)) for board in extras.leaderboards],
        attributions=pictured(extras.attributions, rows),
    )


def _figures(
    evaluation: Evaluation,
    rows: Rows,
    feature_sets: Sequence[FeatureSet],
    targets: Sequence[Target],
    extras: Extras,
) -> tuple[Shown, dict[str, Any]]:
    """The rows that figures show, those of a reference last, and the data behind the figures."""
    mapped = extras.mapped
    shown = shown_rows(rows if mapped is None else mapped.rows)
    data = data_of(shown, feature_sets if mapped is None else mapped.embeddings, targets, evaluation.predictions)
    data["without_reference"] = 0 if mapped is None else int(np.sum(shown.chosen < mapped.num_rows))
    # Of a small zoo the first row is chosen, so that its neighbours are there.
    data["row"] = -1 if extras.portraits is None or not len(shown.chosen) else 0
    return shown, data


def _learned_on(rows: Sequence[Mapping[str, Any]]) -> set[str]:
    """The splits that a learned embedding has rows on."""
    return {row["split"] for row in rows if row["features"].startswith("embedding:")}


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("probes.page"), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.globals |= {"verdict": answer.verdict, "signed": answer.interval, "file": _file}
    environment.filters["breakable"] = _breakable
    environment.tests["difference"] = answer.is_difference
    return environment


def _breakable(name: str) -> Markup:
    """A name that a line may break after its colons, underscores and plus signs."""
    return Markup(re.sub(r"([_:+])", r"\1<wbr>", str(escape(name))))


def _file(name: str) -> Markup:
    """A style sheet or a script of the package, as it is."""
    return Markup(resources.files("probes.page").joinpath("templates", name).read_text(encoding="utf-8"))


def _script(data: Mapping[str, Any]) -> Markup:
    """Data as JSON inside a script element, which no name in it can end."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace("&", "\\u0026"))
