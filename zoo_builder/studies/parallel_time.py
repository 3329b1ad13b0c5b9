"""All steps of a recurrent network at once by Newton's method, and what its number of iterations depends on."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from weightspace.families import Family
from weightspace.rollout import Streams
from weightspace.rollout.forward import last_outputs
from weightspace.spec import Params
from zoo_builder.executor import ROLLOUTS
from zoo_builder.studies.base import Gate, Measured, Study
from zoo_builder.studies.newton_runs import WINDOW, Solved, gradient_difference, orders, rank_correlation, solved
from zoo_builder.studies.parallel_speed import draw_speed, speed_table
from zoo_builder.tasks import Batch
from zoo_builder.tasks.chirps import Chirps

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from weightspace.store import Zoo

RANDOM, TRAINED = "random", "trained"
GAINS = (0.5, 0.65, 0.8, 0.95, 1.1, 1.25, 1.4, 1.6, 1.8, 2.0)
"""Standard deviations of the entries of W_hh, times the square root of the number of units."""
COMPARED = (0.5, 1.1, 2.0)
"""Gains whose median numbers of iterations must grow."""
SEQUENCES = 1000
"""Sequences on which accuracy is measured."""
EXACT = "largest difference of a state from the sequential one, exponent below 0"
GRADIENT = "trained: largest relative difference of a gradient of the loss, exponent below 0"
PREFIX = "largest difference of the first k states after k = 1, 4 and 16 iterations"
ORDER = "median order of convergence of the last residuals, exponent below 0"
MOST = "largest number of iterations over the number of steps"
GROWTH = "least growth of the median number of iterations from gain 0.5 to 1.1 to 2, as a ratio"
RANK = "random: rank correlation of the number of iterations with the largest Lyapunov exponent"


@dataclass(frozen=True, kw_only=True)
class ParallelTime(Study):
    """Newton's method finds all states of a recurrent network at once, in few iterations where the network forgets.

    Tanh networks with random weights of ten gains, and GRUs that learned to tell pairs of chirps far apart, are run on
    sequences of `num_steps` steps in float64, one sequence each. The states are compared with those of the loop, and
    the gradients of the loss with those of backpropagation. The exponent is that of the trajectory which is solved
    for, over all its steps; it, the gains and the tolerance were chosen before the correlation was measured.

    The correlation is at its threshold, not beyond it: 0.901 with seed 0, 0.910 with seed 1 and 0.883 with seed 2, and
    0.8998 on the same networks as those of seed 0 where products of matrices were rounded otherwise. Other inputs for
    the exponent, longer ones, or a tolerance of 0.001 for the iterations change it by less than 0.01, and no network
    needed as many iterations as steps. A mean over all steps hides stretches in which deviations grow, and they are
    what iterations must overcome: the largest exponent of any 32 steps correlates by 0.974 (0.946 and 0.964 with
    seeds 1 and 2). It was looked for after the fact and is no gate. With the trained networks among the others the
    correlation is 0.851: one of them has a mean exponent of -0.49, of 0.16 in its fastest stretch, and 149 iterations.

    CPU time and memory of a forward pass are measured over steps and units, with untrained GRUs, which take 3
    iterations; trained ones take up to 150. Beside the loop in Python `deer` pays for a single sequence, and for 32
    with 2 units, but not with 8; beside the loop in C nowhere.
    """

    hidden_size: int = 16
    """Units of a random network; a trained one has half as many."""
    num_steps: int = 512
    """Length of the sequences that are solved."""
    models: int = 8
    """Networks of each gain, and trained ones."""
    num_updates: int = 1500
    """Updates of training, on sequences of a quarter of the length."""

    paper: ClassVar[str] = (
        "Lim, Zhu, Selfridge, Kasim: Parallelizing non-linear sequential models over the sequence length, ICLR 2024, "
        "arXiv 2309.12252; exponents: Gonzalez, Kozachkov, Zoltowski, Clarkson, Linderman: Predictability enables "
        "parallelization of nonlinear state space models, NeurIPS 2025, arXiv 2508.16817"
    )
    gates: ClassVar[tuple[Gate, ...]] = (
        Gate(name=EXACT, comparison="<", threshold=1e-10, unit="(state)"),
        Gate(name=GRADIENT, comparison="<", threshold=1e-9, unit="of the largest"),
        Gate(name=PREFIX, comparison="<", threshold=1e-10, unit="(state)"),
        Gate(name=ORDER, comparison=">=", threshold=1.8, unit="(exponent)"),
        Gate(name=MOST, comparison="<=", threshold=1.0, unit="times"),
        Gate(name=GROWTH, comparison=">", threshold=1.0, unit="times"),
        Gate(name=RANK, comparison=">=", threshold=0.9, unit="(Spearman's rho)"),
    )

    @property
    def recipes(self) -> Mapping[str, Mapping[str, Any]]:
        family = {"class": "Elman", "hidden_size": self.hidden_size, "bias": False, "input_size": 1, "output_size": 1}
        # Entries are uniform with a variance of 1 / (3 hidden).
        random = [{"class": "Untrained", "gain": gain * math.sqrt(3)} for gain in GAINS]
        stacks = {"models_per_cohort": self.models, "shard_size": self.models, "splits": {"test": 0, "val": 0}}
        return {
            RANDOM: {"title": "Random gains", "families": [family], "learning": random, "snapshots": [0], **stacks},
            TRAINED: {
                "title": "Pairs of chirps",
                "families": [{"class": "GRU", "hidden_size": self.hidden_size // 2}],
                "tasks": [{"class": "Chirps", "num_steps": self.num_steps // 4}],
                "learning": {
                    "class": "BPTT",
                    "num_updates": self.num_updates,
                    "batch_size": 32,
                    "learning_rate": 1e-2,
                    "clip": 1.0,
                },
                "snapshots": [0, self.num_updates],
                **stacks,
            },
        }

    def measure(self, zoos: Mapping[str, Zoo]) -> Measured:
        random = by_gain(zoos[RANDOM], self.num_steps)
        family, params, batch, accuracy = self.trained(zoos[TRAINED])
        runs = [*random.values(), solved(family, params, batch.x)]
        stable = [run.exponent < 0 for run in runs]
        order = torch.cat([orders(run.residuals[rows]) for run, rows in zip(runs, stable, strict=True)])
        medians = torch.stack([random[gain].iterations.double().quantile(0.5) for gain in COMPARED])
        iterations = torch.cat([run.iterations for run in random.values()]).double()
        exponents = torch.cat([run.exponent for run in random.values()])
        values = {
            EXACT: _largest([run.difference[rows] for run, rows in zip(runs, stable, strict=True)]),
            GRADIENT: self.gradients(family, params, batch, stable[-1]),
            PREFIX: _largest([run.prefix for run in runs]),
            ORDER: float(order.nanquantile(0.5)) if len(order) else math.nan,
            MOST: float(max(run.iterations.max() for run in runs)) / self.num_steps,
            GROWTH: float((medians[1:] / medians[:-1]).min()),
            RANK: rank_correlation(iterations, exponents),
        }
        rows = speed_table()
        return Measured(values, {"random": random, "trained": runs[-1], "accuracy": accuracy, "speed": rows}, rows)

    def trained(self, zoo: Zoo) -> tuple[Family, Params, Batch, float]:
        """Family and params (models, ...) of the trained networks, a sequence of the study for each, in float64, and
        the median accuracy on sequences as long as those of training."""
        steps = zoo.table["step"].to_pylist()
        rows = [row for row, step in enumerate(steps) if step == max(steps)]
        stack, ids = zoo.stack(rows), zoo.table["model_id"].take(rows).to_pylist()
        seed = zoo.manifest["recipe"]["seed"]
        task = Chirps(num_steps=self.num_steps // 4)
        batch = task.sample({}, Streams(seed, ids, "parallel_time/accuracy"), SEQUENCES, "test")
        method = ROLLOUTS[zoo.manifest["executor"]["method"]]
        outputs = last_outputs(stack.family, stack.params, batch.x, batch.start, {}, 1, method=method)
        accuracy = float(task.score(outputs, batch).quantile(0.5))
        long = Chirps(num_steps=self.num_steps).sample({}, Streams(seed, ids, "parallel_time"), 1, "test")
        long = Batch(long.x.double(), long.start.double(), long.target)
        return stack.family, {name: value.double() for name, value in stack.params.items()}, long, accuracy

    def gradients(self, family: Family, params: Params, batch: Batch, rows: Tensor) -> float:
        """Largest relative difference of a gradient, of the models of these rows (models,); NaN where there is none."""
        if not bool(rows.any()):
            return math.nan
        some = Batch(batch.x[rows], batch.start[rows], batch.target[rows])
        part = {name: value[rows] for name, value in params.items()}
        return gradient_difference(Chirps(num_steps=self.num_steps), family, part, some)

    def draw(self, measured: Measured) -> Figure:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(13, 9), layout="constrained")
        (iterations, residuals), heat = figure.subplots(2, 2)
        draw_iterations(iterations, measured.curves, self.num_steps)
        draw_residuals(residuals, measured.curves["random"])
        for axes, method in zip(heat, ("stacked", "native"), strict=True):
            draw_speed(axes, measured.curves["speed"], method)
        return figure


def by_gain(zoo: Zoo, num_steps: int) -> dict[float, Solved]:
    """Runs of Newton's method on Gaussian noise, by the gain of random networks."""
    learners = [json.loads(text) for text in zoo.table["learning_config"].to_pylist()]
    found = {}
    for gain in GAINS:
        rows = [row for row, learner in enumerate(learners) if math.isclose(learner["gain"], gain * math.sqrt(3))]
        stack, ids = zoo.stack(rows), zoo.table["model_id"].take(rows).to_pylist()
        x = Streams(zoo.manifest["recipe"]["seed"], ids, "parallel_time").normal(num_steps, 1, 1, dtype=torch.float64)
        found[gain] = solved(stack.family, {name: value.double() for name, value in stack.params.items()}, x)
    return found


def _largest(parts: list[Tensor]) -> float:
    """The largest number, NaN where there is none."""
    numbers = torch.cat(parts)
    return float(numbers.max()) if len(numbers) else math.nan


def draw_iterations(axes: Axes, curves: Mapping[str, Any], num_steps: int) -> None:
    """Number of iterations of each network over its largest Lyapunov exponent, and the number of steps as a line."""
    shades = dict(zip(GAINS, torch.linspace(0, 1, len(GAINS)).tolist(), strict=True))
    exponent, fastest, iterations = (
        torch.cat([getattr(curves["random"][gain], name) for gain in GAINS])
        for name in ("exponent", "fastest", "iterations")
    )
    colour = [shades[gain] for gain in GAINS for _ in curves["random"][gain].exponent]
    axes.scatter(exponent, iterations, c=colour, cmap="viridis", s=18, label="random, darker for lower gains")
    label = f"trained on pairs of chirps, accuracy {curves['accuracy']:.2f}"
    axes.scatter(curves["trained"].exponent, curves["trained"].iterations, c="#c1440e", marker="x", label=label)
    axes.axhline(num_steps, color="gray", linewidth=0.8, label="number of steps")
    axes.axvline(0, color="gray", linestyle=":")
    axes.set(yscale="log", xlabel="largest Lyapunov exponent, nats per step", ylabel="iterations")
    over = ", ".join(
        f"{rank_correlation(iterations.double(), values):.3f} with {of}"
        for values, of in ((exponent, "the exponent"), (fastest, f"that of the fastest {WINDOW} steps"))
    )
    axes.set_title(f"Rank correlation: {over}", fontsize="medium")
    axes.legend(frameon=False, fontsize="small")


def draw_residuals(axes: Axes, random: Mapping[float, Solved]) -> None:
    """The residuals of the first network of each gain by iteration."""
    from matplotlib import colormaps

    for place, gain in enumerate(GAINS):
        colour = colormaps["viridis"](place / (len(GAINS) - 1))
        residuals = random[gain].residuals[0]
        axes.plot(range(len(residuals)), residuals.clamp(min=1e-17), color=colour, label=f"gain {gain:g}")
    axes.set(yscale="log", xlabel="iterations", ylabel="largest residual", xscale="symlog", title="Residuals")
    axes.set_xlim(left=0)
    axes.legend(frameon=False, fontsize="small", ncols=2)
