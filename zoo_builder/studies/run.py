"""Runs of studies: zoos are built or opened, measured, judged by the gates and drawn."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import resource
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightspace import store
from zoo_builder.build import build
from zoo_builder.studies.base import Measured, Study
from zoo_builder.workers import in_process

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

RESULT, FIGURE, SPENT = "result.json", "figure.png", "cpu_seconds.json"


def run_study(study: Study, out: str | Path, *, seed: int | None = None, workers: int = 1) -> dict[str, Any]:
    """Run a study in the folder `out`/NAME and return what its result.json holds.

    Zoos that an earlier run finished are read, and one that it left unfinished is finished; the CPU seconds count what
    was spent on them then. One worker is this process itself, more are processes of their own.
    """
    folder = Path(out) / type(study).__name__
    zoos = {}
    for name, recipe in study.recipes.items():
        logger.info("%s: zoo %s", type(study).__name__, folder / name)
        with _counted(folder, name):
            build(recipe, folder / name, seed=seed, workers=workers, engine=in_process.run_shards)
        zoos[name] = store.open_zoo(folder / name)
    start = _cpu_seconds()
    logger.info("%s: measuring", type(study).__name__)
    measured = study.measure(zoos)
    gates = judged(study, measured)
    image = _png(study.draw(measured))
    spent = sum(_spent(folder).values()) + _cpu_seconds() - start
    result = {
        "study": type(study).__name__,
        "paper": study.paper,
        "passed": all(gate["passed"] for gate in gates),
        "gates": gates,
        "cpu_seconds": round(spent, 2),
        "reported": [dict(row) for row in measured.reported],
    }
    with store.naming(folder, 0):
        folder.mkdir(parents=True, exist_ok=True)
    store.write_durably(folder / FIGURE, image)
    # Last, so that a result has its figure beside it.
    store.write_durably(folder / RESULT, store.pretty(result))
    return result


def judged(study: Study, measured: Measured) -> list[dict[str, Any]]:
    """Record of each gate: its value (None for NaN and infinities, which JSON lacks) and whether it passed."""
    names = [gate.name for gate in study.gates]
    if sorted(names) != sorted(measured.values):
        raise ValueError(
            f"{type(study).__name__} measured {sorted(measured.values)}, but its gates are {sorted(names)}; "
            "`measure` must give one value for each gate."
        )
    values = {name: float(value) for name, value in measured.values.items()}
    return [
        {
            "name": gate.name,
            "threshold": gate.threshold,
            "comparison": gate.comparison,
            "value": values[gate.name] if math.isfinite(values[gate.name]) else None,
            "passed": math.isfinite(values[gate.name]) and gate.passes(values[gate.name]),
        }
        for gate in study.gates
    ]


def result_text(study: Study, result: Mapping[str, Any]) -> str:
    """A result as text, one line per gate."""
    verdict = "passed" if result["passed"] else "FAILED"
    lines = [f"{result['study']}: {verdict}, {result['cpu_seconds']:.0f} CPU seconds"]
    for gate, found in zip(study.gates, result["gates"], strict=True):
        value = "none" if found["value"] is None else f"{found['value']:.4g}"
        lines.append(f"    {'passed' if found['passed'] else 'FAILED'}  {gate}: {value}")
    return "\n".join(lines)


@contextlib.contextmanager
def _counted(folder: Path, name: str) -> Iterator[None]:
    """Add the CPU seconds of the body to those that earlier runs spent on a zoo, even if it fails."""
    before = _spent(folder)
    if not (folder / name).exists():
        before.pop(name, None)
    start = _cpu_seconds()
    try:
        yield
    finally:
        if folder.is_dir():
            total = {**before, name: round(before.get(name, 0.0) + _cpu_seconds() - start, 2)}
            store.write_durably(folder / SPENT, store.pretty(total))


def _spent(folder: Path) -> dict[str, float]:
    """CPU seconds spent so far on each zoo of a study; without a readable file, none are known."""
    try:
        return {str(name): float(value) for name, value in store.read_document(folder / SPENT).items()}
    except (ValueError, TypeError):
        return {}


def _cpu_seconds() -> float:
    """CPU seconds of this process and of the children it has waited for."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _png(figure: Figure) -> bytes:
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=150)
    return image.getvalue()
