"""What rank and sparsity of the recurrent matrix do to its spectrum, to learning, and to survival in a closed loop."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise, product
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from weightspace.families.low_rank_sparse import INITIAL
from weightspace.rows import rows as weight_rows
from zoo_builder.labels.closed_loop import DISTURBANCES
from zoo_builder.labels.spectra import spectral_radius
from zoo_builder.studies.base import Gate, Measured, Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from weightspace.store import Stack, Zoo

INITIAL_RANKS, INITIAL_SPARSITIES = (8, 16, 32, 64), (0.0, 0.2, 0.5, 0.8)
RANKS, SPARSITIES = (2, 8, 32), (0.0, 0.5, 0.8)
"""Of the networks that learn."""
CELLS = ("Elman", "GRU", "CfC")
DENSE = "Elman, dense"
"""Name of the networks whose recurrent matrix is not factored."""
LINES = {2: ":", 8: "--", 32: "-"}
COLOURS = {"Elman": "#c1440e", "GRU": "#2e8b57", "CfC": "#1f5fa8", "glorot": "#c1440e", "orthogonal": "#1f5fa8"}

LAW = "largest relative error of the predicted spectral radius, mean over 20 networks, at any rank and sparsity"
RANK = "least growth of the mean spectral radius from one rank to the next, as a ratio"
SPARSITY = "least fall of the mean spectral radius from one sparsity to the next, as a ratio"
NORM = "trained: least fall of the mean norm of W from one sparsity to the next, any cell and rank"
SURVIVAL = "undisturbed: mean survival of CfC at its worst rank and sparsity minus that of the dense Elman network"

Cell = tuple[str, int, float]
"""Name of the cell, rank and sparsity."""


@dataclass(frozen=True, kw_only=True)
class LowRankConnectivity(Study):
    """Rank r and sparsity s of the recurrent matrix set its spectral radius and norm; CfC survives with any of them.

    W(r, s) = (W_1 W_2) * M. Before training the spectral radius follows sqrt((1 - s) sum_i<=r sigma_i^2 / h), sigma_i
    the singular values before truncation, here for two initialisations at h = 64; at ranks below h / 8 the largest
    eigenvalue of so few exceeds the law. Then Elman, GRU and CfC networks of 32 units with such matrices, and dense
    Elman networks, imitate an expert on a cart-pole and act themselves: undisturbed, with noise on their inputs, and
    pushed. Norms of trained W fall with s; CfC survives at least as long as the dense Elman network. Undisturbed, all
    networks survive to the end, also where demonstrations are without pushes: this gate is met by a tie, and would only
    show a CfC that learns worse. How survival under disturbances depends on (r, s) is reported and not judged: one toy
    task is no verdict on the paper. Second-hand: the paper's text was not at hand, only its abstract, reviews and
    summaries; the law was derived and checked here.
    """

    hidden_size: int = 32
    """Units of a network that learns."""
    num_updates: int = 700
    """Updates of training."""
    num_steps: int = 60
    """Steps of a demonstration."""
    horizon: int = 200
    """Steps for which a network that acts itself is watched."""
    models: int = 6
    """Networks of each kind that learn."""
    initial_size: int = 64
    """Units of a network whose initial spectrum is measured."""
    initial_models: int = 20
    """Networks of each kind whose initial spectrum is measured."""

    paper: ClassVar[str] = (
        "Tumma, Lechner, Loo, Hasani, Rus: Leveraging low-rank and sparse recurrent connectivity for robust "
        "closed-loop control, ICLR 2024, arXiv 2310.03915"
    )
    gates: ClassVar[tuple[Gate, ...]] = (
        Gate(name=LAW, comparison="<", threshold=0.15, unit="of the prediction"),
        Gate(name=RANK, comparison=">", threshold=1.0, unit="times"),
        Gate(name=SPARSITY, comparison=">", threshold=1.0, unit="times"),
        Gate(name=NORM, comparison=">", threshold=0.0, unit="(largest singular value)"),
        Gate(name=SURVIVAL, comparison=">=", threshold=0.0, unit="of all steps"),
    )

    @property
    def recipes(self) -> Mapping[str, Mapping[str, Any]]:
        initial = [
            self._kind("Elman", r, s, self.initial_size) | {"initial": name, "input_size": 1, "output_size": 1}
            for name, r, s in product(INITIAL, INITIAL_RANKS, INITIAL_SPARSITIES)
        ]
        cells = [self._kind(cell, r, s, self.hidden_size) for cell, r, s in product(CELLS, RANKS, SPARSITIES)]
        # All are read alike: nothing is learned about them.
        shared = {"title": "Low-rank and sparse recurrent networks", "splits": {"test": 0, "val": 0}}
        learning = {"class": "BPTT", "num_updates": self.num_updates, "batch_size": 32, "learning_rate": 3e-3}
        return {
            "initial": {
                **shared,
                "families": initial,
                "learning": {"class": "Untrained"},
                "snapshots": [0],
                "models_per_cohort": self.initial_models,
                "shard_size": self.initial_models,
            },
            "imitation": {
                **shared,
                "families": [*cells, {"class": "Elman", "hidden_size": self.hidden_size}],
                "tasks": [{"class": "CartPole", "num_steps": self.num_steps, "horizon": self.horizon}],
                "learning": learning,
                "snapshots": [self.num_updates],
                "models_per_cohort": self.models,
                "shard_size": self.models,
                "labels": ["ClosedLoop"],
            },
        }

    def _kind(self, cell: str, rank: int, sparsity: float, size: int) -> dict[str, Any]:
        return {"class": "LowRankSparse", "cell": cell, "hidden_size": size, "rank": rank, "sparsity": sparsity}

    def measure(self, zoos: Mapping[str, Zoo]) -> Measured:
        radius, predicted = radii_of(zoos["initial"])
        norms, survival = norms_of(zoos["imitation"]), survival_of(zoos["imitation"])
        by_rank = [
            radius[name, high, s] / radius[name, low, s]
            for name, s, (low, high) in product(INITIAL, INITIAL_SPARSITIES, pairwise(INITIAL_RANKS))
        ]
        by_sparsity = [
            radius[name, r, less] / radius[name, r, more]
            for name, r, (less, more) in product(INITIAL, INITIAL_RANKS, pairwise(INITIAL_SPARSITIES))
        ]
        falls = [
            float(norms[cell, r, less].mean() - norms[cell, r, more].mean())
            for cell, r, (less, more) in product(CELLS, RANKS, pairwise(SPARSITIES))
        ]
        alone = {kind: float(shares["survival"].mean()) for kind, shares in survival.items()}
        worst = min(alone["CfC", rank, sparsity] for rank, sparsity in product(RANKS, SPARSITIES))
        values = {
            LAW: max(abs(radius[kind] / predicted[kind] - 1) for kind in radius),
            RANK: min(by_rank),
            SPARSITY: min(by_sparsity),
            NORM: min(falls),
            SURVIVAL: worst - alone[DENSE, self.hidden_size, 0.0],
        }
        curves = {"radius": radius, "predicted": predicted, "norms": norms, "survival": survival}
        return Measured(values, curves, reported(norms, survival))

    def draw(self, measured: Measured) -> Figure:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(12, 8), layout="constrained")
        grid = figure.add_gridspec(2, 1)
        upper, lower = figure.add_subfigure(grid[0]), figure.add_subfigure(grid[1])
        law, norm = upper.subplots(1, 2)
        curves = measured.curves
        draw_law(law, curves["radius"], curves["predicted"])
        for cell, rank in product(CELLS, RANKS):
            means = [float(curves["norms"][cell, rank, sparsity].mean()) for sparsity in SPARSITIES]
            look = {"color": COLOURS[cell], "linestyle": LINES[rank], "label": f"{cell}, r = {rank}"}
            norm.plot(SPARSITIES, means, marker="o", **look)
        norm.set(title="Norm of W after training", xlabel="sparsity s", ylabel="largest singular value of W(r, s)")
        norm.set_yscale("log")
        norm.legend(frameon=False, fontsize="small", ncols=len(CELLS), loc="center")
        for axes, cell in zip(lower.subplots(1, len(CELLS)), CELLS, strict=True):
            draw_survival(axes, cell, curves["survival"])
        dense = in_percent(curves["survival"][DENSE, self.hidden_size, 0.0])
        lower.suptitle(f"Survival in %: undisturbed / noisy inputs / pushed; dense Elman network {dense}")
        return figure


def kinds_of(zoo: Zoo) -> dict[Cell, list[int]]:
    """Rows of the last snapshots by cell, or initialisation where nothing is learned, rank and sparsity."""
    steps, configs = zoo.table["step"].to_pylist(), zoo.table["family_config"].to_pylist()
    found: dict[Cell, list[int]] = {}
    learned = max(steps) > 0
    for row, (step, text) in enumerate(zip(steps, configs, strict=True)):
        if step == max(steps):
            config = json.loads(text)
            name = config.get("cell", DENSE) if learned else config["initial"]
            key = name, config.get("rank", config["hidden_size"]), config.get("sparsity", 0.0)
            found.setdefault(key, []).append(row)
    return found


def radii_of(zoo: Zoo) -> tuple[dict[Cell, float], dict[Cell, float]]:
    """Mean spectral radius of the networks of each kind, and its prediction from the matrices before masking."""
    radius, predicted = {}, {}
    for kind, rows in kinds_of(zoo).items():
        stack = zoo.stack(rows)
        (weight,) = recurrent(stack)
        (name,) = stack.family.effective_spec.recurrent()
        whole = (stack.params[f"{name}.to"] @ stack.params[f"{name}.from"]).double()
        size = weight.shape[-1]
        radius[kind] = float(spectral_radius(weight).mean())
        predicted[kind] = float(((1 - kind[2]) * whole.square().sum((1, 2)) / size).sqrt().mean())
    return radius, predicted


def recurrent(stack: Stack) -> list[Tensor]:
    """W(r, s) (models, to, from), float64: of a gated cell one for each gate, without gates that stay dense."""
    spec, params = stack.effective
    names = [name for name in spec.recurrent() if spec.tensors[name].mask] or spec.recurrent()
    return [row.value.double() for row in weight_rows(spec, params, names)]


def norms_of(zoo: Zoo) -> dict[Cell, Tensor]:
    """Largest singular value of W(r, s) (model,) of the networks of each kind, the mean over gates."""
    return {
        kind: torch.stack([torch.linalg.matrix_norm(matrix, 2) for matrix in recurrent(zoo.stack(rows))]).mean(0)
        for kind, rows in kinds_of(zoo).items()
    }


def survival_of(zoo: Zoo) -> dict[Cell, dict[str, Tensor]]:
    """Survival (model,) of the networks of each kind under each disturbance."""
    columns = {name: zoo.table[name].to_pylist() for name in DISTURBANCES}
    return {
        kind: {name: torch.tensor([column[row] for row in rows]) for name, column in columns.items()}
        for kind, rows in kinds_of(zoo).items()
    }


def reported(norms: Mapping[Cell, Tensor], survival: Mapping[Cell, Mapping[str, Tensor]]) -> list[dict[str, Any]]:
    """The table of what learned: norm of W and survival under each disturbance, means over networks."""
    rows = []
    for (cell, rank, sparsity), shares in sorted(survival.items()):
        means = {name: float(share.mean()) for name, share in shares.items()}
        norm = float(norms[cell, rank, sparsity].mean())
        rows.append({"cell": cell, "rank": rank, "sparsity": sparsity, "norm of W": norm, **means})
    return rows


def draw_law(axes: Axes, radius: Mapping[Cell, float], predicted: Mapping[Cell, float]) -> None:
    """Measured radii against predicted ones, by initialisation, with the band of the gate."""
    line = torch.linspace(0, max(radius.values()), 2)
    axes.plot(line, line, color="gray", linewidth=0.8)
    axes.fill_between(line, 0.85 * line, 1.15 * line, color="gray", alpha=0.15, linewidth=0)
    for name in INITIAL:
        points = [(predicted[kind], radius[kind]) for kind in radius if kind[0] == name]
        axes.scatter(*zip(*points, strict=True), color=COLOURS[name], label=name)
    axes.set(title="Before training", xlabel="predicted spectral radius of W(r, s)", ylabel="mean over 20 networks")
    axes.legend(frameon=False, fontsize="small")


def draw_survival(axes: Axes, cell: str, survival: Mapping[Cell, Mapping[str, Tensor]]) -> None:
    """A square for each rank and sparsity, as dark as the least survival is high, with all three written in it."""
    least = [[min(float(share.mean()) for share in survival[cell, r, s].values()) for s in SPARSITIES] for r in RANKS]
    axes.imshow(least, cmap="Blues", vmin=0, vmax=1.5, aspect="auto")
    for (row, rank), (column, sparsity) in product(enumerate(RANKS), enumerate(SPARSITIES)):
        axes.text(column, row, in_percent(survival[cell, rank, sparsity]), ha="center", va="center", fontsize="small")
    axes.set_xticks(range(len(SPARSITIES)), [f"{sparsity:g}" for sparsity in SPARSITIES])
    axes.set_yticks(range(len(RANKS)), [str(rank) for rank in RANKS])
    axes.set(title=cell, xlabel="sparsity s", ylabel="rank r")


def in_percent(shares: Mapping[str, Tensor]) -> str:
    """Means of survival under each disturbance."""
    return " / ".join(f"{100 * float(share.mean()):.0f}" for share in shares.values())
