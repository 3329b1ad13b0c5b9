"""A study of seconds, with a gate that passes and, on demand, one that fails."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from zoo_builder.studies import Gate, Measured, Study


@dataclass(frozen=True, kw_only=True)
class Decaying(Study):
    """Planted memories fade.

    The largest eigenvalue of planted networks is far from infinite.
    """

    paper: ClassVar[str] = "Nobody: Memories fade, Journal of Trials 2020"
    gates: ClassVar = (Gate(name="longest memory", comparison="<", threshold=10.0, unit="eigenvalue"),)

    @property
    def recipes(self):
        recipe = {
            "families": [{"class": "Elman", "hidden_size": 2, "input_size": 1, "output_size": 1}],
            "learning": {"class": "Planted"},
            "snapshots": [0],
            "models_per_cohort": 10,
            "shard_size": 5,
        }
        return {"planted": recipe}

    def measure(self, zoos):
        stack = zoos["planted"].stack(range(5))
        (name,) = stack.family.spec.recurrent()
        radii = torch.linalg.eigvals(stack.params[name]).abs().amax(1).tolist()
        return Measured({"longest memory": max(radii)}, {"radii": radii}, [{"cell": "a", "size": 0.12345}])

    def draw(self, measured):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(2, 2))
        figure.subplots().plot(measured.curves["radii"])
        return figure


@dataclass(frozen=True, kw_only=True)
class Growing(Decaying):
    """Planted memories grow without end, which they do not; and a second gate has no number."""

    gates: ClassVar = (
        Gate(name="longest memory", comparison=">", threshold=10.0, unit="eigenvalue"),
        Gate(name="absent", comparison=">", threshold=0.0, unit="nothing"),
    )

    def measure(self, zoos):
        measured = super().measure(zoos)
        return Measured({**measured.values, "absent": float("nan")}, measured.curves)
