"""Rollouts as equations for all steps at once, solved by Newton's method in parallel over time."""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from weightspace.families import Family
from weightspace.rollout.methods.base import RolloutMethod
from weightspace.rollout.methods.stacked import Stacked
from weightspace.rollout.results import Rollout
from weightspace.rollout.scan import solve
from weightspace.rollout.streams import generator
from weightspace.rollout.tangents import flatten, jacobians_at, unflatten
from weightspace.spec import Params, State

LIMIT = 1e8
"""Largest absolute state of an iterate."""


class Driven(NamedTuple):
    """Params, inputs, noise and first states of a stack of models, on which the states of all steps depend."""

    params: Params
    x: Tensor
    """Inputs (models, time, batch, input)."""
    noise: Mapping[str, Tensor]
    first: Tensor
    """State before the first input (models, batch, state), all states side by side."""

    def part(self, models: Tensor) -> Driven:
        """Those of some models (index)."""
        params, noise = ({name: v[models] for name, v in part.items()} for part in (self.params, self.noise))
        return Driven(params, self.x[models], noise, self.first[models])

    def detached(self) -> Driven:
        """The same without gradients."""
        params, noise = ({name: v.detach() for name, v in part.items()} for part in (self.params, self.noise))
        return Driven(params, self.x.detach(), noise, self.first.detach())


@dataclass(frozen=True, kw_only=True)
class Newton(RolloutMethod):
    """Newton iterations y <- y + d on y(t) = f(y(t-1), x(t)) for all t together.

    d(t) = A(t) d(t-1) + f(y(t-1), x(t)) - y(t) is a linear recurrence, which is solved in parallel over time. Whatever
    the factors A, k iterations make the first k states exact, so that as many iterations as steps are enough; A =
    df/dy makes convergence quadratic. Each model stops where no state moves by more than `tolerance` (1 + |y|), and
    costs nothing from then on. `report` has `iterations` (models,), those that moved states by more than that, and
    `residuals` (models, iteration), the largest |f(y(t-1), x(t)) - y(t)| before each, NaN where a model has stopped.
    Chaotic models need as many iterations as steps, and then rounding parts their states from the sequential ones, as
    it parts any two ways of computing them. Models whose states are not finite or are beyond 1e8 are run step by step.

    Gradients need no iterations: at the solution they solve the same recurrence backward, with Jacobians taken there.
    They cannot be differentiated again.
    """

    tolerance: float | None = None
    """Largest move of converged states, relative to 1 + |y|; null: the unit of rounding to the power of 2/3."""
    damping: float = 0.0
    """Part by which A is made smaller, from 0 to 1: above 0, moves far ahead are smaller and iterations more."""
    most_iterations: int | None = None
    """Number of iterations after which states are left as they are, converged or not; null: as many as steps."""

    def __post_init__(self) -> None:
        if self.most_iterations is not None and self.most_iterations < 1:
            raise ValueError(f"`most_iterations` (={self.most_iterations}) must be at least 1.")
        if not 0 <= self.damping <= 1:
            raise ValueError(f"`damping` (={self.damping:g}) must be from 0 to 1.")
        if self.tolerance is not None and not self.tolerance > 0:
            raise ValueError(f"`tolerance` (={self.tolerance:g}) must be above 0.")

    def why_not(self, family: Family, x: Tensor) -> str | None:
        """Reason why torch has no Jacobian of the family's step, None if it has."""
        return _without_jacobian(family)

    @abstractmethod
    def factors(self, family: Family, params: Params, x: Tensor, state: Tensor, noise: Mapping[str, Tensor]) -> Tensor:
        """A at states (models, point, state): matrices (models, point, to, from) or diagonals (models, point, state).

        Inputs are (models, point, input), noise (models, point, axis).
        """

    def run(
        self, family: Family, params: Params, x: Tensor, start: Tensor, noise: Mapping[str, Tensor], state: State | None
    ) -> Rollout:
        """Outputs, states and number of iterations of all models; see `rollout` for shapes."""
        if state is None:
            state = torch.func.vmap(family.initial_state)(params, start)
        driven = Driven(params, x, noise, flatten(family, state))
        with torch.no_grad():
            solution, report = self._solved(family, driven.detached())
        if torch.is_grad_enabled():
            solution = _with_gradients(family, driven, solution)
        states = unflatten(family, solution)
        flat = {name: value.flatten(1, 2) for name, value in states.items()}
        outputs = torch.func.vmap(family.readout)(params, flat).unflatten(1, x.shape[1:3])
        final = {name: value[:, -1] for name, value in states.items()}
        return Rollout(outputs, states, final, report)

    def _solved(self, family: Family, driven: Driven) -> tuple[Tensor, dict[str, Tensor]]:
        """States (models, time, batch, state) and the report."""
        time = driven.x.shape[1]
        most = min(time, self.most_iterations or time)
        solution = driven.first[:, None].repeat(1, time, 1, 1)
        iterations = torch.zeros(len(solution), dtype=torch.int64, device=solution.device)
        residuals = solution.new_full((len(solution), most), torch.nan)
        tolerance = self.tolerance or torch.finfo(solution.dtype).eps ** (2 / 3)
        active = torch.arange(len(solution), device=solution.device)
        part, now = driven, solution
        for k in range(most):
            residual, move = self._move(family, part, now)
            residuals[active, k] = residual.abs().flatten(1).amax(1)
            # A move that is not a number is none, and its model goes on: the exact states still grow by one a round.
            now = (now + torch.nan_to_num(move, 0.0, 0.0, 0.0)).clamp(-LIMIT, LIMIT)
            still = (move.abs() <= tolerance * (1 + now.abs())).flatten(1).all(1)
            solution[active] = now
            iterations[active] += ~still
            if bool(still.all()):
                break
            if bool(still.any()):
                active, now, part = active[~still], now[~still], part.part((~still).nonzero()[:, 0])
                move = move[~still]
        else:
            lost = (~(move.isfinite() & (now.abs() < LIMIT))).flatten(1).any(1)
            if most == time and bool(lost.any()):
                solution[active[lost]] = _step_by_step(family, part.part(lost.nonzero()[:, 0]))
        return solution, {"iterations": iterations, "residuals": residuals[:, : k + 1]}

    def _move(self, family: Family, driven: Driven, states: Tensor) -> tuple[Tensor, Tensor]:
        """f(y(t-1), x(t)) - y(t) and the move d(t), both (models, time, batch, state), at states of this shape."""
        before = _before(driven, states)
        points = (driven.params, driven.x.flatten(1, 2), before.flatten(1, 2), _points(driven.noise))
        factors = (1 - self.damping) * self.factors(family, *points).unflatten(1, states.shape[1:3])
        residual = _stepped(family, *points).view_as(states) - states
        return residual, solve(factors, residual)


@functools.lru_cache(maxsize=1024)
def _without_jacobian(family: Family) -> str | None:
    """Reason why torch has no Jacobian of a family's step, None if it has."""
    params = {name: value[None] for name, value in family.spec.random_params(generator(0, "newton", "params")).items()}
    some = next(iter(params.values()))
    state = some.new_zeros(1, 1, sum(map(family.spec.size_of_state, family.spec.states)))
    noise = {name: some.new_zeros(1, 1, family.spec.axes[axis].size) for name, axis in family.spec.noise.items()}
    try:
        jacobians_at(family, params, some.new_zeros(1, 1, family.input_size), state, noise)
    except RuntimeError as error:
        return f"torch has no Jacobian of its step: {str(error).splitlines()[0]}"
    return None


def _step_by_step(family: Family, driven: Driven) -> Tensor:
    """States (models, time, batch, state), one step after another."""
    none = driven.x.new_zeros(len(driven.x), driven.x.shape[2], 0)
    state = unflatten(family, driven.first)
    return flatten(family, Stacked().run(family, driven.params, driven.x, none, driven.noise, state).states)


def _with_gradients(family: Family, driven: Driven, solution: Tensor) -> Tensor:
    """The same states (models, time, batch, state) as a function of everything that drives the models."""
    before = _before(driven, solution)
    points = (driven.params, driven.x.flatten(1, 2), before.flatten(1, 2), _points(driven.noise))
    stepped = _stepped(family, *points).view_as(solution)
    if not stepped.requires_grad:
        return solution
    with torch.no_grad():
        still = driven.detached()
        at = (still.params, still.x.flatten(1, 2), before.detach().flatten(1, 2), _points(still.noise))
        whole = jacobians_at(family, at[0], at[1], at[2], at[3]).unflatten(1, solution.shape[1:3])
    # 0 but for rounding: only its derivatives count.
    return solution + solve(whole, stepped - stepped.detach())


def _before(driven: Driven, states: Tensor) -> Tensor:
    """The states before each step, from those after it."""
    return torch.cat([driven.first[:, None], states[:, :-1]], dim=1)


def _points(noise: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.flatten(1, 2) for name, value in noise.items()}


def _stepped(family: Family, params: Params, x: Tensor, state: Tensor, noise: Mapping[str, Tensor]) -> Tensor:
    """States (models, point, state) one step on."""
    return flatten(family, torch.func.vmap(family.step)(params, unflatten(family, state), x, noise))
