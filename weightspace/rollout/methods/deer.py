"""All steps at once, by Newton's method with whole Jacobians."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from weightspace.families import Family
from weightspace.rollout.newton import Newton
from weightspace.rollout.tangents import jacobians_at
from weightspace.spec import Params


@dataclass(frozen=True, kw_only=True)
class Deer(Newton):
    """Newton's method with A = df/dy (Lim, Zhu, Selfridge and Kasim, Parallelizing non-linear sequential models over
    the sequence length, ICLR 2024, arXiv 2309.12252).

    Convergence is quadratic: 1e-10 from the reference in float64 and 1e-4 in float32 where deviations decay. It takes
    time n^3 and memory n^2 for each step of n states, so that on a CPU it pays beside `Stacked` for few states, few
    models and long sequences alone, and nowhere beside `Native`.
    """

    def factors(self, family: Family, params: Params, x: Tensor, state: Tensor, noise: Mapping[str, Tensor]) -> Tensor:
        """Jacobians (models, point, to, from)."""
        return jacobians_at(family, params, x, state, noise)
