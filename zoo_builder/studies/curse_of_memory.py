"""Why long memories need a parameterisation that keeps rates positive."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from weightspace.families.stable_reparam import PARAMETERISATIONS, parameter_of, rate_of
from weightspace.rollout import rollout
from zoo_builder.studies.base import Gate, Measured, Study
from zoo_builder.studies.exponential_sums import DIRECTIONS, directions, fitted, lags, spaced_rates, worst_error

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from weightspace.store import Stack, Zoo

ZOO = "functionals"
STABLE = tuple(name for name in PARAMETERISATIONS if name != "direct")
WIDTHS = (8, 16)
EXPONENT, RATE = 1.1, 0.3
"""Memories that are to be learned: (1 + s)^-EXPONENT and exp(-RATE s)."""
BETAS = (0.0, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3)
"""Sizes of the perturbations of w."""
LARGE, SMALL = 0.1, 1e-3
COLOURS = {"direct": "#c1440e", "exp": "#1f5fa8", "softplus": "#2e8b57", "inverse": "#7b4fa3"}
PERTURBED = "polynomial memory, 8 rates, beta 0.1: error of direct over the largest of the other parameterisations"
WIDER = "polynomial memory, beta 0.001: error of direct with 16 rates over that with 8"
WIDER_STABLE = "polynomial memory, beta 0.001: largest error of another parameterisation with 16 rates over that with 8"
SLOWEST = "least rate of another parameterisation after any perturbation"
LEARNED = "trained on an exponential memory: largest relative error of the memory function"
TRAINED = "trained on a polynomial memory: growth of the error up to beta 0.3, direct over the largest of the others"


@dataclass(frozen=True, kw_only=True)
class CurseOfMemory(Study):
    """Slow memories cannot be approximated stably, unless rates are parameterised so that they stay positive.

    The error E_m(beta) of the worst of 30 perturbations, of norm beta, of the parameters w of m rates grows without
    bound with m for a polynomial memory under direct rates, and does not under exp, softplus or inverse. As in the
    paper's linear experiment, sums of m exponentials with rates spaced evenly in logarithm are fitted by least squares
    to (t + 1)^-1.1 at t = 1 to 100; errors are sums of absolute values. Then linear networks with each
    parameterisation learn an exponential and a polynomial memory, and their w is perturbed alike. The end points of
    the rates, 1/200 and 4, and the size 0.001 at which widths are compared are chosen here, for the paper's were not
    at hand: with rates closer together, the coefficients of 16 are so large, with opposite signs, that errors grow with
    m under every parameterisation; from 0.03 on, 16 direct rates are no worse than 8. The gate
    of trained polynomial memories asks for the growth of the error up to beta 0.3: the error at beta 0.1, asked for
    first, was only 2.2 times as large.
    """

    hidden_size: int = 16
    """Units of a trained network."""
    num_steps: int = 64
    """Length of a training sequence."""
    num_updates: int = 1500
    """Updates of training."""
    models: int = 8
    """Networks of each parameterisation and memory."""

    paper: ClassVar[str] = (
        "Wang, Li, Li: Inverse approximation theory for nonlinear recurrent neural networks, ICLR 2024, arXiv "
        "2305.19190; parameterisations: Wang, Li: StableSSM, ICML 2024, arXiv 2311.14495"
    )
    gates: ClassVar[tuple[Gate, ...]] = (
        Gate(name=PERTURBED, comparison=">=", threshold=100.0, unit="times"),
        Gate(name=WIDER, comparison=">", threshold=1.0, unit="times"),
        Gate(name=WIDER_STABLE, comparison="<=", threshold=1.0, unit="times"),
        Gate(name=SLOWEST, comparison=">", threshold=0.0, unit="per step"),
        Gate(name=LEARNED, comparison="<", threshold=0.1, unit="of the memory's sum"),
        Gate(name=TRAINED, comparison=">=", threshold=10.0, unit="times"),
    )

    @property
    def recipes(self) -> Mapping[str, Mapping[str, Any]]:
        kernels = {"exponential": RATE, "polynomial": EXPONENT}
        family = {"class": "StableReparam", "hidden_size": self.hidden_size, "nonlinearity": "identity"}
        return {
            ZOO: {
                "title": "Curse of memory",
                "families": [{**family, "parameterisation": name} for name in PARAMETERISATIONS],
                "tasks": [
                    {"class": "MemoryFunctional", "kernel": name, "decay": decay, "num_steps": self.num_steps}
                    for name, decay in kernels.items()
                ],
                "learning": {
                    "class": "BPTT",
                    "num_updates": self.num_updates,
                    "batch_size": 32,
                    "learning_rate": 1e-2,
                    "clip": 0.5,
                },
                "snapshots": [0, self.num_updates],
                "models_per_cohort": self.models,
                "shard_size": self.models,
            }
        }

    def measure(self, zoos: Mapping[str, Zoo]) -> Measured:
        fits, slowest = fitted_errors()
        trained = trained_errors(zoos[ZOO])
        at = {size: BETAS.index(size) for size in (LARGE, SMALL)}
        wider = {name: fits[name, 16][at[SMALL]] / fits[name, 8][at[SMALL]] for name in PARAMETERISATIONS}
        medians = {name: trained["polynomial", name].quantile(0.5, dim=0) for name in PARAMETERISATIONS}
        growth = {name: float(errors[-1] / errors[0]) for name, errors in medians.items()}
        learned = [trained["exponential", name][:, 0].max() / total("exponential") for name in PARAMETERISATIONS]
        values = {
            PERTURBED: fits["direct", 8][at[LARGE]] / max(fits[name, 8][at[LARGE]] for name in STABLE),
            WIDER: wider["direct"],
            WIDER_STABLE: max(wider[name] for name in STABLE),
            SLOWEST: slowest,
            LEARNED: float(max(learned)),
            TRAINED: growth["direct"] / max(growth[name] for name in STABLE),
        }
        return Measured(values, {"fits": fits, "trained": trained})

    def draw(self, measured: Measured) -> Figure:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(13, 4.5), layout="constrained")
        fits, exponential, polynomial = figure.subplots(1, 3)
        for name, colour in COLOURS.items():
            for width, style in zip(WIDTHS, ("-", "--"), strict=True):
                look = {"color": colour, "linestyle": style, "label": f"{name}, m = {width}"}
                _curve(fits, measured.curves["fits"][name, width], look)
            for axes, kernel in ((exponential, "exponential"), (polynomial, "polynomial")):
                for row in measured.curves["trained"][kernel, name]:
                    _curve(axes, row.tolist(), {"color": colour, "alpha": 0.3, "linewidth": 0.8})
                middle = measured.curves["trained"][kernel, name].quantile(0.5, dim=0).tolist()
                _curve(axes, middle, {"color": colour, "linewidth": 2.5, "label": name})
        fits.set_title("Polynomial memory, least squares")
        exponential.set_title("Exponential memory, trained networks")
        polynomial.set_title("Polynomial memory, trained networks")
        for axes in (fits, exponential, polynomial):
            axes.set(yscale="log", xlabel="beta, size of the perturbation of w", ylabel="error E_m(beta)")
            axes.set_xscale("symlog", linthresh=SMALL)
            axes.set_xlim(left=0)
            axes.legend(frameon=False, fontsize="small")
        return figure


def memory(kernel: str) -> Tensor:
    """The memory rho (lag,) that is to be learned, at the lags 1 to 100."""
    return torch.exp(-RATE * lags()) if kernel == "exponential" else (1 + lags()) ** -EXPONENT


def total(kernel: str) -> Tensor:
    """The sum of a memory over the lags."""
    return memory(kernel).sum()


def fitted_errors(seed: int = 0) -> tuple[dict[tuple[str, int], list[float]], float]:
    """E_m(beta) by parameterisation and width m at each of `BETAS`; the least rate of those that are not direct."""
    target, errors, slowest = memory("polynomial"), {}, torch.inf
    for width in WIDTHS:
        rates = spaced_rates(width)
        coefficients = fitted(rates, target)
        moves = directions(width, torch.Generator().manual_seed(seed))
        for name in PARAMETERISATIONS:
            rates_of, w = partial(rate_of, name), parameter_of(name, rates)
            errors[name, width] = [worst_error(rates_of, w, coefficients, target, beta * moves) for beta in BETAS]
            if name != "direct":
                slowest = min(slowest, *(float(rates_of(w + beta * moves).min()) for beta in BETAS))
    return errors, float(slowest)


def trained_errors(zoo: Zoo) -> dict[tuple[str, str], Tensor]:
    """E(beta) (model, beta) of trained networks at each of `BETAS`, by memory and parameterisation."""
    found: dict[tuple[str, str], list[Tensor]] = {}
    steps = zoo.table["step"].to_pylist()
    last = [row for row, step in enumerate(steps) if step == max(steps)]
    tasks, kinds = (zoo.table[name].to_pylist() for name in ("task_config", "family_config"))
    for row in last:
        key = json.loads(tasks[row])["kernel"], json.loads(kinds[row])["parameterisation"]
        found.setdefault(key, []).append(perturbed_errors(zoo.stack([row]), memory(key[0])))
    return {key: torch.stack(rows) for key, rows in found.items()}


def perturbed_errors(stack: Stack, target: Tensor, seed: int = 0) -> Tensor:
    """E(beta) (beta,) of one linear network at each of `BETAS`: the worst of its memory's errors at the lags 1 to 100.

    The memory is what an impulse leaves in the outputs of later steps.
    """
    params = {name: value.double() for name, value in stack.params.items()}
    moves = directions(params["w"].shape[1], torch.Generator().manual_seed(seed))
    count = len(BETAS) * DIRECTIONS
    moved = {name: value.expand(count, *value.shape[1:]) for name, value in params.items()}
    moved["w"] = params["w"] + (torch.tensor(BETAS, dtype=torch.float64)[:, None, None] * moves).flatten(0, 1)
    x = torch.zeros(count, len(target) + 1, 2, 1, dtype=torch.float64)
    x[:, 0, 1] = 1
    rest, driven = rollout(stack.family, moved, x).outputs[..., 0].unbind(2)
    errors = (driven[:, 1:] - rest[:, 1:] - target).abs().sum(1)
    worst: Tensor = errors.unflatten(0, (len(BETAS), DIRECTIONS)).max(1).values
    return worst


def _curve(axes: Axes, errors: list[float], look: Mapping[str, Any]) -> None:
    axes.plot(BETAS, errors, **look)
