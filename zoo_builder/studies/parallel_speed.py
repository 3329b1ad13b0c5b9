"""CPU time and memory of rollouts in parallel over time, beside loops over steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from weightspace.families import Family
from weightspace.families.gru import GRU
from weightspace.rollout import Rollout, Streams, generator, rollout
from weightspace.spec import Params
from zoo_builder.bench.resident import peak_memory

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STEPS = (256, 1024, 4096)
UNITS = (2, 8, 32)
COHORTS = ((1, 1), (8, 4))
"""Models, and sequences of each."""
METHODS = ("stacked", "native", "deer", "quasi_deer")
IN_PARALLEL = ("deer", "quasi_deer")
LARGEST = 2**22
"""Numbers in the Jacobians of all steps beyond which methods in parallel over time are not run."""
REPEATS = 2
"""Calls of each method, of which the fastest counts."""


def speed_table(steps: Sequence[int] = STEPS, units: Sequence[int] = UNITS) -> list[dict[str, Any]]:
    """A row for each cohort, number of units and number of steps of untrained GRUs in float32, forward alone.

    CPU seconds of one thread, the least of several calls that take turns; memory is what a call needs at most beyond
    its inputs. None for `deer` and `quasi_deer` where Jacobians have more than `LARGEST` numbers.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [_row(*cohort, size, length) for cohort in COHORTS for size in units for length in steps]
    finally:
        torch.set_num_threads(threads)


def _row(models: int, sequences: int, size: int, num_steps: int) -> dict[str, Any]:
    family = GRU(input_size=1, hidden_size=size, output_size=1)
    ids = [str(model) for model in range(models)]
    drawn = [family.init(generator(0, model, "speed")) for model in ids]
    params = {name: torch.stack([one[name] for one in drawn]) for name in family.spec.tensors}
    x = Streams(0, ids, "speed").normal(num_steps, sequences, 1)
    too_large = models * sequences * num_steps * size**2 > LARGEST
    run = [name for name in METHODS if not (too_large and name in IN_PARALLEL)]
    calls = {name: partial(_called, family, params, x, name) for name in run}
    memory, seconds = measured(calls)
    row: dict[str, Any] = {"models x sequences": f"{models} x {sequences}", "units": size, "steps": num_steps}
    row["iterations"] = None if too_large else int(calls["deer"]().report["iterations"].max())
    row |= {f"{name} ms": _scaled(seconds.get(name), 1e3) for name in METHODS}
    row |= {f"{name} MB": _scaled(memory.get(name), 1e-6) for name in METHODS}
    for name in ("stacked", "native"):
        row[f"{name} / deer"] = None if too_large else seconds[name] / seconds["deer"]
    return row


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def measured(calls: Mapping[str, Callable[[], object]]) -> tuple[dict[str, float | None], dict[str, float]]:
    """Bytes of memory, and CPU seconds, of each call."""
    memory, seconds = {}, dict.fromkeys(calls, torch.inf)
    for name, call in calls.items():
        # What the first call compiles and keeps is no part of the others.
        call()
        memory[name] = peak_memory(call)
    for _ in range(REPEATS):
        for name, call in calls.items():
            start = time.process_time()
            call()
            seconds[name] = min(seconds[name], time.process_time() - start)
    return memory, seconds


@torch.no_grad()
def _called(family: Family, params: Params, x: Tensor, method: str) -> Rollout:
    return rollout(family, params, x, method=method)


def draw_speed(axes: Axes, rows: Sequence[Mapping[str, Any]], over: str) -> None:
    """A heat map of how many times as fast `deer` is as another method, over units and steps, a block for a cohort."""
    lines = sorted({(row["models x sequences"], row["units"]) for row in rows})
    lengths = sorted({row["steps"] for row in rows})
    ratios = torch.full((len(lines), len(lengths)), torch.nan)
    for row in rows:
        value = row[f"{over} / deer"]
        at = lines.index((row["models x sequences"], row["units"])), lengths.index(row["steps"])
        ratios[at] = torch.nan if value is None else value
        colour = "white" if value is not None and not 0.05 < value < 20 else "black"
        axes.text(at[1], at[0], "-" if value is None else f"{value:.2g}", ha="center", va="center", color=colour)
    axes.imshow(ratios.log10().numpy(), cmap="RdBu", vmin=-2, vmax=2, aspect="auto")
    axes.set_xticks(range(len(lengths)), [str(length) for length in lengths])
    axes.set_yticks(range(len(lines)), [f"{cohort}, {size} units" for cohort, size in lines])
    axes.set(xlabel="steps", title=f"CPU time of {over} over that of deer (blue: deer is faster)")
