"""Actor-critic learning with exact and with truncated gradients, in a maze that is longer than a segment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from zoo_builder.studies.base import Gate, Measured, Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from weightspace.store import Zoo

GRADIENTS = {"truncated": "truncated gradients", "rtrl": "RTRL"}
COLOURS = {"truncated": "#c1440e", "rtrl": "#1f5fa8"}
RESAMPLES = 10_000
"""Resamples of networks behind an interval."""
GAIN = "lower end of the 95% interval of the mean return with RTRL minus that with truncated gradients"
EXACT = "mean return with RTRL"
CUT = "mean return with truncated gradients"


@dataclass(frozen=True, kw_only=True)
class ActorCriticMemory(Study):
    """Actor-critic learning with RTRL finds the way out of a maze that the same with truncated gradients does not.

    The paper trains agents in games by actor-critic learning after segments of 10 to 100 steps; in tasks of memory
    those with RTRL earn more, most of all with short segments. Here networks of element-wise LSTM cells walk through a
    T-maze whose sign at the entrance is further from the junction than a segment is long. Each network learns twice,
    from the same first params and by the same settings, random numbers and number of steps, once with sensitivities
    carried from segment to segment and once without. The right turn earns 1; who walks straight to the junction and
    guesses earns 0.45. Returns are those of the most probable actions, and the interval is that of the mean difference
    between the two trainings of a network, by bootstrap over networks. Size, learning rate and length of training were
    chosen in a pilot with 8 other networks; there, truncated gradients with segments of 30 steps, which whole walks fit
    into, taught 7 of them the way. With seed 1 in place of 0 all gates pass, too.
    """

    hidden_size: int = 16
    """Units of a network."""
    corridor_length: int = 10
    """Steps from the sign to the junction."""
    segment: int = 5
    """Steps between two updates."""
    num_updates: int = 1000
    """Updates of training."""
    models: int = 32
    """Networks, each trained both ways."""

    paper: ClassVar[str] = (
        "Irie, Gopalakrishnan, Schmidhuber: Exploring the promise and limits of real-time recurrent learning, ICLR "
        "2024, arXiv 2305.19044; task: Bakker: Reinforcement learning with long short-term memory, NIPS 2001"
    )
    gates: ClassVar[tuple[Gate, ...]] = (
        Gate(name=GAIN, comparison=">", threshold=0.0, unit="of the reward"),
        Gate(name=EXACT, comparison=">", threshold=0.9, unit="of the reward"),
        Gate(name=CUT, comparison="<", threshold=0.6, unit="of the reward"),
    )

    @property
    def recipes(self) -> Mapping[str, Mapping[str, Any]]:
        return {gradient: self._recipe(gradient) for gradient in GRADIENTS}

    def _recipe(self, gradient: str) -> dict[str, Any]:
        """Recipe of one of the two zoos: their models have the same names, and so the same random streams."""
        settings = {"num_updates": self.num_updates, "segment": self.segment, "learning_rate": 1e-2}
        return {
            "title": f"A maze learned by actor and critic with {GRADIENTS[gradient]}",
            "families": [{"class": "ELSTM", "hidden_size": self.hidden_size, "forget_bias": 1.5}],
            "tasks": [{"class": "TMaze", "corridor_length": self.corridor_length}],
            "learning": {"class": "ActorCritic", "gradient": gradient, **settings},
            "snapshots": list(range(0, self.num_updates + 1, max(self.num_updates // 10, 1))),
            "labels": ["EpisodeReturn", "Performance"],
            "models_per_cohort": self.models,
            "shard_size": self.models,
        }

    def measure(self, zoos: Mapping[str, Zoo]) -> Measured:
        ids = [zoos[gradient].table["model_id"].to_pylist() for gradient in GRADIENTS]
        assert ids[0] == ids[1]
        steps = sorted(set(zoos["rtrl"].table["step"].to_pylist()))
        returns = {gradient: by_model(zoos[gradient], "episode_return", len(steps)) for gradient in GRADIENTS}
        final = {gradient: curves[:, -1] for gradient, curves in returns.items()}
        gain, low, high = interval(final["rtrl"] - final["truncated"])
        values = {GAIN: low, EXACT: float(final["rtrl"].mean()), CUT: float(final["truncated"].mean())}
        turns = {gradient: by_model(zoos[gradient], "score", len(steps))[:, -1] for gradient in GRADIENTS}
        reported = [
            {
                "gradients": GRADIENTS[gradient],
                "mean return": float(final[gradient].mean()),
                "right turns": float(turns[gradient].mean()),
                "networks with a return above 0.9": int((final[gradient] > 0.9).sum()),
            }
            for gradient in GRADIENTS
        ]
        return Measured(values, {"step": steps, "gain": (gain, low, high), **returns}, reported)

    def draw(self, measured: Measured) -> Figure:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(11, 4.5), layout="constrained")
        learning, pairs = figure.subplots(1, 2, width_ratios=(2, 1))
        steps, curves = measured.curves["step"], measured.curves
        for gradient, name in GRADIENTS.items():
            learning.plot(steps, curves[gradient].T, color=COLOURS[gradient], alpha=0.2, linewidth=0.8)
            learning.plot(steps, curves[gradient].mean(0), color=COLOURS[gradient], linewidth=2.5, label=name)
        learning.set(title="Learning", xlabel="updates", ylabel="return", ylim=(-1, 1.05))
        ends = torch.stack([curves[gradient][:, -1] for gradient in GRADIENTS])
        pairs.plot(list(GRADIENTS.values()), ends, color="gray", alpha=0.4, marker="o", markersize=4)
        gain, low, high = measured.curves["gain"]
        pairs.set(title=f"Each network, both ways:\ngain {gain:.2f} [{low:.2f}, {high:.2f}]", xlim=(-0.3, 1.3))
        for axes in (learning, pairs):
            axes.axhline(0.45, color="gray", linestyle=":", label="guessing at the junction")
        learning.legend(frameon=False, fontsize="small", loc="lower right")
        figure.suptitle(f"A sign {self.corridor_length} steps before the junction, segments of {self.segment} steps")
        return figure


def by_model(zoo: Zoo, column: str, snapshots: int) -> Tensor:
    """A column of the table as (models, snapshots), float64, NaN for null."""
    values = [torch.nan if value is None else value for value in zoo.table[column].to_pylist()]
    return torch.tensor(values, dtype=torch.float64).reshape(-1, snapshots)


def interval(differences: Tensor) -> tuple[float, float, float]:
    """Mean of differences (models,) and the ends of its 95% interval, by bootstrap over models."""
    count = len(differences)
    drawn = torch.randint(count, (RESAMPLES, count), generator=torch.Generator().manual_seed(0))
    low, high = differences[drawn].mean(1).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return float(differences.mean()), low, high
