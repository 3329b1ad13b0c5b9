"""Planted params: drawn with a known structure instead of learned."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from weightspace.families import Family
from weightspace.rollout import generator
from zoo_builder.learning.base import HERE, Learned, Learner, Run, sorted_snapshots
from zoo_builder.members import Members
from zoo_builder.tasks import Task


@dataclass(frozen=True, kw_only=True)
class Planted(Learner):
    """One planted memory mode: W_hh = gain u v^T + noise/sqrt(hidden) N(0, 1), unit u and v, their cosine uniform.

    The one large eigenvalue, gain u.v, lies anywhere from -gain to gain, while the singular values of W_hh hardly tell
    models apart: rank-one structure as in Mastrogiuseppe and Ostojic, Neuron 2018. Every other tensor is fresh.
    """

    gain: float = 1.5
    """Size of the planted mode: its eigenvalue lies from -gain to gain."""
    noise: float = 0.05
    """Size of the random rest: the radius of its eigenvalues."""

    needs_task: ClassVar[bool] = False
    takes_task: ClassVar[bool] = False

    def why_not(self, family: Family, task: Task | None) -> str | None:
        """See the base: the family must have one recurrent tensor, without gate rows, of at least two units."""
        spec = family.spec
        names = spec.recurrent()
        if len(names) == 1 and spec.num_rows(names[0]) == 1:
            if spec.shape(names[0])[-1] > 1:
                return None
            return "a planted mode goes between two directions, and this family has a single unit; give it at least 2."
        rows = ", ".join(f"'{name}' with {spec.num_rows(name)} row(s)" for name in names) or "none"
        return (
            f"a planted mode needs one recurrent tensor, without gate rows, and this family has {rows}; choose another "
            "family, or a learner that takes this one."
        )

    def learn(
        self, family: Family, task: Task | None, members: Members, snapshots: Sequence[int], run: Run = HERE
    ) -> Learned:
        self.check(family, task)
        (name,) = family.spec.recurrent()
        steps = sorted_snapshots(snapshots, 0)
        models = []
        for model_id in members.ids:
            stream = generator(members.seed, model_id, "init")
            params = family.init(stream)
            models.append(params | {name: self._matrix(params[name].shape[0], stream).to(params[name].dtype)})
        stacked = {name: torch.stack([model[name] for model in models])[:, None] for name in family.spec.tensors}
        return Learned(steps, stacked, torch.full((len(models),), -1, dtype=torch.int64))

    def _matrix(self, size: int, stream: torch.Generator) -> Tensor:
        """One recurrent matrix (to, from), float64."""
        cosine = 2 * torch.rand((), generator=stream, dtype=torch.float64) - 1
        target, other, noise = (
            torch.randn(shape, generator=stream, dtype=torch.float64) for shape in ((size,), (size,), (size, size))
        )
        target = target / target.norm()
        across = other - (other @ target) * target
        source = cosine * target + torch.sqrt(1 - cosine**2) * across / across.norm()
        return self.gain * torch.outer(target, source) + self.noise / math.sqrt(size) * noise

