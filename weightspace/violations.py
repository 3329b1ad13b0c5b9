"""Moves that break a declared gauge: the group action with a wrong charge, which changes the function."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch

from weightspace.spec import Charge, Gauge, GroupElement, Params, WeightSpec

Move = Callable[[Params], Params]
"""A function of stacked params (models, ...) to moved ones."""


def wrong_charges(spec: WeightSpec) -> Iterator[tuple[str, Move]]:
    """Names and moves of every gauge with one charge flipped, or replaced by that of another gate row."""
    for gauge_name, gauge in spec.gauges.items():
        for name, tensor in spec.tensors.items():
            charges = gauge.charges.get(name, (0,) * len(tensor.axes))
            if gauge.kind == "sign" and tensor.domain == "even":
                continue
            for dim in (d for d, axis in enumerate(tensor.axes) if axis == gauge.axis):
                for wrong in _wrong(charges[dim], gauge.kind, spec.num_rows(name)):
                    broken = {**gauge.charges, name: (*charges[:dim], wrong, *charges[dim + 1 :])}
                    move = f"gauge {gauge_name} with charge {wrong} on axis {dim} of {name}"
                    yield move, partial(act_alone, spec, gauge_name, replace(gauge, charges=broken))


def _wrong(charge: Charge, kind: str, rows: int) -> list[Charge]:
    """Wrong values of a charge: each row flipped, and each row with the charge of another."""

    def flip(value: int) -> int:
        return 1 - value % 2 if kind == "sign" else (-value if value else 1)

    if rows == 1:
        return [flip(charge if isinstance(charge, int) else charge[0])]
    by_row = charge if isinstance(charge, tuple) else (charge,) * rows
    flipped = [(*by_row[:i], flip(c), *by_row[i + 1 :]) for i, c in enumerate(by_row)]
    swapped = [(*by_row[:i], b, *by_row[i + 1 :]) for i, a in enumerate(by_row) for b in by_row if a != b]
    return list(dict.fromkeys([*flipped, *swapped]))


def half_gauges(spec: WeightSpec, params: Params) -> Iterator[tuple[str, Params]]:
    """Signs of a nonzero gauge on one tensor alone, where only signs on all of its tensors keep the function."""
    for gauge_name, gauge in spec.gauges.items():
        odd = list(_odd_charges(spec, gauge)) if gauge.kind == "nonzero" else []
        # Where one axis alone takes signs, its signs are the gauge's: even powers of the others have none.
        for name, dim in odd if len(odd) > 1 else ():
            charges = gauge.charges[name]
            alone = {name: tuple(charge if i == dim else 0 for i, charge in enumerate(charges))}
            move = f"half of gauge {gauge_name}, on axis {dim} of {name} alone,"
            yield move, act_alone(spec, gauge_name, replace(gauge, kind="sign", charges=alone), params)


def _odd_charges(spec: WeightSpec, gauge: Gauge) -> Iterator[tuple[str, int]]:
    """Tensors and axes on which the signs of a gauge's factors act."""
    for name, charges in gauge.charges.items():
        for dim, charge in enumerate(charges if spec.tensors[name].domain != "even" else ()):
            if any(power % 2 for power in (charge if isinstance(charge, tuple) else (charge,))):
                yield name, dim


def act_alone(spec: WeightSpec, name: str, gauge: Gauge, params: Params) -> Params:
    """Stacked params moved by this gauge in place of the declared ones; the first unit of its axis always moves."""
    models, size = next(iter(params.values())).shape[0], spec.axes[gauge.axis].size
    # Fixed factors: random signs that are all +1 would break nothing.
    factor = torch.ones(models, size, dtype=torch.float64)
    factor[:, 0] = {"sign": -1.0, "positive": 2.0, "nonzero": -2.0}[gauge.kind]
    return replace(spec, gauges={name: gauge}).act_stacked(GroupElement({}, {f"{name}@{gauge.axis}": factor}), params)


def lone_permutations(spec: WeightSpec) -> Iterator[tuple[str, Move]]:
    """Permute one occurrence of a permutable axis in one tensor, and nothing else."""
    for name, tensor in spec.tensors.items():
        for dim, axis in enumerate(tensor.axes):
            if axis in spec.permutable and spec.axes[axis].size > 1:
                yield f"permute {axis} only on axis {dim} of {name}", partial(rolled, name, dim)


def rolled(name: str, dim: int, params: Params) -> Params:
    """Stacked params with one axis of one tensor turned by one."""
    return {**params, name: params[name].roll(1, dims=dim + 1)}
