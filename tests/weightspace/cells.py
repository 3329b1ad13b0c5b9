"""Cells written as text, and a command that draws thousands of them and judges the native engine on each."""

from __future__ import annotations

import argparse
import functools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from weightspace.families.base import Family, Noise
from weightspace.families.spike import spike
from weightspace.spec import Axis, Params, State, TensorSpec, WeightSpec
from zoo_builder.workers.environment import ENVIRONMENT

ROOT = Path(__file__).parents[2]
START_SIZE = 2
"""Numbers that a task supplies to a cell whose initial state asks for them."""


@dataclass(frozen=True, kw_only=True)
class Cell(Family):
    """A family whose step, read-out and initial state are lines of Python.

    Their names are those of states, noises and tensors, `x` in the step and `start` in the initial state; `torch`, `F`
    and `spike` stand for what they do everywhere.
    """

    states: tuple[tuple[str, int], ...]
    tensors: tuple[tuple[str, str, tuple[int, ...]], ...]
    """Name, role and shape; the first of three axes is one of gates."""
    after: tuple[str, ...]
    """An expression for each state after the step."""
    answer: str
    """The output, in names of states and tensors."""
    body: tuple[str, ...] = ()
    noises: tuple[tuple[str, int], ...] = ()
    reading: tuple[str, ...] = ()
    first: tuple[str, ...] = ()
    """An expression for each state before the first step, none where all are 0."""

    def declare(self) -> WeightSpec:
        sizes = {size for _, _, shape in self.tensors for size in shape} | {size for _, size in self.states}
        sizes |= {size for _, size in self.noises}
        axes = {f"n{size}": Axis(size=size, kind="hidden") for size in sorted(sizes)}
        axes |= {f"g{size}": Axis(size=size, kind="channel") for size in sorted(sizes)}
        tensors: dict[str, TensorSpec] = {}
        for name, role, shape in self.tensors:
            named = tuple(f"{'g' if len(shape) - place == 3 else 'n'}{size}" for place, size in enumerate(shape))
            roles = ("drive",) * (shape[0] if len(shape) == 3 else 1)
            tensors[name] = TensorSpec(axes=named, role=role, row_roles=roles)  # type: ignore[arg-type]
        states, noise = ({name: f"n{size}" for name, size in part} for part in (self.states, self.noises))
        return WeightSpec(axes=axes, tensors=tensors, states=states, noise=noise)

    def init(self, generator: torch.Generator) -> Params:
        return small_params(self, generator, torch.float32)

    @property
    def start_size(self) -> int:
        """How many numbers the initial state takes of a task."""
        return START_SIZE if any("start @" in one for one in self.first) else 0

    def initial_state(self, params: Params, start: Tensor) -> State:
        if not self.first:
            return super().initial_state(params, start)
        names = [name for name, _ in self.states]
        values = written(("start", *params), (), self.first)(start, *params.values())
        return dict(zip(names, values, strict=True))

    def step(self, params: Params, state: State, x: Tensor, noise: Noise) -> State:
        names = ("x", *state, *noise, *params)
        values = written(names, self.body, self.after)(x, *state.values(), *noise.values(), *params.values())
        return dict(zip([name for name, _ in self.states], values, strict=True))

    def readout(self, params: Params, state: State) -> Tensor:
        (output,) = written((*state, *params), self.reading, (self.answer,))(*state.values(), *params.values())
        return output

    @classmethod
    def examples(cls) -> Sequence[Family]:
        return []

    def __str__(self) -> str:
        parts = [f"input {self.input_size}, output {self.output_size}"]
        pairs = (("states", self.states), ("noises", self.noises))
        parts += [f"{word} {dict(own)}" for word, own in pairs if own]
        parts.append("tensors " + ", ".join(f"{name}{list(shape)}{role[:1]}" for name, role, shape in self.tensors))
        names = [name for name, _ in self.states]
        lines = [f"  first: {n} = {e}" for n, e in zip(names, self.first, strict=False)]
        lines += [f"  {line}" for line in self.body]
        lines += [f"  {n}' = {e}" for n, e in zip(names, self.after, strict=True)]
        lines += [f"  output: {line}" for line in (*self.reading, self.answer)]
        return "\n".join([", ".join(parts), *lines])


@functools.lru_cache(maxsize=4096)
def written(
    names: tuple[str, ...], lines: tuple[str, ...], results: tuple[str, ...]
) -> Callable[..., tuple[Tensor, ...]]:
    """The function of these arguments that runs some lines and returns some expressions."""
    text = [f"def cell({', '.join(names)}):", *lines, f"return ({', '.join(results)},)"]
    known: dict[str, Any] = {"torch": torch, "F": F, "spike": spike}
    exec("\n    ".join(text), known)
    made: Callable[..., tuple[Tensor, ...]] = known["cell"]
    return made


def small_params(cell: Cell, generator: torch.Generator, dtype: torch.dtype) -> Params:
    """Params of one model at a scale at which most cells forget their past: chaos would magnify rounding."""
    params = {}
    for name, role, shape in cell.tensors:
        value = torch.randn(shape, generator=generator, dtype=torch.float64)
        if role == "mask":
            value = (value > -0.5).double()
        params[name] = (value * (0.6 / shape[-1] ** 0.5 if len(shape) > 1 and role != "mask" else 1)).to(dtype)
    return params


def outcomes(seeds: Sequence[int], *, deep: bool) -> Iterator[dict[str, Any]]:
    """Outcomes of cells by seed: judged in another process, which starts again if it dies."""
    left, around = list(seeds), {**os.environ, **ENVIRONMENT}
    while left:
        flags = ["--deep"] if deep else []
        command = [sys.executable, "-X", "faulthandler", "-m", "tests.weightspace.cells", "--judge", *flags, "--seeds"]
        command += map(str, left)
        with (
            tempfile.TemporaryFile("w+") as said,
            subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=said, text=True, env=around) as child,
        ):
            assert child.stdout is not None
            for line in child.stdout:
                yield json.loads(line)
                left.pop(0)
            child.wait()
            said.seek(0)
            last = " / ".join(line.strip() for line in said if 'File "' in line or "Error" in line)
        if left:
            end = f"the process died with status {child.returncode}: {last}"
            yield {"seed": left.pop(0), "outcome": "crashed", "detail": end}


def summary(found: Sequence[dict[str, Any]]) -> str:
    """Counts by outcome, reasons of refusals by their number, and every cell that is wrong."""
    counts = Counter(one["outcome"] for one in found)
    lines = [f"{counts.pop(name, 0):6} {name}" for name in ("accepted", "refused", "undecided", "different", "crashed")]
    assert not counts, counts
    reasons = Counter(re.sub(r"[\d.]+", "N", one["detail"]) for one in found if one["outcome"] == "refused")
    lines += [f"{number:6} refused: {reason[:150]}" for reason, number in reasons.most_common()]
    lines += [f"{one['outcome']} {one['seed']}: {one['detail']}" for one in wrong(found)]
    return "\n".join(lines)


def wrong(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The outcomes that show a fault."""
    return [one for one in found if one["outcome"] in ("different", "crashed")]


def main() -> int:
    """Judge cells here, one line of JSON each, or have them judged and print the summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed0", type=int, default=0)
    parser.add_argument("--seeds", type=int, nargs="*", help="these, in place of a count from seed0")
    parser.add_argument("--deep", action="store_true", help="make every check of every cell, not some of them")
    parser.add_argument("--judge", action="store_true", help="print one line of JSON for each cell")
    parser.add_argument("--show", action="store_true", help="print the cells themselves")
    parser.add_argument("--shrink", action="store_true", help="print the smallest cells that go wrong in the same way")
    options = parser.parse_args()
    seeds = range(options.seed0, options.seed0 + options.count) if options.seeds is None else options.seeds
    if options.show or options.shrink or options.judge:
        return _here(seeds, options)
    found = list(outcomes(seeds, deep=options.deep))
    print(summary(found))
    return int(bool(wrong(found)))


def _here(seeds: Sequence[int], options: argparse.Namespace) -> int:
    from tests.weightspace.cell_drafts import drawn
    from tests.weightspace.cell_judge import judged, shrunk

    torch.set_num_threads(1)
    for seed in seeds:
        if options.judge:
            print(json.dumps({"seed": seed, **judged(drawn(seed), seed, deep=options.deep)}), flush=True)
        else:
            print(f"# {seed}\n{shrunk(drawn(seed), seed, deep=options.deep) if options.shrink else drawn(seed)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
