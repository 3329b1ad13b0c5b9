"""Time scales of networks that learn N-parity under two curricula."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from weightspace.rollout import Method, Streams
from weightspace.rollout.criterion import NOT_ASKED
from weightspace.rollout.forward import last_outputs
from zoo_builder.executor import ROLLOUTS
from zoo_builder.labels.spectra import spectral_radius
from zoo_builder.studies.base import Gate, Measured, Study
from zoo_builder.studies.robustness import SIZES, robustness
from zoo_builder.tasks.heads import CLASSES
from zoo_builder.tasks.n_parity import NParity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from weightspace.spec import Params
    from weightspace.store import Stack, Zoo

ZOO = "parity"
CURRICULA = {"single": "one head: N alone", "many": "a head for each N: all N so far"}
"""The two curricula, as the task's field `heads` names them, and as the figure does."""
COLOURS = {"single": "#c1440e", "many": "#1f5fa8"}
SEQUENCES = 2048
"""Sequences on which the accuracy on every N is measured."""
SEQUENCES_DISTURBED = 512
"""Sequences on which the accuracy of disturbed networks is measured, each time."""
ROWS_TOGETHER = 256
"""Networks whose eigenvalues are computed at once."""
COLUMNS = {"step": "step", "level": "curriculum_level", "tau_net": "network_timescale_mean"}
"""Curve -> the column of the zoo's table that has it."""

RATIO = "least N reached with many heads over largest N reached with one head"
TAU = "mean time constant tau with one head minus that with many heads"
RADIUS = "mean spectral radius of W_hh with one head minus that with many heads"
FORGOTTEN = "largest accuracy of a network with one head on all from N - 2 down together"
KEPT = "least accuracy of a network with many heads on any from N - 1 down"


class FairParity(NParity):
    """N-parity of fair coins: then the answers for different N are independent, and guessing is right half the time."""

    def draw_bits(self, streams: Streams, batch_size: int) -> Tensor:
        return (streams.uniform(self.num_steps, batch_size) < 0.5).to(torch.int64)


@dataclass(frozen=True, kw_only=True)
class Timescales(Study):
    """Networks that must keep solving all smaller N reach larger N on N-parity, with shorter time constants.

    Leaky networks with trainable time constants learn N-parity under two curricula: N = 2, 3, ... one after another
    through one head, or all N so far, each through its own head. With many heads they climb faster, the time constants
    tau shrink towards 1 and the memory is made by the recurrent connections; with one head they forget earlier N. That
    tau grows with one head shows in the paper from N = 20 to 30 on, beyond the reach of this small study: below, tau
    falls under both curricula. The thresholds are those of a pilot with 4 networks of each curriculum. Forgetting is
    judged by a network's accuracy on all earlier N together: on a single one of them the best of 32 networks has 0.61.
    """

    hidden_size: int = 64
    """Units of a network."""
    num_updates: int = 2000
    """Updates of training."""
    batch_size: int = 128
    """Sequences of an update."""
    models: int = 32
    """Networks of each curriculum."""
    largest_single: int = 12
    """Largest N with one head: beyond what it reaches in so many updates."""
    largest_many: int = 20
    """Largest N with many heads."""
    exam_every: int = 100
    """Updates between two exams, of which each passed one leads to the next N."""

    paper: ClassVar[str] = (
        "Khajehabdollahi, Zeraati, Giannakakis, Schaefer, Martius, Levina: Emergent mechanisms for long timescales "
        "depend on training curriculum and affect performance in memory tasks, ICLR 2024, arXiv 2309.12927"
    )
    gates: ClassVar[tuple[Gate, ...]] = (
        Gate(name=RATIO, comparison=">=", threshold=1.5, unit="times"),
        Gate(name=TAU, comparison=">", threshold=0.1, unit="steps"),
        Gate(name=RADIUS, comparison=">", threshold=0.0, unit="(absolute eigenvalue)"),
        Gate(name=FORGOTTEN, comparison="<", threshold=0.6, unit="of answers"),
        Gate(name=KEPT, comparison=">", threshold=0.95, unit="of answers"),
    )

    @property
    def recipes(self) -> Mapping[str, Mapping[str, Any]]:
        largest = {"single": self.largest_single, "many": self.largest_many}
        exams = {"every": self.exam_every, "sequences": 512, "threshold": 0.98, "curriculum": True}
        steps = max(self.num_updates // 10, 1)
        return {
            ZOO: {
                "title": "Timescales",
                "families": [{"class": "Leaky", "hidden_size": self.hidden_size}],
                "tasks": [{"class": "NParity", "max_n": n, "n": n, "heads": heads} for heads, n in largest.items()],
                "learning": {
                    "class": "BPTT",
                    "num_updates": self.num_updates,
                    "batch_size": self.batch_size,
                    "learning_rate": 3e-3,
                    "clip": 2.0,
                    "exams": exams,
                },
                "snapshots": list(range(0, self.num_updates + 1, steps)),
                "labels": ["NetworkTimescale"],
                "models_per_cohort": self.models,
                "shard_size": self.models,
            }
        }

    def measure(self, zoos: Mapping[str, Zoo]) -> Measured:
        curves = {heads: curves_of(zoos[ZOO], heads) for heads in CURRICULA}
        single, many = curves["single"], curves["many"]
        values = {
            RATIO: many["level"][:, -1].min() / single["level"][:, -1].max(),
            TAU: single["tau"][:, -1].mean() - many["tau"][:, -1].mean(),
            RADIUS: single["radius"][:, -1].mean() - many["radius"][:, -1].mean(),
            FORGOTTEN: largest(single["accuracy"][:, 2:].nanmean(1)),
            KEPT: -largest(-many["accuracy"][:, 1:]),
        }
        return Measured({name: float(value) for name, value in values.items()}, curves)

    def draw(self, measured: Measured) -> Figure:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(11, 11.5), layout="constrained")
        (climb, tau), (net, kept), (noisy, removed) = figure.subplots(3, 2)
        for heads, curves in measured.curves.items():
            look = {"color": COLOURS[heads], "label": CURRICULA[heads]}
            _lines(climb, curves["step"][0], curves["level"], look)
            _by_level(tau, curves["level"], curves["tau"], look)
            _by_level(net, curves["level"], curves["tau_net"], look)
            _lines(kept, -torch.arange(curves["accuracy"].shape[1]), curves["accuracy"], look)
            _disturbed(noisy, removed, curves, look)
        climb.set(title="How far the curriculum is climbed", xlabel="updates", ylabel="N that is learned")
        tau.set(title="Time constants of the neurons", xlabel="N that is learned", ylabel="mean tau (steps)")
        net.set(title="Time scales of the activity", xlabel="N that is learned", ylabel="mean tau_net (steps)")
        kept.set(title="Accuracy at the end", xlabel="N minus the N that is learned", ylabel="accuracy on N-parity")
        asked = {"ylabel": "share of the accuracy above guessing that is kept", "ylim": (-0.05, 1.05)}
        noisy.set(title="Perturbed after training", xlabel="size of the perturbation over that of the tensor", **asked)
        noisy.set_xscale("log")
        removed.set(title="Without one neuron", xlabel="rank of the neuron's tau", **asked)
        kept.axhline(0.5, color="gray", linestyle=":", label="guessing")
        for axes in (climb, tau, net, kept, noisy, removed):
            axes.legend(frameon=False, fontsize="small")
        figure.suptitle(f"Timescales: N-parity under two curricula, {self.hidden_size} leaky neurons")
        return figure


def curves_of(zoo: Zoo, heads: str) -> dict[str, Tensor]:
    """Measurements of the networks of one curriculum at each snapshot, (models, snapshots), and final accuracies.

    `level` is the N that is learned, `tau` and `tau_net` are means over neurons (steps), tau_net by the label
    `NetworkTimescale`; `radius` is that of W_hh;
    `accuracy` (models, distance) is of the last snapshot, on N = level, level - 1, ..., NaN below N = 2. Beside these
    stand the curves of `robustness`, of the last snapshot, too, on N = level.
    """
    task = [json.loads(text)["heads"] for text in zoo.table["task_config"].to_pylist()]
    rows = [row for row, part in enumerate(task) if part == heads]
    stacks = list(zoo.stacks(rows, ROWS_TOGETHER))
    columns = {name: _column(zoo, column, rows) for name, column in COLUMNS.items()}
    measured = [_of_stack(stack) for stack in stacks]
    joined = {name: torch.cat([part[name] for part in measured]) for name in measured[0]}
    shape = (-1, len(set(columns["step"].tolist())))
    curves = {name: values.reshape(shape) for name, values in (columns | joined).items()}
    last = zoo.stack(torch.tensor(rows).reshape(shape)[:, -1].tolist())
    level = curves["level"][:, -1]
    curves["accuracy"] = from_level_down(accuracies(zoo, last, level), level)
    streams = Streams(zoo.manifest["recipe"]["seed"], _ids(zoo, last), "timescales/robustness")

    def ask(params: Params) -> Tensor:
        accuracy = accuracies(zoo, replace(last, params=params), level, SEQUENCES_DISTURBED)
        return from_level_down(accuracy, level)[:, 0]

    return curves | robustness(last.family, last.params, ask, streams)


def _of_stack(stack: Stack) -> dict[str, Tensor]:
    _, used = stack.effective
    return {"tau": used["tau"].double().mean(1), "radius": spectral_radius(used["weight_hh"].double())}


def accuracies(zoo: Zoo, stack: Stack, level: Tensor, sequences: int = SEQUENCES) -> Tensor:
    """Share of right answers (models, N) of networks at their levels (models,) on fair bits; NaN for N above these.

    With one head it is asked for every N, with many each for its own.
    """
    config = json.loads(zoo.table["task_config"][int(stack.rows[0])].as_py())
    asked = FairParity(max_n=config["max_n"], n=config["max_n"], heads="many")
    streams = Streams(zoo.manifest["recipe"]["seed"], _ids(zoo, stack), "timescales/accuracy")
    batch = asked.sample({"n": level}, streams, sequences, "test")
    outputs = last_outputs(stack.family, stack.params, batch.x, batch.start, {}, 1, method=_method(zoo))
    answers = outputs[:, 0].unflatten(-1, (-1, CLASSES)).argmax(-1)
    target = batch.target[:, 0]
    right = (answers == target).double().mean(1)
    return torch.where((target != NOT_ASKED).any(1), right, torch.nan)


def from_level_down(accuracy: Tensor, level: Tensor) -> Tensor:
    """Accuracies (models, N), N = 2, 3, ..., as (models, distance), N = level, level - 1, ...; NaN below N = 2."""
    column = level.long()[:, None] - 2 - torch.arange(accuracy.shape[1])
    return torch.where(column >= 0, accuracy.gather(1, column.clamp(min=0)), torch.nan)


def largest(values: Tensor) -> Tensor:
    """The largest of the values that are numbers, NaN without any."""
    numbers = values[~values.isnan()]
    return numbers.max() if len(numbers) else torch.tensor(torch.nan)


def _column(zoo: Zoo, name: str, rows: list[int]) -> Tensor:
    return torch.tensor(zoo.table[name].to_pylist(), dtype=torch.float64)[rows]


def _ids(zoo: Zoo, stack: Stack) -> list[str]:
    ids: list[str] = zoo.table["model_id"].take(stack.rows.tolist()).to_pylist()
    return ids


def _method(zoo: Zoo) -> Method:
    return ROLLOUTS[zoo.manifest["executor"]["method"]]


def _lines(axes: Axes, x: Tensor, curves: Tensor, look: Mapping[str, Any]) -> None:
    """A thin line for each network (networks, x) and a thick one for their mean, over the x that any network has."""
    axes.plot(x, curves.T, color=look["color"], alpha=0.15, linewidth=0.8)
    axes.plot(x, curves.nanmean(0), linewidth=2.5, **look)


def _by_level(axes: Axes, level: Tensor, values: Tensor, look: Mapping[str, Any]) -> None:
    """A dot for each network at each snapshot, and a line through the means at each level."""
    axes.scatter(level.flatten(), values.flatten(), color=look["color"], alpha=0.12, s=10, linewidths=0)
    levels = level.unique()
    axes.plot(levels, [values[level == number].nanmean() for number in levels], linewidth=2.5, marker="o", **look)


def _disturbed(noisy: Axes, removed: Axes, curves: Mapping[str, Tensor], look: Mapping[str, Any]) -> None:
    """Kept accuracies with perturbed tensors by the size of the perturbation, and without single neurons by tau."""
    undisturbed = curves["accuracy"][:, 0].nanmean() - 0.5
    for name, line in (("weight_hh", "-"), ("tau", "--")):
        label = f"{look['label']}, {'W_hh' if name == 'weight_hh' else name}"
        share = (curves[f"perturbed_{name}"].nanmean(0) - 0.5) / undisturbed
        noisy.plot(SIZES, share, line, color=look["color"], marker="o", label=label)
    for name, line in (("shortest", "-"), ("longest", "--")):
        label = f"{look['label']}, {name} tau first"
        share = (curves[f"without_{name}"].nanmean(0) - 0.5) / undisturbed
        removed.plot(share, line, color=look["color"], marker="o", label=label)
