"""Agreement of rollout methods with the sequential reference: values, gradients and tangents."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from weightspace.families import Family
from weightspace.rollout import Method, generator, methods, native, rollout
from weightspace.rollout.tangents import tangent_rollout
from weightspace.spec import Params

_warn = functools.cache(logging.getLogger(__name__).warning)
"""Log each message once."""


def disagreements(
    family: Family, params: Params, x: Tensor, noise: Mapping[str, Tensor], start: Tensor | None = None
) -> Iterator[tuple[str, float]]:
    """(name, largest difference over the largest number) of each comparison; see `rollout` for shapes.

    Every rollout method is compared. One that cannot run the family has a row with the reason and difference 0; without
    a compiler, native rollouts have one warning instead.
    """
    start = x.new_zeros(len(x), x.shape[2], 0) if start is None else start
    reference = _values_and_gradients(family, params, x, noise, start, "sequential")
    for method in sorted(set(methods.available()) - {"sequential"}):
        reason = _why_not(method, family, x)
        if reason is None:
            pairs = zip(_values_and_gradients(family, params, x, noise, start, method), reference, strict=True)
            for suffix, (values, expected) in zip(("", " gradient"), pairs, strict=True):
                yield f"{method}{suffix} equals sequential", farthest(values, expected)
            if method == "native":
                yield "native tangents equal forward mode", _of_tangents(family, params, x, noise, start)
        elif method == "native" and (unavailable := native.why_not_here()) is not None:
            _warn(f"Native rollouts are not checked: {unavailable}.")
        else:
            yield f"{method} rollout, left to torch: {reason}", 0.0


def _why_not(method: Method, family: Family, x: Tensor) -> str | None:
    """Reason why a method cannot run a family, None if it can; a check says it in a row, not in the log."""
    return native.why_not(family, x.dtype) if method == "native" else methods.named(method).why_not(family, x)


def farthest(values: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Largest difference, as a share of the largest number of the same tensor; NaN if any value is."""
    largest = torch.stack([value.abs().max() for value in expected])
    # A tensor that is 0 but for rounding is measured on the scale of the others.
    scale = largest.clamp(min=1e-6 * float(largest.max())).clamp(min=1e-12)
    errors = torch.stack([(value - reference).abs().max() for value, reference in zip(values, expected, strict=True)])
    return float((errors / scale).max())


def _values_and_gradients(
    family: Family, params: Params, x: Tensor, noise: Mapping[str, Tensor], start: Tensor, method: Method
) -> tuple[list[Tensor], Sequence[Tensor]]:
    """Outputs and states, and the gradients of the sum of their squares with respect to params, noise and inputs."""
    leaves = [leaf.detach().clone().requires_grad_() for leaf in (*params.values(), *noise.values(), x)]
    names = iter(leaves)
    params, noise = ({name: next(names) for name in part} for part in (params, noise))
    run = rollout(family, params, next(names), start, noise=noise, method=method)
    values = [run.outputs, *run.states.values()]
    total = torch.stack([value.square().sum() for value in values]).sum()
    gradients = torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
    return [value.detach() for value in values], gradients


def _of_tangents(family: Family, params: Params, x: Tensor, noise: Mapping[str, Tensor], start: Tensor) -> float:
    state = torch.func.vmap(family.initial_state)(params, start)
    source = generator(0, "agreement", "tangents")
    moved = {name: torch.randn(v.shape, generator=source, dtype=torch.float64).to(v) for name, v in state.items()}
    (_, tangents), (_, expected) = (
        tangent_rollout(family, params, x, state, moved, noise, method=method) for method in ("native", "stacked")
    )
    return farthest(list(tangents.values()), list(expected.values()))
