"""Symmetry proved numerically: declared moves leave functions and embeddings alone, everything else does not."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from weightspace import encoders, families
from weightspace.components.discovery import near_match
from weightspace.families import Family
from weightspace.rollout import generator, rollout
from weightspace.rollout.agreement import disagreements
from weightspace.rows import flip_even
from weightspace.spec import Charge, Gauge, GroupElement, Params, WeightSpec
from weightspace.store import Stack

FUNCTION_TOLERANCE = 1e-9
ROLLOUT_TOLERANCE = 1e-10
EMBEDDING_TOLERANCE = 1e-5
VIOLATION_THRESHOLD = 1e-3
Row = dict[str, Any]
Move = Callable[[Params], Params]


def check_families(name: str | None = None) -> list[Row]:
    """Rows for every example of every family (or of the one named): see `family_rows`."""
    chosen = _choose("family", families.available(), name)
    return [row for family in chosen.values() for example in family.examples() for row in family_rows(example)]


def family_rows(family: Family) -> list[Row]:
    """Check one family, yours or ours. Errors are relative to the spread of what is compared.

    Declared moves must leave outputs unchanged, moves that break the declaration must be seen, both in float64; stacked
    and native rollouts must equal sequential ones, forward and gradient, and native tangents those of forward mode; and
    the graph embedding must not see permutations.
    """
    label = f"{type(family).__name__}({', '.join(f'{k}={v}' for k, v in family.config.items())})"
    rows = [*_declared_moves(family), *_violations(family), *_rollouts(family)]
    rows.append(_graph_embedding(family))
    return [{"name": label, **row} for row in rows]


def check_encoders(name: str | None = None) -> list[Row]:
    """Rows for every encoder: invariant to the symmetry it states, and sensitive to all that changes the function."""
    chosen = _choose("encoder", encoders.available(), name)
    return [row for label, encoder in chosen.items() for row in encoder_rows(label, _untrained(encoder))]


def encoder_rows(label: str, encoder: encoders.Encoder) -> list[Row]:
    """Check one untrained encoder on the examples of every family, in float32."""
    examples = [example for kind in families.available().values() for example in kind.examples()]
    return [{"name": label, **row} for family in examples for row in _encoder_rows(encoder, family)]


def _encoder_rows(encoder: encoders.Encoder, family: Family) -> Iterator[Row]:
    try:
        encoder.refuse_too_large(family)
    except ValueError as reason:
        yield _row(f"refused by declared sizes: {reason}", True, torch.float32, 0.0, EMBEDDING_TOLERANCE)
        return
    stack = _random_stack(family, torch.float32)
    encoder.fit_standardisation([stack])
    invariant = (*_signs_of_even(family.spec, stack.params), *_encoder_moves(encoder, family, stack.params))
    moves = [(True, *one) for one in invariant]
    moves += [(False, *one) for one in (*_replaced(family, stack.params), *_flipped(family.spec, stack.params))]
    moves += [(False, *one) for one in _unstated(encoder, family, stack.params)]
    for tensor, (to, *sources) in family.spec.connections():
        if to in sources:
            moved = _roll(tensor, -2 - len(sources), stack.params)
            moves.append((False, f"permute rows of {tensor} alone,", moved))
    embeddings = _embedded(encoder, stack)
    for declared, move, moved in moves:
        error = _relative(_embedded(encoder, Stack(family, moved, stack.rows)), embeddings)
        threshold = EMBEDDING_TOLERANCE if declared else VIOLATION_THRESHOLD
        yield _row(f"{move} of {type(family).__name__}", declared, torch.float32, error, threshold)


def _encoder_moves(encoder: encoders.Encoder, family: Family, params: Params) -> Iterator[tuple[str, Params]]:
    """The moves that an encoder says it does not see; of a gauge, the signs, the sizes or both of its factors."""
    spec = family.spec
    element = spec.random_elements(next(iter(params.values())).shape[0], generator(0, "check", "encoder"))
    still = {k: torch.ones_like(v) for k, v in element.gauges.items()}
    if "permutation" in encoder.symmetry:
        yield "declared permutations", spec.act_stacked(GroupElement(element.permutations, still), params)
    in_place = {a: torch.arange(p.shape[1]).expand_as(p) for a, p in element.permutations.items()}
    for name, factor in element.gauges.items():
        seen = factor.sign() if "sign" in encoder.symmetry else torch.ones_like(factor)
        seen = seen * factor.abs() if "scale" in encoder.symmetry else seen
        kind = spec.gauges[name.partition("@")[0]].kind
        if {"sign": ("sign",), "positive": ("scale",), "nonzero": ("sign", "scale")}[kind] and not seen.eq(1).all():
            yield f"gauge {name}", spec.act_stacked(GroupElement(in_place, {**still, name: seen}), params)


def _unstated(encoder: encoders.Encoder, family: Family, params: Params) -> Iterator[tuple[str, Params]]:
    """Permutations, for an encoder that does not state them: it must see them, or it states less than it has."""
    spec = family.spec
    if "permutation" not in encoder.symmetry and any(spec.axes[axis].size > 1 for axis in spec.permutable):
        element = spec.random_elements(next(iter(params.values())).shape[0], generator(0, "check", "encoder"))
        still = {k: torch.ones_like(v) for k, v in element.gauges.items()}
        yield "unstated permutations", spec.act_stacked(GroupElement(element.permutations, still), params)


def _replaced(family: Family, params: Params) -> Iterator[tuple[str, Params]]:
    """One tensor taken from other models: a tensor that makes no difference is not read."""
    others = _random_stack(family, torch.float32, purpose="check/others").params
    for name, tensor in family.spec.tensors.items():
        if tensor.role != "mask":
            yield f"another {name}", {**params, name: others[name]}


def _flipped(spec: WeightSpec, params: Params) -> Iterator[tuple[str, Params]]:
    """Half of a gauge move: a sign that only all tensors of a gauge together may carry, on one of them alone."""
    for gauge_name, gauge in spec.gauges.items():
        if gauge.kind != "nonzero":
            continue
        for name, charges in gauge.charges.items():
            for dim, charge in enumerate(charges if spec.tensors[name].domain != "even" else ()):
                rows = charge if isinstance(charge, tuple) else (charge,)
                if any(one % 2 for one in rows):
                    alone = {name: tuple(charge if place == dim else 0 for place in range(len(charges)))}
                    move = f"half of gauge {gauge_name}, on axis {dim} of {name} alone,"
                    yield move, _act_alone(spec, gauge_name, replace(gauge, kind="sign", charges=alone), params)


def _choose(what: str, known: Mapping[str, Any], name: str | None) -> Mapping[str, Any]:
    if name is None:
        return known
    if name not in known:
        raise ValueError(f"No {what} is called '{name}'; there are {sorted(known)}.{near_match(name, known)}")
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


def _outputs(family: Family, params: Params) -> Tensor:
    x, noise = _inputs(family, next(iter(params.values())).shape[0])
    return rollout(family, params, x, noise=noise).outputs


def _relative(moved: Tensor, reference: Tensor) -> float:
    return ((moved - reference).abs().max() / reference.std()).item()


def _function_change(family: Family, params: Params, moved: Params) -> float:
    return _relative(_outputs(family, moved), _outputs(family, params))


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
    for move, other in (*moved.items(), *_signs_of_even(spec, params)):
        yield _row(move, True, torch.float64, _function_change(family, params, other), FUNCTION_TOLERANCE)


def _signs_of_even(spec: WeightSpec, params: Params) -> Iterator[tuple[str, Params]]:
    """Signs of random entries flipped in the tensors of which only the sizes count."""
    names = [name for name, tensor in spec.tensors.items() if tensor.domain == "even"]
    if names:
        yield f"flip signs of entries of {', '.join(names)}", flip_even(spec, params, generator(2, "check", "signs"))


def _violations(family: Family) -> Iterator[Row]:
    params = _random_stack(family, torch.float64).params
    for move, broken in (*_lone_permutations(family.spec), *_wrong_charges(family.spec)):
        error = _function_change(family, params, broken(params))
        yield _row(move, False, torch.float64, error, VIOLATION_THRESHOLD)


def _lone_permutations(spec: WeightSpec) -> Iterator[tuple[str, Move]]:
    """Permute one occurrence of a permutable axis in one tensor, and nothing else."""
    for name, tensor in spec.tensors.items():
        for dim, axis in enumerate(tensor.axes):
            if axis in spec.permutable and spec.axes[axis].size > 1:
                yield f"permute {axis} only on axis {dim} of {name}", partial(_roll, name, dim)


def _roll(name: str, dim: int, params: Params) -> Params:
    return {**params, name: params[name].roll(1, dims=dim + 1)}


def _wrong_charges(spec: WeightSpec) -> Iterator[tuple[str, Move]]:
    """Act with one charge of one gauge flipped, or taken from another gate row."""
    for gauge_name, gauge in spec.gauges.items():
        for name, tensor in spec.tensors.items():
            charges = gauge.charges.get(name, (0,) * len(tensor.axes))
            if gauge.kind == "sign" and tensor.domain == "even":
                continue
            for dim in (d for d, axis in enumerate(tensor.axes) if axis == gauge.axis):
                for wrong in _wrong(charges[dim], gauge.kind, spec.num_rows(name)):
                    broken = {**gauge.charges, name: (*charges[:dim], wrong, *charges[dim + 1 :])}
                    move = f"gauge {gauge_name} with charge {wrong} on axis {dim} of {name}"
                    yield move, partial(_act_alone, spec, gauge_name, replace(gauge, charges=broken))


def _wrong(charge: Charge, kind: str, rows: int) -> list[Charge]:
    def flip(value: int) -> int:
        return 1 - value % 2 if kind == "sign" else (-value if value else 1)

    if rows == 1:
        return [flip(charge if isinstance(charge, int) else charge[0])]
    by_row = charge if isinstance(charge, tuple) else (charge,) * rows
    flipped = [(*by_row[:i], flip(c), *by_row[i + 1 :]) for i, c in enumerate(by_row)]
    taken = [(*by_row[:i], b, *by_row[i + 1 :]) for i, a in enumerate(by_row) for b in by_row if a != b]
    return list(dict.fromkeys([*flipped, *taken]))


def _act_alone(spec: WeightSpec, name: str, gauge: Gauge, params: Params) -> Params:
    models, size = next(iter(params.values())).shape[0], spec.axes[gauge.axis].size
    # The first unit always moves, or a draw of signs that are all +1 would break nothing.
    factor = torch.ones(models, size, dtype=torch.float64)
    factor[:, 0] = {"sign": -1.0, "positive": 2.0, "nonzero": -2.0}[gauge.kind]
    return replace(spec, gauges={name: gauge}).act_stacked(GroupElement({}, {f"{name}@{gauge.axis}": factor}), params)


def _rollouts(family: Family) -> Iterator[Row]:
    """All ways to run a family against the sequential one, which steps exactly as the family says."""
    params = _random_stack(family, torch.float64).params
    x, noise = _inputs(family, next(iter(params.values())).shape[0])
    for move, error in disagreements(family, params, x, noise):
        yield _row(move, True, torch.float64, error, ROLLOUT_TOLERANCE)


def _graph_embedding(family: Family) -> Row:
    from weightspace.encoders.message_passing import MessagePassing

    encoder, stack = _untrained(MessagePassing), _random_stack(family, torch.float32)
    encoder.fit_standardisation([stack])
    ((_, moved),) = _encoder_moves(encoder, family, stack.params)
    error = _relative(_embedded(encoder, Stack(family, moved, stack.rows)), _embedded(encoder, stack))
    return _row("graph embedding under declared permutations", True, torch.float32, error, EMBEDDING_TOLERANCE)


def _untrained(encoder: Callable[[], encoders.Encoder]) -> encoders.Encoder:
    """An encoder with the same random weights at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return encoder()


@torch.no_grad()
def _embedded(encoder: encoders.Encoder, stack: Stack) -> Tensor:
    embeddings: Tensor = encoder.eval()([stack])
    return embeddings
