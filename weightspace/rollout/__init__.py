"""Rollouts: a family run over time by one of several methods that give the same answer."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from torch import Tensor

from weightspace.families import Family
from weightspace.rollout import methods
from weightspace.rollout.captured import Captured, mapped
from weightspace.rollout.methods import Method, RolloutMethod
from weightspace.rollout.results import Rollout
from weightspace.rollout.streams import Streams, generator
from weightspace.spec import Params, State

__all__ = ["Captured", "Method", "Rollout", "RolloutMethod", "Streams", "generator", "rollout"]


def rollout(
    family: Family,
    params: Params,
    x: Tensor,
    start: Tensor | None = None,
    *,
    method: Method | RolloutMethod = "stacked",
    noise: Mapping[str, Tensor] | None = None,
    state: State | None = None,
) -> Rollout:
    """Run stacked params (models, ...) on inputs (models, time, batch, input); every method gives the same answer.

    Params of one model may come without the models axis: inputs are then (time, batch, input), as are results.
    `start` (models, batch, start) is the task's input to the initial state. Every noise that the spec declares needs
    `noise[name]` (models, time, batch, axis). `state` (models, batch, axis) continues an earlier rollout.
    """
    if params and all(t.dim() == len(family.spec.shape(k)) for k, t in params.items() if k in family.spec.tensors):
        params, x, start, noise, state = mapped((params, x, start, noise, state), lambda tensor: tensor[None])
        stacked = rollout(family, params, x, start, method=method, noise=noise, state=state)
        alone: Rollout = mapped(stacked, lambda tensor: tensor[0])
        return alone
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
    runner = methods.named(method)
    if runner.why_not(family, x) is not None:
        runner = methods.named("stacked")
    return runner.run(family, params, x, start, noise or {}, state)


class _Package(ModuleType):
    """This package, which can be called: of `weightspace.rollout` Python knows one thing, the package."""

    def __call__(self, *arguments: Any, **options: Any) -> Rollout:
        return rollout(*arguments, **options)


sys.modules[__name__].__class__ = _Package
