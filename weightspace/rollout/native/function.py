"""Native rollouts as a differentiable function of torch."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from weightspace.families import Family
from weightspace.rollout.native.engine.encoded import Wanted, engine, lanes_for, traced
from weightspace.rollout.native.engine.job import Call
from weightspace.rollout.results import Rollout
from weightspace.spec import Params, State


def run_native(
    family: Family, params: Params, x: Tensor, start: Tensor, noise: Mapping[str, Tensor], state: State | None
) -> Rollout:
    """All models, one after another, each with its whole time loop in cache. See `rollout` for shapes."""
    state = first_states(family, params, start, x.dtype) if state is None else state
    spec = family.spec
    tensors = [params[name] for name in spec.tensors] + computed_tensors(family, params, x.dtype)
    inputs = [noise[name] for name in spec.noise] + [x]
    initial = [state[name] for name in spec.states]
    sizes = (len(tensors), len(inputs))
    # torch gives `apply` no types.
    outputs, *states = _Native.apply(family, sizes, *tensors, *inputs, *initial)  # type: ignore[no-untyped-call]
    visited = dict(zip(spec.states, states, strict=True))
    return Rollout(outputs, visited, {name: value[:, -1] for name, value in visited.items()})


class _Native(torch.autograd.Function):
    """Outputs and states of a stack of models; the backward pass runs forward again, so nothing is kept in between."""

    @staticmethod
    def forward(ctx: Any, family: Family, sizes: tuple[int, int], *data: Tensor) -> tuple[Tensor, ...]:
        ctx.family, ctx.sizes = family, sizes
        # None, not zeros, where no loss depends on a result: infinity times zero is not zero.
        ctx.set_materialize_grads(False)
        dense = [in_one_piece(tensor) for tensor in data]
        ctx.save_for_backward(*dense)
        tensors, inputs, initial = _parted(dense, sizes)
        x, spec = inputs[-1], family.spec
        outputs = x.new_empty(*x.shape[:3], family.output_size)
        states = [x.new_empty(*x.shape[:3], spec.size_of_state(name)) for name in spec.states]
        call = call_of(tensors, inputs, initial)
        call.outputs, call.states = outputs, states
        engine(family, x.dtype, lanes_for(x.shape[2]), Wanted()).run(call, torch.get_num_threads())
        return outputs, *states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        data = ctx.saved_tensors
        needed = ctx.needs_input_grad[2:]
        tensors, inputs, initial = _parted(list(data), ctx.sizes)
        of_tensors, of_inputs, of_initial = _parted(list(needed), ctx.sizes)
        named = zip(ctx.family.spec.states, gradients[1:], strict=True)
        wanted = Wanted(
            frozenset(i for i, need in enumerate(of_tensors) if need),
            any(of_inputs),
            any(of_initial),
            outputs=gradients[0] is not None,
            states=frozenset(name for name, gradient in named if gradient is not None),
        )
        call = call_of(tensors, inputs, initial)
        call.output_gradient = None if gradients[0] is None else gradients[0].contiguous()
        call.state_gradient = [None if g is None else g.contiguous() for g in gradients[1:]]
        call.gradients, call.input_gradient, call.initial_gradient = (
            [torch.empty(t.shape, dtype=t.dtype) if need else None for t, need in zip(part, needs, strict=True)]
            for part, needs in ((tensors, of_tensors), (inputs, of_inputs), (initial, of_initial))
        )
        x = inputs[-1]
        runner = engine(ctx.family, x.dtype, lanes_for(x.shape[2]), wanted)
        runner.run(call, torch.get_num_threads())
        of_params, of_states = runner.gradients_of(call, ctx.family.spec.states)
        return None, None, *of_params, *call.input_gradient, *of_states


def first_states(family: Family, params: Mapping[str, Tensor], start: Tensor, dtype: torch.dtype) -> State:
    """States (models, batch, axis) before the first input, in the dtype of the program."""
    if traced(family, dtype).starts_alike:
        state = {k: v.expand(len(start), *v.shape) for k, v in _common_start(family, dtype, *start.shape[1:]).items()}
    else:
        state = torch.func.vmap(family.initial_state)(dict(params), start)
    sizes = {name: family.spec.size_of_state(name) for name in family.spec.states}
    # One state for all sequences, or of another dtype, is expanded and cast as torch would at the first step.
    return {name: state[name].to(dtype).expand(*start.shape[:2], size) for name, size in sizes.items()}


@functools.lru_cache(maxsize=64)
def _common_start(family: Family, dtype: torch.dtype, batch: int, start_size: int) -> State:
    """States (batch, axis) from which every model starts, whatever its params and the start of the task."""
    # Kept for calls that record gradients, too, whatever the mode of the first one is.
    with torch.inference_mode(False), torch.no_grad():
        params = {name: torch.ones(family.spec.shape(name), dtype=dtype) for name in family.spec.tensors}
        return dict(family.initial_state(params, torch.zeros(batch, start_size, dtype=dtype)))


def computed_tensors(family: Family, params: Mapping[str, Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Results of the prologue, each (models, ...)."""
    prologue = traced(family, dtype).prologue
    if prologue is None:
        return []
    # The graph holds views that are right for params in one piece, as they were traced.
    return list(torch.func.vmap(prologue)(*(params[name].contiguous() for name in family.spec.tensors)))


def call_of(tensors: Sequence[Tensor], inputs: Sequence[Tensor], initial: Sequence[Tensor]) -> Call:
    """A call on params, inputs and initial states."""
    models, time, batch = inputs[-1].shape[:3]
    return Call(models, time, batch, tensors, inputs, initial)


def in_one_piece(tensor: Tensor) -> Tensor:
    """The tensor with the numbers of each model contiguous; views of stacked rows stay views."""
    tensor = tensor.detach()
    return tensor if tensor.is_contiguous() or tensor[0].is_contiguous() else tensor.contiguous()


def _parted(items: Sequence[Any], sizes: tuple[int, int]) -> tuple[list[Any], list[Any], list[Any]]:
    first, second = sizes
    return list(items[:first]), list(items[first : first + second]), list(items[first + second :])
