"""How a family is run over time: one door, several methods with the same answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from weightspace.families import Family
from weightspace.rollout.captured import Captured
from weightspace.rollout.streams import Streams, generator
from weightspace.spec import Params, State

__all__ = ["METHODS", "Captured", "Method", "Rollout", "Streams", "generator", "rollout"]

Method = Literal["native", "stacked", "sequential"]
METHODS: tuple[Method, ...] = ("native", "stacked", "sequential")


@dataclass(frozen=True)
class Rollout:
    """What a cohort did: outputs (models, time, batch, output) and each state (models, time, batch, its axis)."""

    outputs: Tensor
    states: State
    final: State
    """States (models, batch, axis) after the last input, from which a rollout can go on."""


def rollout(
    family: Family,
    params: Params,
    x: Tensor,
    start: Tensor | None = None,
    *,
    method: Method = "stacked",
    noise: Mapping[str, Tensor] | None = None,
    state: State | None = None,
) -> Rollout:
    """Run stacked params (models, ...) on inputs (models, time, batch, input); every method gives the same answer.

    `start` (models, batch, start) is what the task gives the initial state; `noise[name]` (models, time, batch, axis)
    must be given for every noise the spec declares; `state` (models, batch, axis) goes on from an earlier rollout.
    """
    from weightspace.rollout.methods.sequential import run_sequential
    from weightspace.rollout.methods.stacked import run_stacked

    if x.dim() != 4 or x.shape[-1] != family.input_size:
        raise ValueError(
            f"Inputs have shape {tuple(x.shape)}; {type(family).__name__} expects "
            f"(models, time, batch, input) with {family.input_size} inputs."
        )
    if 0 in x.shape[:3]:
        raise ValueError(f"Inputs have shape {tuple(x.shape)}; at least one model, time step and sequence is needed.")
    family.spec.check(params, stacked=True)
    missing = set(family.spec.noise) - set(noise or {})
    if missing:
        raise ValueError(f"{type(family).__name__} needs the noise {sorted(missing)}, one draw per model and step.")
    if start is None:
        start = x.new_zeros(x.shape[0], x.shape[2], 0)
    if method not in METHODS:
        raise ValueError(f"No rollout method is called '{method}'; there are {METHODS}.")
    run = run_sequential if method == "sequential" else run_stacked
    if method == "native":
        from weightspace.rollout.native import run_native, usable

        run = run_native if usable(family, x) else run_stacked
    return run(family, params, x, start, noise or {}, state)
