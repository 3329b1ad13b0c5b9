"""Markdown of what studies measured: gates with thresholds and values, reported tables, and figures beside it."""

from __future__ import annotations

import inspect
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from weightspace import store
from weightspace.terminal import shown
from zoo_builder import studies
from zoo_builder.studies.base import Study
from zoo_builder.studies.run import FIGURE, RESULT

LARGEST_FIGURE = 100_000
"""Bytes of a figure beside the table."""
INTRODUCTION = """# Studies

A study reproduces the phenomenon of a paper at a small size, through the ordinary build path: `zoo-builder study run
NAME --out studies`. Its gates are declared with it. `zoo-builder study table studies` writes this page from the
`result.json` of each study: no number is copied by hand.
"""
HEADER = ("study", "gate", "threshold", "measured", "verdict")


def results_in(folders: Iterable[str | Path]) -> dict[str, tuple[dict[str, Any], Path]]:
    """Result and folder of every study that was run in these folders, by its name.

    A folder is that of one study or one that holds such folders, as `study run` leaves it. ValueError for a folder
    without results, for one study in two folders, and for a result whose gates are not those that the study declares.
    """
    found: dict[str, tuple[dict[str, Any], Path]] = {}
    for folder in map(Path, folders):
        paths = sorted({folder / RESULT, *folder.glob(f"*/{RESULT}")})
        paths = [path for path in paths if path.is_file()]
        if not paths:
            raise ValueError(f"{folder} holds no {RESULT}; give folders that `zoo-builder study run` left.")
        for path in paths:
            result = _read(path)
            if result["study"] in found:
                other = found[result["study"]][1]
                raise ValueError(f"{result['study']} has results in {other} and {path.parent}; give one of them.")
            found[result["study"]] = result, path.parent
    return found


def _read(path: Path) -> dict[str, Any]:
    result = store.read_document(path)
    name = result.get("study")
    if name not in studies.available():
        raise ValueError(f"{path} is of the study {shown(name)}, which is not among {sorted(studies.available())}.")
    wanted = [_judged_by(gate) for gate in map(asdict, studies.load(name).gates)]
    gates = result.get("gates")
    if not isinstance(gates, list) or [_judged_by(gate) for gate in gates] != wanted:
        raise ValueError(f"{path} was judged by other gates than {name} declares now; run the study again.")
    return result


def _judged_by(gate: Any) -> tuple[Any, ...]:
    return tuple(gate.get(key) for key in ("name", "comparison", "threshold")) if isinstance(gate, dict) else ()


def rows_of(results: Mapping[str, tuple[Mapping[str, Any], Path]]) -> list[dict[str, Any]]:
    """A row for every declared gate of every study, by `HEADER`.

    `verdict` is "passed", "failed" or "not run"; `measured` is None where there is no number.
    """
    rows = []
    for name in sorted(studies.available()):
        gates = results[name][0]["gates"] if name in results else [{}] * len(studies.load(name).gates)
        for gate, found in zip(studies.load(name).gates, gates, strict=True):
            verdict = {True: "passed", False: "failed"}.get(found.get("passed"), "not run")
            threshold = f"{gate.comparison} {gate.threshold:g} {gate.unit}"
            rows.append(dict(zip(HEADER, (name, gate.name, threshold, found.get("value"), verdict), strict=True)))
    return rows


def markdown(results: Mapping[str, tuple[Mapping[str, Any], Path]], figures: str | None = None) -> str:
    """The page: one table of all gates, then a section for each study that was run, with its figure in a folder."""
    sections = [INTRODUCTION, table(HEADER, [list(row.values()) for row in rows_of(results)])]
    for name in sorted(results):
        result, study = results[name][0], studies.load(name)
        sections.append(f"## {name}\n\n{_claim(study)}\n\n{study.paper}. {result['cpu_seconds']:.0f} CPU seconds.\n")
        if figures is not None:
            sections.append(f"![{name}]({figures}/{name}.png)\n")
        reported = result.get("reported") or []
        if reported:
            sections.append("Reported, not judged:\n")
            sections.append(table(list(reported[0]), [list(row.values()) for row in reported]))
    return "\n".join(sections)


def _claim(study: Study) -> str:
    return (inspect.getdoc(type(study)) or "").partition("\n\n")[0]


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table; numbers have four digits, and a dash stands where there is none."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(map(_cell, line)) + " |\n" for line in lines)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", r"\|")


def write(results: Mapping[str, tuple[Mapping[str, Any], Path]], path: Path) -> None:
    """Write the page to `path`, and the figures, made smaller, into a folder of its name beside it."""
    for name, (_, folder) in results.items():
        store.write_durably(_made(path.with_suffix("")) / f"{name}.png", small_figure(folder / FIGURE))
    store.write_durably(_made(path.parent) / path.name, markdown(results, path.stem).encode())


def _made(folder: Path) -> Path:
    with store.naming(folder, 0):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def small_figure(path: Path) -> bytes:
    """A figure as a PNG of at most `LARGEST_FIGURE` bytes, as large as that allows; ValueError if it is missing."""
    if not path.is_file():
        raise ValueError(f"{path} is missing; run the study again.")
    scale, made = 1.0, path.read_bytes()
    while len(made) > LARGEST_FIGURE:
        scale *= 0.85
        made = _scaled(path, scale)
    return made


def _scaled(path: Path, scale: float) -> bytes:
    import torch
    from matplotlib.image import imread, imsave

    pixels = torch.from_numpy(imread(path)[..., :3].copy()).permute(2, 0, 1)[None]
    smaller = torch.nn.functional.interpolate(pixels, scale_factor=scale, mode="bilinear", antialias=True)[0]
    # With few shades the file of a drawing is half as large.
    shades, image = (15 * smaller.permute(1, 2, 0)).round() / 15, io.BytesIO()
    imsave(image, shades.clamp(0, 1).numpy(), format="png")
    return image.getvalue()
