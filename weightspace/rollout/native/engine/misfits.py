"""Checks of a call's data before C reads or writes it: shapes, dtypes, density in memory, and ranges of values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from weightspace.rollout.native.engine.job import Call

Expected = tuple[str, Tensor | None, tuple[int, ...], torch.dtype]


@dataclass(frozen=True)
class Sizes:
    """Numbers of rows of a program's values."""

    dtype: torch.dtype
    inputs: Sequence[int]
    states: Sequence[int]
    output: int
    extents: Mapping[int, int]
    """Number of a tensor of a model -> how many of its elements are read."""


def refuse_misfits(call: Call, sizes: Sizes) -> None:
    """Raise ValueError unless all data have the shapes, dtypes and ranges that C expects and cannot check."""
    if min(call.models, call.time, call.batch) < 1:
        found = f"{call.models} models, {call.time} steps and {call.batch} sequences"
        raise ValueError(f"A native rollout has {found}; at least one of each is needed.")
    for name, tensor, shape, dtype in (*_read(call, sizes), *_written(call, sizes)):
        if tensor is not None and (tuple(tensor.shape) != shape or tensor.dtype != dtype):
            found = f"{tuple(tensor.shape)} of {tensor.dtype}"
            raise ValueError(f"A native rollout has {name} of shape {found}; {shape} of {dtype} was expected.")
    for name, tensor, *_ in _read(call, sizes):
        if tensor is not None and not _is_dense(tensor, first=1):
            raise ValueError(f"A native rollout has {name} with gaps in the memory of one model.")
    for name, tensor, *_ in _written(call, sizes):
        if tensor is not None and not _is_dense(tensor, first=0):
            raise ValueError(f"A native rollout has {name} with gaps between its models.")
    for number, needed in sizes.extents.items():
        tensor = call.tensors[number]
        if tensor[0].numel() < needed:
            raise ValueError(f"Params of shape {tuple(tensor.shape)} are smaller than their family declares.")
    _refuse_criterion(call, sizes)
    _refuse_moves(call)


def _is_dense(tensor: Tensor, first: int) -> bool:
    """Whether the axes from `first` on lie in memory without gaps, the last one fastest."""
    expected = 1
    for size, stride in zip(reversed(tensor.shape[first:]), reversed(tensor.stride()[first:]), strict=True):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def _read(call: Call, sizes: Sizes) -> Iterator[Expected]:
    """Tensors that are dense within each model: name, tensor, shape and dtype."""
    steps = (call.models, call.time, call.batch)
    for tensor in call.tensors:
        yield "params", tensor, (call.models, *tensor.shape[1:]), sizes.dtype
    for x, rows in zip(call.inputs, sizes.inputs, strict=True):
        yield "inputs or noise", x, (*steps, rows), sizes.dtype
    for state, rows in zip(call.initial, sizes.states, strict=True):
        yield "an initial state", state, (call.models, call.batch, rows), sizes.dtype


def _written(call: Call, sizes: Sizes) -> Iterator[Expected]:
    """Tensors that are dense as a whole: results, gradients that come in, and gradients that go out."""
    steps = (call.models, call.time, call.batch)
    shown = (call.models, call.time if call.shown_steps is None else call.shown_steps, call.batch)
    yield "outputs", call.outputs, (*shown, sizes.output), sizes.dtype
    yield "a gradient of outputs", call.output_gradient, (*steps, sizes.output), sizes.dtype
    for what, tensors, lead in (("states", call.states, shown), ("a gradient of states", call.state_gradient, steps)):
        if tensors is not None:
            for tensor, rows in zip(tensors, sizes.states, strict=True):
                yield what, tensor, (*lead, rows), sizes.dtype
    for what, gradients, sources in (
        ("a gradient of params", call.gradients, call.tensors),
        ("a gradient of inputs", call.input_gradient, call.inputs),
        ("a gradient of initial states", call.initial_gradient, call.initial),
    ):
        if gradients is not None:
            for gradient, source in zip(gradients, sources, strict=True):
                yield what, gradient, tuple(source.shape), sizes.dtype
    yield "losses", call.losses, (call.models,), torch.float64
    yield "verdicts", call.verdicts, (call.models, 4), torch.float64


def _refuse_criterion(call: Call, sizes: Sizes) -> None:
    if call.target is None or call.weight is None:
        return
    is_classes = call.loss == "cross_entropy"
    if is_classes and (call.classes < 1 or sizes.output % call.classes):
        raise ValueError(f"A criterion has {call.classes} classes, which do not divide {sizes.output} outputs.")
    answers = sizes.output // call.classes if is_classes else sizes.output
    scored, updates = call.weight.shape[-1], 1 if call.moves is None else call.moves.updates
    target = ("targets", call.target, (call.models, scored, call.batch, answers))
    weight = ("weights", call.weight, (updates, call.models, scored))
    for (name, tensor, shape), dtype in ((target, torch.int64 if is_classes else sizes.dtype), (weight, sizes.dtype)):
        if tuple(tensor.shape) != shape or tensor.dtype != dtype:
            found = f"{tuple(tensor.shape)} of {tensor.dtype}"
            raise ValueError(f"A criterion has {name} of shape {found}; {shape} of {dtype} was expected.")
        if not tensor.is_contiguous():
            raise ValueError(f"A criterion has {name} with gaps between its models.")
    if scored > call.time:
        raise ValueError(f"A criterion scores {scored} steps of a rollout of {call.time}.")
    if not bool((call.weight >= 0).all()):
        raise ValueError("A criterion has weights below 0 or NaN; what a step counts is 0 or above.")
    if is_classes and call.target.numel():
        least, largest = (int(value) for value in torch.aminmax(call.target))
        if least < -1 or largest >= call.classes:
            raise ValueError(
                f"A criterion has targets from {least} to {largest}; with {call.classes} classes they go from 0 to "
                f"{call.classes - 1}, or are -1 where nothing is asked."
            )


def _refuse_moves(call: Call) -> None:
    if call.moves is None:
        return
    learning, updates = call.moves.learning, call.moves.updates
    misfits = learning.shape != (call.models,) or learning.dtype != torch.bool or not learning.is_contiguous()
    if misfits or updates < 1 or call.batch % updates:
        raise ValueError(
            f"{updates} updates have {call.batch} sequences and `learning` of shape {tuple(learning.shape)} of "
            f"{learning.dtype}; a multiple of {updates} and {(call.models,)} of {torch.bool} was expected."
        )
    for tensor, is_moved in zip(call.tensors, call.moved, strict=True):
        if is_moved and call.models > 1 and tensor.stride(0) < tensor[0].numel():
            raise ValueError("Models share the memory of params that are to be moved in place.")
