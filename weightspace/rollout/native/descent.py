"""Descent on a declared loss: gradients of a stack of models, or whole updates made in C."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from weightspace.families import Family
from weightspace.rollout.criterion import Criterion
from weightspace.rollout.native.engine.encoded import Engine, Wanted, engine, lanes_for, learning_engine, traced
from weightspace.rollout.native.engine.job import Call, Moves
from weightspace.rollout.native.function import call_of, computed_tensors, first_states, in_one_piece
from weightspace.spec import Params


def descend(
    family: Family,
    params: Mapping[str, Tensor],
    trained: Sequence[str],
    x: Tensor,
    start: Tensor,
    criterion: Criterion,
    noise: Mapping[str, Tensor],
) -> tuple[Tensor, Params]:
    """Losses (models,) and gradients (models, ...) of the trained tensors, forward and backward in one pass."""
    spec, dtype = family.spec, x.dtype
    spec.check(params, stacked=True)
    leaves = {name: params[name].detach() for name in spec.tensors}
    in_c = _has_prologue_in_c(family, dtype)
    if not in_c or not traced(family, dtype).starts_alike:
        # A prologue without a program, and a start that depends on params, are left to autograd.
        for name in trained:
            leaves[name].requires_grad_()
    computed = [] if in_c else computed_tensors(family, leaves, dtype)
    initial = first_states(family, leaves, start, dtype)
    through = [tensor for tensor in (*computed, *initial.values()) if tensor.requires_grad]
    tensors = [in_one_piece(tensor) for tensor in (*leaves.values(), *computed)]
    starts = [in_one_piece(initial[name]) for name in spec.states]
    wanted = Wanted(
        frozenset(i for i, name in enumerate(leaves) if name in trained)
        | frozenset(len(leaves) + i for i, tensor in enumerate(computed) if tensor.requires_grad),
        initial=any(tensor.requires_grad for tensor in initial.values()),
    )
    call = call_of(tensors, [in_one_piece(noise[name]) for name in spec.noise] + [in_one_piece(x)], starts)
    _judge_by(criterion, criterion.weight[None], call, dtype)
    call.gradients = [torch.empty(t.shape, dtype=dtype) if i in wanted.tensors else None for i, t in enumerate(tensors)]
    call.initial_gradient = [torch.empty_like(t.contiguous()) for t in starts] if wanted.initial else None
    runner = _engine(family, wanted, call, dtype, in_c=in_c)
    runner.run(call, torch.get_num_threads())
    by_name = dict(zip(spec.tensors, call.gradients, strict=False))
    gradients = {name: by_name[name] for name in trained}
    if through:
        of_tensors, of_states = runner.gradients_of(call, spec.states)
        known = of_tensors[len(leaves) :] + of_states
        _add_through(leaves, trained, (*computed, *initial.values()), known, gradients)
    assert call.losses is not None
    return call.losses.to(dtype), {name: g for name, g in gradients.items() if g is not None}


def can_descend_on(family: Family, dtype: torch.dtype = torch.float32) -> bool:
    """Whether whole updates of a traced family can be made in C: models start alike, and C computes a prologue."""
    return traced(family, dtype).starts_alike and _has_prologue_in_c(family, dtype)


def _has_prologue_in_c(family: Family, dtype: torch.dtype) -> bool:
    """Whether C computes the prologue, or there is none."""
    program = traced(family, dtype)
    return program.prologue is None or program.flat is not None


def descend_on(
    family: Family,
    params: Mapping[str, Tensor],
    trained: Sequence[str],
    x: Tensor,
    start: Tensor,
    criterion: Criterion,
    weights: Tensor,
    noise: Mapping[str, Tensor],
    moves: Moves,
) -> Tensor:
    """Make several updates of every model that learns, in C; its latest losses (models,), NaN of those that do not.

    The trained tensors are changed in place, each update by the next sequences: `x` (models, time, updates * batch,
    input), `noise`, `start` and the targets of the criterion are those of all updates; `weights` (updates, models,
    scored) are those of each update's own criterion. ValueError for a family that does not `can_descend_on`.
    """
    spec, dtype = family.spec, x.dtype
    if not can_descend_on(family, dtype):
        raise ValueError(f"Updates of {type(family).__name__} cannot be made in C alone.")
    spec.check(params, stacked=True)
    tensors = [in_one_piece(params[name]) for name in spec.tensors]
    for name, own in zip(spec.tensors, tensors, strict=True):
        if name in trained and own.data_ptr() != params[name].data_ptr():
            raise ValueError(f"`{name}` of a model does not lie in one piece, so it cannot be moved in place.")
    initial = first_states(family, params, start, dtype)
    inputs = [in_one_piece(noise[name]) for name in spec.noise] + [in_one_piece(x)]
    call = call_of(tensors, inputs, [in_one_piece(initial[name]) for name in spec.states])
    call.moves, call.moved = moves, [name in trained for name in spec.tensors]
    _judge_by(criterion, weights, call, dtype)
    wanted = Wanted(frozenset(i for i, name in enumerate(spec.tensors) if name in trained))
    _engine(family, wanted, call, dtype, in_c=True).run(call, torch.get_num_threads())
    assert call.losses is not None
    return call.losses.to(dtype)


def _judge_by(criterion: Criterion, weights: Tensor, call: Call, dtype: torch.dtype) -> None:
    """Set the criterion by which a call computes its loss."""
    call.loss, call.classes = criterion.kind, criterion.classes
    # Contiguous over models, too: a batch may be a slice of one draw.
    call.target = criterion.target.to(torch.int64 if criterion.kind == "cross_entropy" else dtype).contiguous()
    call.weight = (weights.to(dtype) / call.batch_of_one).contiguous()
    call.losses = torch.full((call.models,), torch.nan, dtype=torch.float64)


def _engine(family: Family, wanted: Wanted, call: Call, dtype: torch.dtype, *, in_c: bool) -> Engine:
    """The engine for a call, with what params alone determine computed in C or part of the call."""
    made = learning_engine if in_c else engine
    return made(family, dtype, lanes_for(call.batch_of_one), wanted)


def _add_through(
    leaves: Mapping[str, Tensor],
    trained: Sequence[str],
    through: Sequence[Tensor],
    known: Sequence[Tensor | None],
    gradients: dict[str, Tensor | None],
) -> None:
    """Gradients of params through the prologue."""
    pairs = zip(through, known, strict=True)
    reached = [(tensor, gradient) for tensor, gradient in pairs if tensor.requires_grad and gradient is not None]
    if not reached:
        return
    more = torch.autograd.grad(
        [tensor for tensor, _ in reached],
        [leaves[name] for name in trained],
        [gradient.view_as(tensor) for tensor, gradient in reached],
        allow_unused=True,
        materialize_grads=True,
    )
    for name, gradient in zip(trained, more, strict=True):
        direct = gradients[name]
        gradients[name] = gradient if direct is None else direct + gradient
