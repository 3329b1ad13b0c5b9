"""Forward sensitivities of diagonal families: how each unit's memory depends on its own params and its own past."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from torch import Tensor

from weightspace.families import Family
from weightspace.spec import Params, State

Sensitivities = dict[str, Tensor]
"""d(memory of a unit)/d(its entries of a tensor), (models, batch, state, *tensor), by tensor."""


@dataclass(frozen=True)
class Memory:
    """The part of a family that reaches later steps."""

    states: tuple[str, ...]
    """States that a step reads."""
    tensors: tuple[str, ...]
    """Trained tensors that act on these states."""


@lru_cache(maxsize=256)
def memory_of(family: Family) -> Memory:
    """The states that a step reads and the trained tensors that act on them, by the operations of the step alone.

    Which numbers the operations meet makes no difference: a tensor of zeros acts, too.
    """
    spec = family.spec
    params = family.init(torch.Generator().manual_seed(0))
    leaves = {name: params[name].requires_grad_() for name in spec.trained}
    state = {name: torch.zeros(1, spec.size_of_state(name), requires_grad=True) for name in spec.states}
    noise = {name: torch.zeros(1, spec.axes[axis].size) for name, axis in spec.noise.items()}
    with torch.enable_grad():
        after = family.step({**params, **leaves}, state, torch.zeros(1, family.input_size), noise)
        states = _reached_from(state, [after[name] for name in spec.states])
        return Memory(states, _reached_from(leaves, [after[name] for name in states]))


def why_not(family: Family) -> str | None:
    """Reason why a family's sensitivities do not stay within units, with the way out; None if they do."""
    spec, name = family.spec, type(family).__name__
    if spec.recurrence != "diagonal":
        return f"units of {name} read one another; choose a family whose recurrence is declared diagonal, or BPTT."
    if type(family).initial_state is not Family.initial_state:
        return f"{name} starts from a state of its own, whose sensitivities are not known; choose BPTT."
    memory = memory_of(family)
    axes = sorted({axis for state in memory.states for axis in spec.state_axes(state)})
    if len(axes) != 1:
        return f"the memory of {name} lies on the axes {axes}, but sensitivities are for a single one; choose BPTT."
    shared = [tensor for tensor in memory.tensors if spec.tensors[tensor].axes.count(axes[0]) != 1]
    if shared:
        return f"{shared} of {name} act on the memory of several units at once; choose BPTT."
    return None


class Sensitivity:
    """Sensitivities of a diagonal family, carried from step to step (Williams and Zipser, Neural Computation 1989).

    S(t) = L(t) S(t-1) + D(t): L (models, batch, to state, from state, unit) are the Jacobians of each unit's memory,
    D what its params add within the step. For a single state these are the equations of Irie, Gopalakrishnan and
    Schmidhuber (ICLR 2024, arXiv 2305.19044). The size of S does not depend on the number of steps.
    """

    def __init__(self, family: Family) -> None:
        reason = why_not(family)
        if reason is not None:
            raise ValueError(f"{type(family).__name__} has no sensitivities within units: {reason}")
        self._family, self.memory = family, memory_of(family)
        (self._axis,) = family.spec.state_axes(self.memory.states[0])

    def at_start(self, params: Params, batch_size: int) -> Sensitivities:
        """Zeros: the initial state depends on no params."""
        count = len(self.memory.states)
        acting = {name: params[name] for name in self.memory.tensors}
        return {name: v.new_zeros(len(v), batch_size, count, *v.shape[1:]) for name, v in acting.items()}

    def after(
        self, before: Sensitivities, params: Params, state: State, x: Tensor, noise: Mapping[str, Tensor]
    ) -> Sensitivities:
        """Sensitivities after a step from states (models, batch, axis) on inputs (models, batch, input)."""
        added, blocks = self.step(params, state, x, noise)
        return {
            name: value + (self._along_units(blocks, name) * before[name][:, :, None]).sum(3)
            for name, value in added.items()
        }

    def gradients(self, sensitivities: Sensitivities, errors: Mapping[str, Tensor]) -> Params:
        """Gradients (models, ...) through the memory, summed over sequences, from errors dL/d(state) (models, batch,
        axis)."""
        by_state = torch.stack([errors[name] for name in self.memory.states], dim=2)
        return {name: (self._along_units(by_state, name) * value).sum((1, 2)) for name, value in sensitivities.items()}

    def step(
        self, params: Params, state: State, x: Tensor, noise: Mapping[str, Tensor]
    ) -> tuple[Sensitivities, Tensor]:
        """D and L of a step from states (models, batch, axis) on inputs (models, batch, input)."""
        return _derivatives(self._family, self.memory, params, state, x, noise)

    def _along_units(self, values: Tensor, name: str) -> Tensor:
        """Values (..., unit) with an axis for each axis of a tensor, all but that of its units of size 1."""
        axes = self._family.spec.tensors[name].axes
        return values.reshape(*values.shape[:-1], *(values.shape[-1] if axis == self._axis else 1 for axis in axes))


def unit_jacobians(
    family: Family, params: Params, state: State, x: Tensor, noise: Mapping[str, Tensor]
) -> Tensor:
    """Jacobians of each unit's memory over a step of a diagonal family, (models, point, to state, from state, unit).

    States are (models, point, axis), inputs (models, point, input). All other entries of the Jacobian between states
    that a step reads are 0, and so are the columns of those that none reads.
    """
    return _derivatives(family, Memory(memory_of(family).states, ()), params, state, x, noise)[1]


def _derivatives(
    family: Family, memory: Memory, params: Params, state: State, x: Tensor, noise: Mapping[str, Tensor]
) -> tuple[Sensitivities, Tensor]:
    """D of the tensors of `memory`, and L."""
    by_sequence = torch.func.vmap(partial(_within_units, family, memory), in_dims=(None, 0, 0, 0))
    added, blocks = torch.func.vmap(by_sequence)(params, state, x, noise)
    return added, torch.stack([blocks[name] for name in memory.states], dim=3)


def _within_units(
    family: Family, memory: Memory, params: Params, state: State, x: Tensor, noise: Mapping[str, Tensor]
) -> tuple[Params, State]:
    """D by tensor (state, *tensor) and L by state before (to state, unit) of one model's step on one sequence."""
    drive = {name: value[None] for name, value in noise.items()}

    def after(acting: Params, before: State) -> Tensor:
        lanes = {name: value[None] for name, value in {**state, **before}.items()}
        stepped = family.step({**params, **acting}, lanes, x[None], drive)
        return torch.stack([stepped[name][0] for name in memory.states])

    acting = {name: params[name] for name in memory.tensors}
    value, pull, *_ = torch.func.vjp(after, acting, {name: state[name] for name in memory.states})
    # Units do not reach one another, so the sum over units has the derivatives of each in its own entries.
    count = len(memory.states)
    each = torch.eye(count, dtype=value.dtype, device=value.device)[:, :, None].expand(count, *value.shape)
    added, blocks = torch.func.vmap(pull)(each)
    return added, blocks


def _reached_from(leaves: Mapping[str, Tensor], values: list[Tensor]) -> tuple[str, ...]:
    """Names of the leaves from which operations lead to any of the values."""
    total = torch.stack([value.sum() for value in values]).sum()
    found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True, retain_graph=True)
    return tuple(name for name, gradient in zip(leaves, found, strict=True) if gradient is not None)
