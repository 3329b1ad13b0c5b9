"""Newton's method beside the sequential rollout: exponents, iterations, residuals and differences."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from weightspace.families import Family
from weightspace.rollout import rollout
from weightspace.rollout.agreement import farthest
from weightspace.rollout.methods.deer import Deer
from weightspace.rollout.tangents import flatten, jacobians, log_product_norms
from weightspace.spec import Params
from zoo_builder.tasks import Batch, Task

PREFIXES = (1, 4, 16)
"""Numbers of iterations after which as many states must be exact."""
WINDOW = 32
"""Steps over which the fastest growth is sought."""
ROUNDING = 1e-14
"""Residuals below are rounding."""


@dataclass(frozen=True)
class Solved:
    """Iterations of Newton's method on one sequence of each model, beside the sequential rollout."""

    exponent: Tensor
    """Largest Lyapunov exponent (models,) of the trajectory that was solved for, nats per step."""
    fastest: Tensor
    """The same of the stretch of `WINDOW` steps in which deviations grow most (models,)."""
    iterations: Tensor
    """Number of iterations (models,)."""
    residuals: Tensor
    """Largest residual (models, iteration) before each iteration; NaN after the last."""
    difference: Tensor
    """Largest difference (models,) of a state from the sequential one."""
    prefix: Tensor
    """Largest difference (models,) of the first k states after k iterations, k any of `PREFIXES`."""


def solved(family: Family, params: Params, x: Tensor) -> Solved:
    """Newton's method on inputs (models, time, 1, input), beside the sequential rollout."""
    with torch.no_grad():
        reference = flatten(family, rollout(family, params, x, method="sequential").states)
        run = rollout(family, params, x, method="deer")
        differences = [
            (flatten(family, rollout(family, params, x, method=Deer(most_iterations=k)).states) - reference)[:, :k]
            for k in PREFIXES
        ]
    along = driven_jacobians(family, params, x)
    firsts = range(0, max(x.shape[1] - WINDOW, 0) + 1, WINDOW)
    stretches = [growth(along[:, first : first + WINDOW]) for first in firsts]
    return Solved(
        exponent=growth(along),
        fastest=torch.stack(stretches).amax(0),
        iterations=run.report["iterations"],
        residuals=run.report["residuals"],
        difference=(flatten(family, run.states) - reference).abs().flatten(1).amax(1),
        prefix=torch.cat([part.flatten(1) for part in differences], dim=1).abs().amax(1),
    )


def driven_jacobians(family: Family, params: Params, x: Tensor) -> Tensor:
    """Jacobians (models, time, 1, to state, from state) along the sequential rollout on inputs (models, time, 1,
    input)."""
    start = torch.func.vmap(family.initial_state)(params, x.new_zeros(len(x), x.shape[2], 0))
    with torch.no_grad():
        return jacobians(family, params, x, start, {}, method="native")


def growth(along: Tensor) -> Tensor:
    """log ||J(T) ... J(1)||_F / T (models,) of Jacobians (models, T, 1, to state, from state), nats per step.

    Over a whole trajectory, its largest Lyapunov exponent, on which the number of iterations depends (Gonzalez,
    Kozachkov, Zoltowski, Clarkson and Linderman, Predictability enables parallelization of nonlinear state space
    models, NeurIPS 2025, arXiv 2508.16817).
    """
    return log_product_norms(along)[:, -1] / along.shape[1]


def orders(residuals: Tensor) -> Tensor:
    """Order of convergence p (models,), r(k+1) ~ r(k)^p, of residuals (models, iteration); NaN with fewer than three.

    log(r(k+1) / r(k)) / log(r(k) / r(k-1)), of the last three residuals above rounding.
    """
    found = []
    for of_model in residuals:
        last = of_model[of_model > ROUNDING][-3:].log()
        steps = last.diff()
        found.append(steps[1] / steps[0] if len(steps) == 2 else last.new_tensor(torch.nan))
    return torch.stack(found)


def gradient_difference(task: Task, family: Family, params: Params, batch: Batch) -> float:
    """Largest difference of a gradient of the task's loss by Newton's method from that through the loop.

    With respect to params and inputs, as a share of the largest number of the same tensor.
    """
    by_method = []
    for method in ("deer", "stacked"):
        leaves = {name: value.detach().clone().requires_grad_() for name, value in params.items()}
        x = batch.x.to(next(iter(params.values())).dtype).requires_grad_()
        loss = task.loss(rollout(family, leaves, x, method=method).outputs, batch).sum()
        by_method.append(torch.autograd.grad(loss, [*leaves.values(), x]))
    return farthest(*by_method)


def rank_correlation(one: Tensor, other: Tensor) -> float:
    """Spearman's rank correlation of two quantities (models,); NaN where either is constant."""
    import scipy.stats

    ranks = [torch.from_numpy(scipy.stats.rankdata(values.numpy())) for values in (one, other)]
    return float(torch.corrcoef(torch.stack(ranks))[0, 1])
