"""Responses of recurrent networks to queries: pairs of rollouts, and what symmetries leave unchanged in them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from weightspace.families import Family
from weightspace.rollout import Rollout, rollout
from weightspace.spec import State
from weightspace.store import Stack

PER_STEP = 4
"""Readings of a step: log size, likeness to the step before, likeness to other queries, log distance of the pair."""
POINTS = 9
"""Places at which the sorted spectrum of a covariance is read."""
TINY = 1e-16
"""Added to squares before their logarithm is taken."""
MET = 3e-9
"""Added to squared distances, as shares of the mean square: of smaller ones embeddings would show the rounding."""

FLAT = 1e-20
"""Share of their mean square that values must vary by."""


@dataclass(frozen=True, eq=False)
class Responses:
    """Inputs (models, time, lane, input), outputs (models, time, lane, output), states (models, time, lane, axis) of a
    stack, in float64.

    Lanes are all queries, then all of them once more with another input at step `kick` and the same inputs after it:
    how far the two still differ is what a model remembers.
    """

    stack: Stack
    kick: int
    inputs: Tensor
    outputs: Tensor
    states: State
    finite: Tensor
    """Whether all that a model did is finite (models,); what others did is 0 here."""

    @property
    def by_view(self) -> list[Tensor | None]:
        """Outputs, states, and states divided by each unit's root mean square, (models, time, lane, unit).

        States whose units a gauge may rescale are left out of the second, which is None if no other is left.
        """
        free = _rescaled(self.stack.family)
        fixed = [state for name, state in self.states.items() if name not in free]
        divided = torch.cat([_per_unit(state) for state in self.states.values()], dim=-1)
        return [self.outputs, torch.cat(fixed, dim=-1) if fixed else None, divided]

    @property
    def per_step(self) -> Tensor:
        """Readings (models, time, query, view, reading) of every step, NaN where there are none."""
        models, steps, lanes = self.inputs.shape[:3]
        return self._of_views(_per_step, (models, steps, lanes // 2, PER_STEP)).movedim(1, 3)

    @property
    def geometry(self) -> Tensor:
        """Readings (models, view, reading) of all lanes together, NaN where there are none."""
        models, steps = self.inputs.shape[:2]
        return self._of_views(_geometry, (models, num_geometry(steps, self.kick)))

    def _of_views(self, read: Callable[[Tensor, int], Tensor], shape: Sequence[int]) -> Tensor:
        absent = self.inputs.new_full(tuple(shape), torch.nan)
        tables = torch.stack([absent if view is None else read(view, self.kick) for view in self.by_view], dim=1)
        known = self.finite.reshape(-1, *[1] * (tables.dim() - 1)) & tables.isfinite()
        return torch.where(known, tables, torch.nan)


def ask(stack: Stack, inputs: Tensor, kick: int) -> Responses:
    """Responses of a stack, natively where that can be, to whole sequences (models, time, lane, input)."""
    run = continued(stack, inputs, None, "native")
    return gathered(stack, inputs, run.outputs, run.states, kick)


def gathered(stack: Stack, inputs: Tensor, outputs: Tensor, states: State, kick: int) -> Responses:
    """Responses made of what a stack did, with 0 for models that did anything that is not finite."""
    known = torch.stack([part.isfinite().flatten(1).all(1) for part in (outputs, *states.values())]).all(0)
    outputs, *values = (torch.where(known[:, None, None, None], part, 0.0) for part in (outputs, *states.values()))
    return Responses(stack, kick, inputs, outputs, dict(zip(states, values, strict=True)), known)


def continued(stack: Stack, inputs: Tensor, state: State | None, method: str) -> Rollout:
    """A rollout in float64 with no noise, on inputs (models, time, lane, input) and the starts of `starts_of`.

    Both rollouts of a pair have the same rounding of weights, so that their distance is exact far below that of
    float32.
    """
    family = stack.family
    if inputs.requires_grad:
        # One model that blew up must not spoil the gradient that all models give to a query.
        inputs.register_hook(lambda gradient: torch.where(gradient.isfinite(), gradient, 0.0))
    params = {name: value.double() for name, value in stack.params.items()}
    noise = {
        name: inputs.new_zeros(*inputs.shape[:3], family.spec.axes[axis].size)
        for name, axis in family.spec.noise.items()
    }
    start = starts_of(family, inputs.shape[2]).to(inputs).expand(inputs.shape[0], -1, -1)
    return rollout(family, params, inputs, start, method=method, noise=noise, state=state)


def paired(inputs: Tensor, second: Tensor, step: int) -> Tensor:
    """Inputs (models, time, lane, input) beside themselves with others (models, lane, input) at one step."""
    other = torch.cat([inputs[:, :step], second[:, None], inputs[:, step + 1 :]], dim=1)
    return torch.cat([inputs, other], dim=2)


def starts_of(family: Family, lanes: int) -> Tensor:
    """Starts (lane, start), float64, of lanes that come in pairs: 0, or what a family that reads starts is asked with.

    The start of pair l is a wave over its entries, cos(pi (i + 1/2) (l + 1) / start): so every entry counts.
    """
    size = family.reads_start
    if not size:
        return torch.zeros(lanes, start_size(family), dtype=torch.float64)
    pair = torch.arange(lanes, dtype=torch.float64) % (lanes // 2)
    entry = torch.arange(size, dtype=torch.float64)
    return torch.cos(math.pi * (entry + 0.5) * (pair[:, None] + 1) / size)


@lru_cache(maxsize=1024)
def start_size(family: Family) -> int:
    """Numbers that a task gives the initial state, which no declaration says: the first size that fits, from 0."""
    params = {name: torch.empty(family.spec.shape(name), device="meta") for name in family.spec.tensors}
    reasons = []
    for size in (0, *sorted({axis.size for axis in family.spec.axes.values()})):
        try:
            family.initial_state(params, torch.empty(1, size, device="meta"))
        except (RuntimeError, ValueError, IndexError) as error:
            reasons.append(str(error).split("\n")[0])
        else:
            return size
    raise ValueError(
        f"{type(family).__name__} cannot be queried: its initial state takes a start whose size is none of its axes' "
        f"({reasons[0]}); declare an axis of that size."
    )


def num_geometry(num_steps: int, kick: int) -> int:
    """Number of readings of `Responses.geometry`."""
    return POINTS + 2 + num_steps - kick


def _rescaled(family: Family) -> set[str]:
    """States whose units a declared gauge may multiply by numbers other than signs."""
    gauges = [gauge for gauge in family.effective_spec.gauges.values() if gauge.kind != "sign"]
    return {name for gauge in gauges for name, charge in gauge.state_charges.items() if charge}


def _per_unit(states: Tensor) -> Tensor:
    """States (models, time, lane, unit) divided by each unit's root mean square; 0 stays 0."""
    square = states.square().mean((1, 2), keepdim=True)
    return states * torch.where(square > 0, square, 1.0).rsqrt()


def _per_step(values: Tensor, kick: int) -> Tensor:
    """Readings (models, time, query, reading) of values (models, time, lane, unit)."""
    main, _ = values.chunk(2, dim=2)
    before = F.pad(main, (0, 0, 0, 0, 1, 0))[:, :-1]
    likeness = [_cosine(main, before), _cosine(main, main.mean(2, keepdim=True))]
    return torch.stack([_log_size(main), *likeness, _log_distances(values, kick)], dim=-1)


def _geometry(values: Tensor, kick: int) -> Tensor:
    """Spectrum of the covariance over lanes and steps from the kick on, its entropy rank, its log size, and the mean
    log distance of pairs at each step from the kick on.
    """
    main, _ = values.chunk(2, dim=2)
    visited = main[:, kick:].flatten(1, 2)
    settled = visited - visited.mean(1, keepdim=True)
    size = values.shape[-1]
    matrix = settled.mT @ settled if size <= settled.shape[1] else settled @ settled.mT
    total = matrix.diagonal(dim1=1, dim2=2).sum(1)
    # What varies less is rounding about a constant, which has no spectrum.
    known = total.isfinite() & (total > FLAT * visited.square().sum((1, 2)))
    # A factorisation of numbers that are not finite fails, and takes all other models with it.
    matrix = torch.where(known[:, None, None], matrix, torch.eye(matrix.shape[1]).to(matrix))
    shares = torch.linalg.eigvalsh(matrix).clamp(min=0).flip(1)
    shares = shares / shares.sum(1, keepdim=True)
    rank = torch.exp(-(shares * torch.log(shares + TINY)).sum(1)) / size
    logs = torch.log(shares * size + 1e-4)
    spectrum = F.interpolate(logs[:, None], size=POINTS, mode="linear", align_corners=True)[:, 0]
    parts = [spectrum, rank[:, None], torch.log(total / (settled.shape[1] * size) + TINY)[:, None] / 2]
    parts.append(_log_distances(values, kick)[:, kick:].mean(2))
    return torch.cat(parts, dim=1)


def _log_size(values: Tensor) -> Tensor:
    return torch.log(values.square().mean(-1) + TINY) / 2


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosines over the last axis; 0 where one is 0."""
    size = (a.square().sum(-1) * b.square().sum(-1)).clamp(min=0)
    return (a * b).sum(-1) / torch.where(size > 0, size, 1.0).sqrt()


def _log_distances(values: Tensor, kick: int) -> Tensor:
    """Log distances (models, time, query) of pairs, in units of the root mean square of the values; NaN before the
    kick.
    """
    main, other = values.chunk(2, dim=2)
    scale = main.square().mean((1, 2, 3), keepdim=True)[..., 0]
    share = (main - other).square().mean(-1) / torch.where(scale > 0, scale, 1.0)
    kicked = torch.arange(values.shape[1], device=values.device)[:, None] >= kick
    return torch.where(kicked, torch.log(share + MET) / 2, torch.nan)
