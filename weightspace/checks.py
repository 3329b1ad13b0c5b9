"""Symmetry proved numerically: declared moves keep functions and embeddings, all others change them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from weightspace import encoders, families
from weightspace.components.discovery import refuse_unknown_name
from weightspace.families import Family
from weightspace.rollout import generator, rollout
from weightspace.rollout.agreement import disagreements
from weightspace.rows import flip_even
from weightspace.spec import GroupElement, Params, WeightSpec
from weightspace.store import Stack
from weightspace.violations import half_gauges, lone_permutations, rolled, wrong_charges

FUNCTION_TOLERANCE = 1e-9
ROLLOUT_TOLERANCE = 1e-10
EMBEDDING_TOLERANCE = 1e-5
EXACT_TOLERANCE = 1e-10
EPSILONS = torch.finfo(torch.float32).eps / torch.finfo(torch.float64).eps
ROUNDING_MARGIN = 8
"""How many times the rounding of float64, scaled to float32, the rounding of float32 may be."""
VIOLATION_THRESHOLD = 1e-3
Row = dict[str, Any]


def check_families(name: str | None = None) -> list[Row]:
    """Rows of `family_rows` for every example of every family, or of the family of this name."""
    kinds = _choose("family", families.available(), name)
    return [row for family in kinds.values() for example in family.examples() for row in family_rows(example)]


def family_rows(family: Family) -> list[Row]:
    """Check one family. Errors are relative to the standard deviation of the outputs or embeddings compared.

    Declared moves must leave outputs unchanged, moves that break the declaration must be seen, both in float64; stacked
    and native rollouts must equal sequential ones, forward and gradient, and native tangents those of forward mode; and
    the graph embedding must not see permutations.
    """
    label = f"{type(family).__name__}({', '.join(f'{k}={v}' for k, v in family.config.items())})"
    rows = [*_declared_moves(family), *_violations(family), *_rollouts(family)]
    rows.append(_graph_embedding(family))
    return [{"name": label, **row} for row in rows]


def check_encoders(name: str | None = None) -> list[Row]:
    """Rows of `encoder_rows` for every encoder, or for the encoder of this name."""
    kinds = _choose("encoder", encoders.available(), name)
    return [row for label, encoder in kinds.items() for row in encoder_rows(label, _untrained(encoder))]


def encoder_rows(label: str, encoder: encoders.Encoder) -> list[Row]:
    """Check one untrained encoder on the examples of every family.

    Embeddings must be invariant to the symmetry that it states, to 1e-10 in float64 and 1e-5 in float32 (more where a
    model magnifies rounding in float64 by as much), and sensitive to all that changes the function.
    """
    examples = [example for kind in families.available().values() for example in kind.examples()]
    return [{"name": label, **row} for family in examples for row in _encoder_rows(encoder, family)]


def assert_family(family: Family) -> None:
    """Raise AssertionError with a line for each failed row of `family_rows`."""
    _assert_passed(family_rows(family))


def assert_encoder(encoder: encoders.Encoder) -> None:
    """Raise AssertionError with a line for each failed row of `encoder_rows`, which run on a copy of the encoder."""
    _assert_passed(encoder_rows(type(encoder).__name__, copy.deepcopy(encoder)))


def _assert_passed(rows: list[Row]) -> None:
    failed = [row for row in rows if not row["passed"]]
    if failed:
        lines = [
            f"  {row['name']}: {row['move']}: expected {'no change' if row['declared'] else 'a change'}, "
            f"relative change is {'not finite' if row['error'] is None else format(row['error'], '.2g')}"
            for row in failed
        ]
        raise AssertionError("\n".join([f"{len(failed)} of {len(rows)} checks failed:", *lines]))


def _encoder_rows(encoder: encoders.Encoder, family: Family) -> Iterator[Row]:
    try:
        encoder.refuse_too_large(family)
    except ValueError as reason:
        yield _row(f"refused by declared sizes: {reason}", True, torch.float32, 0.0, EMBEDDING_TOLERANCE)
        return
    stack = _random_stack(family, torch.float32)
    encoder.fit_standardisation([stack])
    exact = _invariance_in_float64(encoder, family, stack)
    moves = [(True, *one) for one in _signs_of_even(family.spec, stack.params)]
    moves += [(True, *one) for one in _encoder_moves(encoder, family, stack.params)]
    moves += [(False, *one) for one in (*_replaced(family, stack.params), *half_gauges(family.spec, stack.params))]
    moves += [(False, *one) for one in _unstated(encoder, family, stack.params)]
    for tensor, (to, *sources) in family.spec.connections():
        if to in sources:
            moved = rolled(tensor, -2 - len(sources), stack.params)
            moves.append((False, f"permute rows of {tensor} alone,", moved))
    changes = _embedding_changes(encoder, stack, [moved for _, _, moved in moves])
    for (declared, move, _), error in zip(moves, changes, strict=True):
        label = f"{move} of {type(family).__name__}"
        if declared:
            yield _row(label, True, torch.float64, exact[move], EXACT_TOLERANCE)
        # A model that magnifies rounding does so in both precisions; a symmetry that is broken is so in float64, too.
        magnified = ROUNDING_MARGIN * exact.get(move, 0.0) * EPSILONS
        threshold = max(EMBEDDING_TOLERANCE, magnified) if declared else VIOLATION_THRESHOLD
        yield _row(label, declared, torch.float32, error, threshold)


def _invariance_in_float64(encoder: encoders.Encoder, family: Family, stack: Stack) -> dict[str, float]:
    """How far embeddings in float64 are under each move that must leave them as they are, by the move."""
    wide = replace(stack, params={name: value.double() for name, value in stack.params.items()})
    moves = [*_signs_of_even(family.spec, wide.params), *_encoder_moves(encoder, family, wide.params)]
    changes = _embedding_changes(copy.deepcopy(encoder).double(), wide, [moved for _, moved in moves]) if moves else []
    return {move: change for (move, _), change in zip(moves, changes, strict=True)}


def _encoder_moves(encoder: encoders.Encoder, family: Family, params: Params) -> Iterator[tuple[str, Params]]:
    """Moves under the encoder's stated symmetry; of a gauge, the signs, the sizes or both of its factors."""
    spec = family.spec
    first = next(iter(params.values()))
    element = spec.random_elements(first.shape[0], generator(0, "check", "encoder"))
    # The same factors in both precisions, with powers in that of the params.
    element = GroupElement(element.permutations, {k: v.to(first.dtype) for k, v in element.gauges.items()})
    still = {k: torch.ones_like(v) for k, v in element.gauges.items()}
    if "permutation" in encoder.symmetry:
        yield "declared permutations", spec.act_stacked(GroupElement(element.permutations, still), params)
    in_place = {a: torch.arange(p.shape[1]).expand_as(p) for a, p in element.permutations.items()}
    for name, factor in element.gauges.items():
        seen = factor.sign() if "sign" in encoder.symmetry else torch.ones_like(factor)
        seen = seen * factor.abs() if "scale" in encoder.symmetry else seen
        if not seen.eq(1).all():
            yield f"gauge {name}", spec.act_stacked(GroupElement(in_place, {**still, name: seen}), params)


def _unstated(encoder: encoders.Encoder, family: Family, params: Params) -> Iterator[tuple[str, Params]]:
    """Permutations, for an encoder that does not state them: it must see them, or it states less than it has."""
    spec = family.spec
    if "permutation" not in encoder.symmetry and any(spec.axes[axis].size > 1 for axis in spec.permutable):
        element = spec.random_elements(next(iter(params.values())).shape[0], generator(0, "check", "encoder"))
        still = {k: torch.ones_like(v) for k, v in element.gauges.items()}
        yield "unstated permutations", spec.act_stacked(GroupElement(element.permutations, still), params)


def _replaced(family: Family, params: Params) -> Iterator[tuple[str, Params]]:
    """Params with one tensor taken from other models: an encoder that does not change has not read it."""
    replacements = _random_stack(family, torch.float32, purpose="check/others").params
    for name, tensor in family.spec.tensors.items():
        if tensor.role != "mask":
            yield f"another {name}", {**params, name: replacements[name]}


def _choose(kind: str, known: Mapping[str, Any], name: str | None) -> Mapping[str, Any]:
    if name is None:
        return known
    refuse_unknown_name(kind, name, sorted(known))
    return {name: known[name]}


def _row(move: str, declared: bool, dtype: torch.dtype, error: float, threshold: float) -> Row:
    passed = error <= threshold if declared else error > threshold
    return {
        "move": move,
        "declared": declared,
        "dtype": str(dtype).removeprefix("torch."),
        "error": error if math.isfinite(error) else None,
        "passed": passed,
    }


def _random_stack(family: Family, dtype: torch.dtype, models: int = 4, purpose: str = "check/params") -> Stack:
    draws = [family.spec.random_params(generator(0, str(i), purpose), dtype) for i in range(models)]
    return Stack(family, {k: torch.stack([d[k] for d in draws]) for k in family.spec.tensors}, torch.arange(models))


def _inputs(family: Family, models: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Inputs (models, time 10, batch 4, input) and the declared noise, the same for every move."""
    source = generator(0, "check", "inputs")
    x = torch.randn(1, 10, 4, family.input_size, generator=source, dtype=torch.float64)
    noise = {k: torch.randn(1, 10, 4, family.spec.axes[a].size, generator=source, dtype=torch.float64)
             for k, a in family.spec.noise.items()}  # fmt: skip
    return x.expand(models, -1, -1, -1), {k: v.expand(models, -1, -1, -1) for k, v in noise.items()}


def _start(family: Family, models: int) -> Tensor:
    """Starts (models, batch 4, start) of the size that the family reads, the same for every model."""
    start = torch.randn(1, 4, family.reads_start, generator=generator(0, "check", "start"), dtype=torch.float64)
    return start.expand(models, -1, -1)


def _function_changes(
    family: Family, params: Params, moved: Sequence[Params], along: Sequence[GroupElement | None] = ()
) -> list[float]:
    """How far the outputs under each of the moved params are from those under `params`.

    Noise is drawn for units: it moves with them where the element of a move is in `along`.
    """
    together, models = _joined([params, *moved]), next(iter(params.values())).shape[0]
    x, noise = _inputs(family, models)
    noises = [noise, *(noise if move is None else noise_moved(family.spec, move, noise) for move in along)]
    noises += [noise] * (1 + len(moved) - len(noises))
    start, count = _start(family, models), len(moved) + 1
    x, start = x.repeat(count, 1, 1, 1), start.repeat(count, 1, 1)
    return _relative(rollout(family, together, x, start, noise=_joined(noises)).outputs, count)


def noise_moved(spec: WeightSpec, elements: GroupElement, noise: Params) -> Params:
    """Noise (models, time, batch, axis) moved along with the params of its models, each by its own element."""
    moved = torch.func.vmap(lambda p, g, values: spec.act_on_noise(GroupElement(p, g), values))
    return dict(moved(elements.permutations, elements.gauges, noise)) if noise else noise


@torch.no_grad()
def _embedding_changes(encoder: encoders.Encoder, stack: Stack, moved: Sequence[Params]) -> list[float]:
    """How far the embeddings under each of the moved params are from those under the stack's own."""
    together = replace(stack, params=_joined([stack.params, *moved]), rows=stack.rows.repeat(len(moved) + 1))
    return _relative(encoder.eval()([together]), len(moved) + 1)


def _joined(params: Sequence[Params]) -> Params:
    """Params of several stacks as of one: so many small models are run at once several times faster."""
    return {name: torch.cat([one[name] for one in params]) for name in params[0]}


def _relative(values: Tensor, parts: int) -> list[float]:
    """Of values (parts x models, ...): how far those of each part are from those of the first, over their spread."""
    reference, *others = values.chunk(parts)
    return [((moved - reference).abs().max() / reference.std()).item() for moved in others]


def _declared_moves(family: Family) -> Iterator[Row]:
    spec, params = family.spec, _random_stack(family, torch.float64).params
    models = next(iter(params.values())).shape[0]
    element = spec.random_elements(models, generator(1, "check", "move"), torch.float64)
    ones = {k: torch.ones_like(v) for k, v in element.gauges.items()}
    in_place = {a: torch.arange(p.shape[1]).expand_as(p) for a, p in element.permutations.items()}
    moves = {f"permute {a}": GroupElement({**in_place, a: p}, ones) for a, p in element.permutations.items()}
    moves |= {
        f"gauge {k.replace('@', ' of ')}": GroupElement(in_place, {**ones, k: g}) for k, g in element.gauges.items()
    }
    moves["all together"] = element
    moved = {move: spec.act_stacked(element, params) for move, element in moves.items()}
    moved |= dict(_signs_of_even(spec, params))
    along = list(moves.values())
    for move, error in zip(moved, _function_changes(family, params, list(moved.values()), along), strict=True):
        yield _row(move, True, torch.float64, error, FUNCTION_TOLERANCE)


def _signs_of_even(spec: WeightSpec, params: Params) -> Iterator[tuple[str, Params]]:
    """Params with the signs of random entries of even tensors flipped."""
    names = [name for name, tensor in spec.tensors.items() if tensor.domain == "even"]
    if names:
        yield f"flip signs of entries of {', '.join(names)}", flip_even(spec, params, generator(2, "check", "signs"))


def _violations(family: Family) -> Iterator[Row]:
    params = _random_stack(family, torch.float64).params
    moves = [*lone_permutations(family.spec), *wrong_charges(family.spec)]
    changes = _function_changes(family, params, [broken(params) for _, broken in moves])
    for (move, _), error in zip(moves, changes, strict=True):
        yield _row(move, False, torch.float64, error, VIOLATION_THRESHOLD)


def _rollouts(family: Family) -> Iterator[Row]:
    """Every rollout method against the sequential one, which calls the family's `step` once per time step."""
    params = _random_stack(family, torch.float64).params
    models = next(iter(params.values())).shape[0]
    x, noise = _inputs(family, models)
    for move, error in disagreements(family, params, x, noise, _start(family, models)):
        yield _row(move, True, torch.float64, error, ROLLOUT_TOLERANCE)


def _graph_embedding(family: Family) -> Row:
    from weightspace.encoders.message_passing import MessagePassing

    encoder, stack = _untrained(MessagePassing), _random_stack(family, torch.float32)
    encoder.fit_standardisation([stack])
    ((_, moved),) = _encoder_moves(encoder, family, stack.params)
    (error,) = _embedding_changes(encoder, stack, [moved])
    return _row("graph embedding under declared permutations", True, torch.float32, error, EMBEDDING_TOLERANCE)


def _untrained(encoder: Callable[[], encoders.Encoder]) -> encoders.Encoder:
    """An encoder with the same random weights at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return encoder()
