"""Models as modules of torch.nn: a layer that runs over time, and its cell that makes one step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeAlias

import torch
from torch import Tensor, nn

from weightspace.spec import Params, State, WeightSpec

Hidden: TypeAlias = "Tensor | tuple[Tensor, ...]"
"""States as torch.nn holds them: one tensor, or a tuple where a model has states of several kinds, as (h, c)."""


class Steps(Protocol):
    """Functions of a family that a module calls."""

    @property
    def spec(self) -> WeightSpec: ...

    @property
    def input_size(self) -> int: ...

    @property
    def reads_start(self) -> int: ...

    def initial_state(self, params: Params, start: Tensor) -> State: ...

    def step(self, params: Params, state: State, x: Tensor, noise: Mapping[str, Tensor]) -> State: ...

    def readout(self, params: Params, state: State) -> Tensor: ...


class Named(nn.Module):
    """A module whose parameters (trained tensors) and buffers (fixed ones and masks) are one model's, by their names.

    A tensor that is an nn.Parameter already is taken as it is; others become parameters that share their memory. For
    gradients with respect to other tensors there is `torch.func.functional_call`.
    """

    def __init__(self, family: Steps, params: Params) -> None:
        super().__init__()
        family.spec.check(params, stacked=False)
        self.family = family
        for name in family.spec.tensors:
            self._hold(name, params[name], is_trained=family.spec.tensors[name].role == "trained")

    def _hold(self, name: str, tensor: Tensor, *, is_trained: bool) -> None:
        # torch takes no dots in names: those of nested modules make them.
        *path, last = name.split(".")
        holder: nn.Module = self
        for part in path:
            if part not in dict(holder.named_children()):
                holder.add_module(part, nn.Module())
            holder = holder.get_submodule(part)
        # Not registered by the methods for it: they refuse a tensor that is called like one of them, such as `to`.
        if is_trained:
            holder._parameters[last] = tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor.detach())
        else:
            holder._buffers[last] = tensor.detach()

    @property
    def input_size(self) -> int:
        """Number of inputs at each step."""
        return self.family.input_size

    @property
    def params(self) -> Params:
        """The tensors of the model by name."""
        tensors = {**dict(self.named_parameters(remove_duplicate=False)), **dict(self.named_buffers())}
        return {name: tensors[name] for name in self.family.spec.tensors}

    def _first(self, params: Params, batch: int, start: Tensor | None) -> State:
        """The initial state on a start (batch, start), zeros unless given."""
        tensor = next(iter(params.values()))
        return self.family.initial_state(
            params, tensor.new_zeros(batch, self.family.reads_start) if start is None else start
        )

    def _noise(self, x: Tensor, noise: Mapping[str, Tensor] | None) -> Mapping[str, Tensor]:
        """The noise (batch, time, axis) on inputs (batch, time, input): zeros unless given."""
        spec = self.family.spec
        return noise or {name: x.new_zeros(*x.shape[:2], spec.axes[axis].size) for name, axis in spec.noise.items()}


class Layer(Named):
    """A model as a layer of torch.nn with `batch_first`: `(input, h) -> (output, h)`.

    Inputs are (batch, time, input), outputs (batch, time, output): those of the model's read-out where it has one. h is
    None for the initial state, or (layers, batch, size): states of one name and size lie one above the other, as in
    nn.GRU; several of them are a tuple in the order of the declaration, as the (h, c) of nn.LSTM.
    """

    batch_first = True

    @property
    def cell(self) -> Cell:
        """One step of the model, with the same parameters."""
        return Cell(self.family, self.params)

    def forward(
        self,
        input: Tensor,
        h: Hidden | None = None,
        *,
        start: Tensor | None = None,
        noise: Mapping[str, Tensor] | None = None,
    ) -> tuple[Tensor, Hidden]:
        """Outputs (batch, time, output), and the states after the last step.

        `start` (batch, start) is the task's input to the initial state, and `noise` (batch, time, axis) by name is the
        noise that the family declares: zeros unless given.
        """
        if input.dim() != 3 or input.shape[2] != self.input_size or 0 in input.shape[:2]:
            raise ValueError(
                f"The input has shape {tuple(input.shape)}, expected (batch, time, input), none of them 0, with "
                f"{self.input_size} inputs."
            )
        params, drawn, outputs = self.params, self._noise(input, noise), []
        batch = len(input)
        state = self._first(params, batch, start) if h is None else split(self.family.spec, h, batch)
        for t in range(input.shape[1]):
            early = {name: value[:, t] for name, value in drawn.items()}
            state = self.family.step(params, state, input[:, t], early)
            outputs.append(self.family.readout(params, state))
        return torch.stack(outputs, dim=1), joined(self.family.spec, state)


class Cell(Named):
    """A model as a cell of torch.nn: `(input, h) -> h`, one step.

    Inputs are (batch, input). h is None for the initial state, or (batch, size) as in nn.GRUCell, the layers of a stack
    side by side; several kinds of states are a tuple, as the (h, c) of nn.LSTMCell.
    """

    def forward(
        self,
        input: Tensor,
        h: Hidden | None = None,
        *,
        start: Tensor | None = None,
        noise: Mapping[str, Tensor] | None = None,
    ) -> Hidden:
        """The states after one input; `start` (batch, start) and `noise` (batch, axis) are zeros unless given."""
        if input.dim() != 2 or input.shape[1] != self.input_size:
            raise ValueError(
                f"The input has shape {tuple(input.shape)}, expected (batch, input) with {self.input_size} inputs."
            )
        spec, params, batch = self.family.spec, self.params, len(input)
        drawn = {name: value[:, 0] for name, value in self._noise(input[:, None], None).items()} | dict(noise or {})
        state = self._first(params, batch, start) if h is None else split(spec, _above(spec, h, batch), batch)
        after = joined(spec, self.family.step(params, state, input, drawn))
        beside = tuple(part.movedim(0, 1).flatten(1) for part in _parts(after))
        return beside[0] if len(beside) == 1 else beside


def kinds(spec: WeightSpec) -> list[tuple[str, ...]]:
    """Names of the states that are one tensor of torch.nn: those of one name and size in all layers."""
    together: dict[tuple[str, int], list[str]] = {}
    for name in spec.states:
        kind, _, layer = name.rpartition(".")
        together.setdefault((kind if layer.isdecimal() else name, spec.size_of_state(name)), []).append(name)
    return [tuple(names) for names in together.values()]


def split(spec: WeightSpec, h: Hidden, batch: int) -> State:
    """States by name, each (batch, its axis), of those that torch.nn holds, (layers, batch, size)."""
    shapes = [(len(names), batch, spec.size_of_state(names[0])) for names in kinds(spec)]
    parts = _refused_misfits(h, shapes, "(layers, batch, size)")
    return {name: part[i] for names, part in zip(kinds(spec), parts, strict=True) for i, name in enumerate(names)}


def joined(spec: WeightSpec, state: State) -> Hidden:
    """States as torch.nn holds them, (layers, batch, size)."""
    parts = tuple(torch.stack([state[name] for name in names]) for names in kinds(spec))
    return parts[0] if len(parts) == 1 else parts


def _above(spec: WeightSpec, h: Hidden, batch: int) -> Hidden:
    """States (layers, batch, size) of those of a cell, (batch, layers * size)."""
    layers = [len(names) for names in kinds(spec)]
    sizes = [spec.size_of_state(names[0]) for names in kinds(spec)]
    shapes = [(batch, count * size) for count, size in zip(layers, sizes, strict=True)]
    parts = _refused_misfits(h, shapes, "(batch, size)")
    return tuple(part.unflatten(1, (count, -1)).movedim(1, 0) for part, count in zip(parts, layers, strict=True))


def _refused_misfits(h: Hidden, shapes: Sequence[tuple[int, ...]], axes: str) -> tuple[Tensor, ...]:
    """The tensors of h; ValueError unless they have these shapes."""
    sizes = [tuple(part.shape) for part in _parts(h)]
    if sizes != list(shapes):
        expected = " and ".join(map(str, shapes))
        raise ValueError(f"h has shape {' and '.join(map(str, sizes))}, expected {expected}: {axes} of each state.")
    return _parts(h)


def _parts(h: Hidden) -> tuple[Tensor, ...]:
    return (h,) if isinstance(h, Tensor) else tuple(h)
