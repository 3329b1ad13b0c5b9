"""Native runs that need no gradients: outputs alone, and tangents and Jacobians beside the states."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from weightspace.families import Family
from weightspace.rollout.criterion import Criterion
from weightspace.rollout.native.engine.encoded import Engine, Wanted, engine, jacobian_engine, lanes_for, tangent_engine
from weightspace.rollout.native.engine.job import Call
from weightspace.rollout.native.function import computed_tensors, first_states, in_one_piece
from weightspace.spec import Params, State


def native_outputs(
    family: Family, params: Params, x: Tensor, start: Tensor, noise: Mapping[str, Tensor], num_steps: int
) -> Tensor:
    """Outputs (models, num_steps, batch, output) of the last steps. See `rollout` for shapes."""
    state = first_states(family, params, start, x.dtype)
    call = _call(family, params, x, noise, [state[name] for name in family.spec.states])
    call.outputs = x.new_empty(len(x), num_steps, x.shape[2], family.output_size)
    call.shown_steps = num_steps
    _run(engine(family, x.dtype, lanes_for(x.shape[2]), Wanted()), call)
    return call.outputs


def native_verdicts(
    family: Family, params: Params, x: Tensor, start: Tensor, noise: Mapping[str, Tensor], criterion: Criterion
) -> Tensor:
    """Scores of the answers to a cross-entropy criterion, (models, 4), float64; see `rollout` for other shapes.

    For each model: nats, right answers and questions, all weighted and summed, and NaN instead of 0 if some output
    at a step that counts is not finite. Outputs are not kept.
    """
    state = first_states(family, params, start, x.dtype)
    call = _call(family, params, x, noise, [state[name] for name in family.spec.states])
    call.loss, call.classes = criterion.kind, criterion.classes
    call.target = criterion.target.to(torch.int64).contiguous()
    call.weight = criterion.weight.to(x.dtype).contiguous()[None]
    call.shown_steps = call.target.shape[1]
    call.verdicts = torch.zeros(len(x), 4, dtype=torch.float64)
    _run(engine(family, x.dtype, lanes_for(x.shape[2]), Wanted()), call)
    return call.verdicts


def native_states(
    family: Family, params: Params, x: Tensor, state: State, noise: Mapping[str, Tensor], num_steps: int
) -> State:
    """Each state (models, num_steps, batch, axis) after the last steps. See `rollout` for shapes."""
    call = _call(family, params, x, noise, [state[name] for name in family.spec.states])
    states = _room(family, x[:, :num_steps])
    call.states, call.shown_steps = list(states.values()), num_steps
    _run(engine(family, x.dtype, lanes_for(x.shape[2]), Wanted()), call)
    return states


def native_tangents(
    family: Family, params: Params, x: Tensor, state: State, tangent: State, noise: Mapping[str, Tensor]
) -> tuple[State, State]:
    """States (models, time, batch, axis) and tangents (models, time, batch, direction, axis).

    The tangents start as (models, batch, direction, axis).
    """
    spec, num_directions = family.spec, next(iter(tangent.values())).shape[2]
    initial = [state[name] for name in spec.states] + [tangent[name].flatten(2) for name in spec.states]
    call = _call(family, params, x, noise, initial)
    states = _room(family, x)
    moved = {name: x.new_empty(*x.shape[:3], num_directions * value.shape[-1]) for name, value in states.items()}
    call.states = [*states.values(), *moved.values()]
    _run(tangent_engine(family, x.dtype, lanes_for(x.shape[2]), num_directions), call)
    return states, {name: value.unflatten(-1, (num_directions, -1)) for name, value in moved.items()}


def native_jacobians(family: Family, params: Params, x: Tensor, state: State, noise: Mapping[str, Tensor]) -> Tensor:
    """dh(t+1)/dh(t), (models, time, batch, from, to), of all states side by side, along a rollout."""
    size = family.spec.state_size
    call = _call(family, params, x, noise, [state[name] for name in family.spec.states])
    call.outputs = x.new_empty(*x.shape[:3], size * size)
    _run(jacobian_engine(family, x.dtype, lanes_for(x.shape[2])), call)
    jacobians: Tensor = call.outputs.unflatten(-1, (size, size))
    return jacobians


def _room(family: Family, x: Tensor) -> State:
    spec = family.spec
    return {name: x.new_empty(*x.shape[:3], spec.size_of_state(name)) for name in spec.states}


def _call(family: Family, params: Params, x: Tensor, noise: Mapping[str, Tensor], initial: list[Tensor]) -> Call:
    spec = family.spec
    spec.check(params, stacked=True)
    with torch.no_grad():
        tensors = [in_one_piece(params[name]) for name in spec.tensors]
        tensors += [in_one_piece(tensor) for tensor in computed_tensors(family, params, x.dtype)]
        inputs = [in_one_piece(noise[name]) for name in spec.noise] + [in_one_piece(x)]
        return Call(len(x), x.shape[1], x.shape[2], tensors, inputs, [in_one_piece(tensor) for tensor in initial])


def _run(runner: Engine, call: Call) -> None:
    runner.run(call, torch.get_num_threads())
