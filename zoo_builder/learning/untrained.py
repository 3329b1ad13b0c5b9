"""Untrained params: initial ones, before learning, with a structure of choice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from weightspace.families import Family
from weightspace.rollout import generator
from weightspace.spec import Params
from zoo_builder.learning.base import HERE, Learned, Learner, Run, fresh_params, sorted_snapshots
from zoo_builder.learning.structure import of_rank, shifted, sparse, with_radius
from zoo_builder.members import Members
from zoo_builder.tasks import Task


@dataclass(frozen=True, kw_only=True)
class Untrained(Learner):
    """Fresh params with a gain, and with recurrent connections of a rank, sparsity and spectrum; nothing is learned.

    Initialisations of U(-1/sqrt(hidden), 1/sqrt(hidden)) have variance 1/(3 hidden), with a gain of sqrt(3) 1/hidden.
    Rank, sparsity, radius and shift are set in this order, each of what the one before left: entries that are taken
    out of a matrix of low rank raise its rank. A family has what it declares: diagonals have a radius, but no rank, and
    where the recurrent matrix is stored as something else (LRU, StableReparam, LTC, LowRankSparse, WaveRNN), the
    spectrum stays as drawn; a shift does nothing where the family leaves out the diagonal (Leaky). A task, if there is
    one, drives the models when labels are measured.
    """

    gain: float = 1.0
    """Factor on every trained tensor without bounds."""
    rank: float = 1.0
    """Share of the singular values of recurrent maps that stays, the largest, at the same Frobenius norm."""
    sparsity: float = 0.0
    """Chance of a connection into units to be absent."""
    spectral_radius: float = 0.0
    """Largest absolute eigenvalue of every recurrent matrix; 0: as drawn."""
    spectral_shift: float = 0.0
    """Number added to the diagonal of every recurrent matrix, which moves all its eigenvalues by as much."""

    varying: ClassVar[tuple[str, ...]] = ("gain", "rank", "sparsity", "spectral_radius", "spectral_shift")
    needs_task: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 < self.gain < math.inf:
            raise ValueError(f"`gain` (={self.gain}) must be above 0 and finite.")
        if not 0 < self.rank <= 1:
            raise ValueError(f"`rank` (={self.rank}) must be above 0 and at most 1: a share of the full rank.")
        if not 0 <= self.sparsity < 1:
            raise ValueError(f"`sparsity` (={self.sparsity}) must be at least 0 and below 1.")
        if not 0 <= self.spectral_radius < math.inf:
            raise ValueError(f"`spectral_radius` (={self.spectral_radius}) must be 0 (as drawn) or above, and finite.")
        if not math.isfinite(self.spectral_shift):
            raise ValueError(f"`spectral_shift` (={self.spectral_shift}) must be finite.")

    def learn(
        self, family: Family, task: Task | None, members: Members, snapshots: Sequence[int], run: Run = HERE
    ) -> Learned:
        self.check(family, task)
        steps = sorted_snapshots(snapshots, 0)
        settings = {name: self.setting(name, members).tolist() for name in self.varying}
        fresh = fresh_params(family, members.seed, members.ids)
        models = [
            # One by one: products of stacked matrices may differ in their last bits with the size of the stack.
            _structured(
                family,
                {name: value[index] for name, value in fresh.items()},
                generator(members.seed, model_id, "sparsity"),
                **{name: values[index] for name, values in settings.items()},
            )
            for index, model_id in enumerate(members.ids)
        ]
        stacked = {name: torch.stack([model[name] for model in models])[:, None] for name in family.spec.tensors}
        return Learned(steps, stacked, torch.full((len(models),), -1, dtype=torch.int64))


def _structured(
    family: Family,
    params: Params,
    stream: torch.Generator,
    *,
    gain: float,
    rank: float,
    sparsity: float,
    spectral_radius: float,
    spectral_shift: float,
) -> Params:
    """Params of one model with the structure that its settings ask for."""
    spec = family.spec
    scaled = {name for name in spec.trained if spec.tensors[name].domain in ("real", "even")}
    params = {name: value * gain if name in scaled else value for name, value in params.items()}
    if rank < 1:
        params = of_rank(spec, params, rank)
    if sparsity:
        params = sparse(spec, params, sparsity, stream)
    if spectral_radius:
        params = with_radius(family, params, spectral_radius)
    if spectral_shift:
        params = shifted(family, params, spectral_shift)
    return params
