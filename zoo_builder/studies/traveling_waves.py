"""Waves that bind variables in networks that learn a linear law of the past."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from weightspace.rollout import Streams
from weightspace.rollout.forward import last_outputs
from weightspace.store import Stack
from zoo_builder.executor import ROLLOUTS
from zoo_builder.studies.base import Gate, Measured, Study
from zoo_builder.studies.wave_basis import argument_errors, markov_parameters, persistent, silence, wave_of
from zoo_builder.tasks.variable_binding import VariableBinding

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from weightspace.store import Zoo

ZOO = "bindings"
LAWS: dict[str, dict[str, int]] = {
    "repeat copy": {"choice": 3, "swaps": 0, "signs": 0},
    "lags 4 and 3": {"choice": 9, "swaps": 0, "signs": 0},
    "one cycle of 7, negated": {"choice": 9, "swaps": 1, "signs": 1},
}
"""The laws of d = 2 values and s = 4 steps, as fields of the task; gates of waves judge the first."""
COPY = "repeat copy"
COLOURS = dict(zip(LAWS, ("#1f5fa8", "#2e8b57", "#c1440e"), strict=True))
HORIZON = 200
"""Answers that are asked for in the test."""
SEQUENCES = 256

ACCURACY = f"least accuracy of a network over {HORIZON} answers"
COUNT = "largest difference between a network's persistent eigenvalues and K*"
ARGUMENT = "repeat copy: largest mean error of a network's arguments of persistent eigenvalues"
SILENT = "repeat copy: largest Markov parameter off the multiples of s over the least on them, in any network"
UNTRAINED = "repeat copy: gates above that an untrained network passes"


@dataclass(frozen=True, kw_only=True)
class TravelingWaves(Study):
    """Networks that bind variables carry them as waves: their spectrum is that of the law, whatever their basis.

    Elman networks without biases learn to go on with d = 2 signs by a linear law of the last s = 4 steps, under a
    curriculum of horizons; then W_hh is the Jacobian at the origin. The law's transition Phi has K* eigenvalues on the
    circle, the number of a network's eigenvalues above 0.9, at the same arguments (matched by the Hungarian method).
    In repeat copy what enters comes back after s steps and multiples of s alone: W_ho W_hh^k W_ih is small at all other
    k up to 3 s. In a basis that follows from read-out and W_hh the states are waves from step to step. Three laws are
    learned, K* = 8, 7 and 7, and the gates of arguments and Markov parameters read repeat copy: with the negated cycle
    some networks miss arguments by .03 rad, and with unequal lags linear responses off the law's lags are as large as
    those on them. Thresholds are those of a pilot with 8 networks and 900 updates; with 16 of each law some need more.
    The paper has d = s = 8, 128 units and 20,000 updates.
    """

    hidden_size: int = 32
    """Units of a network."""
    num_updates: int = 1800
    """Updates of training."""
    models: int = 16
    """Networks of each law."""

    paper: ClassVar[str] = (
        "Karuvally, Sejnowski, Siegelmann: Hidden traveling waves bind working memory variables in recurrent neural "
        "networks, ICML 2024, arXiv 2402.10163"
    )
    gates: ClassVar[tuple[Gate, ...]] = (
        Gate(name=ACCURACY, comparison=">=", threshold=0.97, unit="of signs"),
        Gate(name=COUNT, comparison="<=", threshold=0.0, unit="eigenvalues"),
        Gate(name=ARGUMENT, comparison="<", threshold=0.01, unit="rad"),
        Gate(name=SILENT, comparison="<", threshold=0.2, unit="times"),
        Gate(name=UNTRAINED, comparison="<=", threshold=0.0, unit="gates"),
    )

    @property
    def recipes(self) -> Mapping[str, Mapping[str, Any]]:
        return {
            ZOO: {
                "title": "Traveling waves",
                "families": [{"class": "Elman", "hidden_size": self.hidden_size, "bias": False}],
                "tasks": [{"class": "VariableBinding", **law} for law in LAWS.values()],
                "learning": {
                    "class": "BPTT",
                    "num_updates": self.num_updates,
                    "batch_size": 64,
                    "learning_rate": 1e-3,
                    "exams": {"every": 10, "sequences": 64, "threshold": 0.96, "curriculum": True},
                },
                "snapshots": [0, self.num_updates],
                "models_per_cohort": self.models,
                "shard_size": self.models,
                "labels": ["Waves"],
                # All are read alike: nothing is learned about them.
                "splits": {"test": 0, "val": 0},
            }
        }

    def measure(self, zoos: Mapping[str, Zoo]) -> Measured:
        numbers = {key: numbers_of(zoos[ZOO], rows) for key, rows in rows_by_law(zoos[ZOO]).items()}
        trained = [numbers[law, True] for law in LAWS]
        copying, untrained = numbers[COPY, True], numbers[COPY, False]
        judged = dict(zip(self.gates, ("accuracy", "difference", "argument", "silence"), strict=False))
        passed = [gate.passes(number) for gate, name in judged.items() for number in untrained[name].tolist()]
        values = {
            ACCURACY: min(float(law["accuracy"].min()) for law in trained),
            COUNT: max(float(law["difference"].max()) for law in trained),
            ARGUMENT: float(copying["argument"].max()),
            SILENT: float(copying["silence"].max()),
            UNTRAINED: float(sum(passed)),
        }
        return Measured(values, {"numbers": numbers, "wave": copying["wave"]})

    def draw(self, measured: Measured) -> Figure:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(14, 4.5), layout="constrained")
        circle, wave, response = figure.subplots(1, 3)
        numbers = measured.curves["numbers"]
        draw_spectra(circle, {law: numbers[law, True]["eigenvalues"] for law in LAWS})
        draw_wave(wave, measured.curves["wave"])
        for is_trained, label in ((True, "trained"), (False, "untrained")):
            sizes = numbers[COPY, is_trained]["markov"].flatten(2).abs().amax(2).quantile(0.5, dim=0)
            look = {"marker": "o", "color": COLOURS[COPY] if is_trained else "#888888", "label": label}
            response.plot(range(1, len(sizes) + 1), sizes, **look)
        response.set(title="Repeat copy: what an input leaves", xlabel="lag k in steps")
        response.set_ylabel("largest entry of |W_ho W_hh^k W_ih|, median")
        response.legend(frameon=False, fontsize="small")
        return figure


def task_of(zoo: Zoo, row: int) -> VariableBinding:
    """The law that the network of a row learned."""
    return VariableBinding(**json.loads(zoo.table["task_config"][row].as_py()))


def rows_by_law(zoo: Zoo) -> dict[tuple[str, bool], list[int]]:
    """Rows by law, and by whether they are trained: the first and the last snapshots."""
    steps = zoo.table["step"].to_pylist()
    rows: dict[tuple[str, bool], list[int]] = {}
    for row, step in enumerate(steps):
        task = task_of(zoo, row)
        (law,) = (name for name, fields in LAWS.items() if all(getattr(task, k) == v for k, v in fields.items()))
        if step in (min(steps), max(steps)):
            rows.setdefault((law, step == max(steps)), []).append(row)
    return rows


def numbers_of(zoo: Zoo, rows: list[int]) -> dict[str, Tensor]:
    """Numbers of networks of one law: `accuracy`, `difference` of the count from K*, `argument` error, `silence`.

    All these are (model,), float64; `eigenvalues` are (model, unit), `markov` parameters (model, lag, value, value),
    and the `wave` of the first network is (time, step * value).
    """
    stack, task = zoo.stack(rows), task_of(zoo, rows[0])
    weights = {name: value.double() for name, value in stack.params.items()}
    into, across, out = (weights[name] for name in ("weight_ih.0", "weight_hh.0", "weight_ho"))
    expected = persistent(torch.linalg.eigvals(task.transition))
    eigenvalues, markov = torch.linalg.eigvals(across), markov_parameters(into, across, out, 3 * task.length)
    count = torch.tensor([zoo.table["weight_hh_0_persistent_eigenvalues"][row].as_py() for row in rows])
    return {
        "accuracy": accuracy_of(stack, task, ROLLOUTS[zoo.manifest["executor"]["method"]]),
        "difference": (count.double() - len(expected)).abs(),
        "argument": argument_errors(eigenvalues, expected),
        "silence": silence(markov, task),
        "eigenvalues": eigenvalues,
        "markov": markov,
        "wave": wave_of({name: value[0] for name, value in weights.items()}, task),
    }


def accuracy_of(stack: Stack, task: VariableBinding, method: Any) -> Tensor:
    """Share of right signs (model,) over `HORIZON` answers on fresh sequences."""
    longer = dataclasses.replace(task, horizon=HORIZON, levels=1, level=1)
    ids = [str(row) for row in stack.rows.tolist()]
    batch = longer.sample({}, Streams(0, ids, "study"), SEQUENCES, "test")
    outputs = last_outputs(stack.family, dict(stack.params), batch.x, batch.start, {}, HORIZON, method=method)
    return longer.score(outputs, batch)


def draw_spectra(axes: Axes, spectra: Mapping[str, Tensor]) -> None:
    """Eigenvalues of W_hh in the plane, with the unit circle and the law's eigenvalues on it."""
    turn = torch.linspace(0, 2 * torch.pi, 200)
    axes.plot(turn.cos(), turn.sin(), color="black", linewidth=0.6)
    for law, values in spectra.items():
        axes.scatter(values.real.flatten(), values.imag.flatten(), s=6, alpha=0.5, color=COLOURS[law], label=law)
        phi = persistent(torch.linalg.eigvals(VariableBinding(**LAWS[law]).transition))
        axes.scatter(phi.real, phi.imag, s=70, facecolors="none", edgecolors=COLOURS[law])
    axes.set(title="Spectrum: networks (dots), laws (circles)", xlabel="real part", ylabel="imaginary part")
    axes.set_aspect("equal")
    axes.legend(frameon=False, fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=len(spectra))


def draw_wave(axes: Axes, wave: Tensor) -> None:
    """Coordinates (time, step * value) of states in the recovered basis, value by value, newest step on top."""
    d = VariableBinding().num_values
    rows = wave.unflatten(1, (-1, d)).permute(2, 1, 0).flip(1).flatten(0, 1)
    limit = float(rows.abs().max())
    axes.imshow(rows.numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
    axes.set(title="Repeat copy: the wave in the recovered basis", xlabel="time in steps")
    steps = range(len(rows) // d, 0, -1)
    axes.set_yticks(range(len(rows)), [f"value {value + 1}, step {step}" for value in range(d) for step in steps])
