"""The encoder of a checkpoint as a folder for others, its card with the zoo's recipe and figures of probes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from weightspace.encoders.base import Encoder
from weightspace.store import open_zoo, read_document
from weightspace.training.embed import default_name
from weightspace.training.restoring import load

BESIDE = ("metadata", "statistics", "spectra", "statistics+spectra")
"""Readings without learning that stand beside an embedding in a card."""
COLUMNS = ("features", "probe", "target", "split", "metric", "value", "low", "high")
METRIC = "r2_within_cell"


def export(
    checkpoint: Path | str,
    out: Path | str,
    *,
    zoo: Path | str | None = None,
    probes: Path | str | None = None,
    name: str | None = None,
    license: str = "apache-2.0",
) -> Encoder:
    """Write the encoder of a checkpoint into the folder `out` (see `Encoder.save_pretrained`), and return it.

    The card also has the recipe of `zoo`, the one of the training, and from `probes`, a probes.json, the figures of the
    embeddings `name` (ENCODER-OBJECTIVE by default).
    """
    encoder = load(checkpoint).encoder
    assert encoder.provenance is not None
    if zoo is not None:
        encoder.provenance = _with_recipe(encoder.provenance, zoo)
    if probes is not None:
        encoder.provenance = _with_probes(encoder.provenance, probes, name or default_name(encoder))
    encoder.save_pretrained(out, license=license)
    return encoder


def _with_recipe(provenance: Mapping[str, Any], zoo: Path | str) -> dict[str, Any]:
    """A record with the recipe of the zoo that the encoder was trained on; another zoo is refused."""
    opened = open_zoo(zoo)
    if opened.fingerprint != provenance["zoo"]:
        raise ValueError(
            f"The encoder was trained on the zoo {str(provenance['zoo'])[:12]}..., but {zoo} is "
            f"{opened.fingerprint[:12]}...; give the zoo of the training."
        )
    return {**provenance, "recipe": opened.manifest["recipe"]}


def _with_probes(provenance: Mapping[str, Any], probes: Path | str, name: str) -> dict[str, Any]:
    """A record with the within-cell R2 of the embedding `name` in a probes.json, and of readings without learning."""
    rows = read_document(Path(probes)).get("rows")
    if not isinstance(rows, list) or not all(isinstance(row, dict) and set(COLUMNS) <= set(row) for row in rows):
        raise ValueError(f"{probes} is not what `probes run` writes: it has no `rows` with {list(COLUMNS)}.")
    features = (f"embedding:{name}", *BESIDE)
    kept = [row for row in rows if row["features"] in features and row["metric"] == METRIC]
    if not any(row["features"] == features[0] for row in kept):
        there = sorted({str(row["features"]) for row in rows if str(row["features"]).startswith("embedding:")})
        raise ValueError(f"{probes} has no row of {features[0]}; it has {there}. Give the `name` of the embeddings.")
    return {**provenance, "metrics": [{key: row[key] for key in COLUMNS} for row in kept]}
