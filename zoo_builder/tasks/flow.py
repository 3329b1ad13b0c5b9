"""Tasks that foretell a chaotic flow: trajectories on its attractor, integrated as they are drawn."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor

from weightspace.rollout import Streams, generator
from weightspace.store import InputKind
from zoo_builder.tasks.base import Batch, Split
from zoo_builder.tasks.continuous import Continuous

SIZE = 3
"""Coordinates of a state."""
POINTS, SAMPLED = 256, 64
"""Trajectories that find the attractor, and samples of each that sequences begin near."""
FORGOTTEN, APART = 400, 3
"""Samples before a trajectory is on the attractor, and between its samples that are kept."""
BEGIN = (0.5, 1.5)
"""Coordinates of the box from which these trajectories come, between fixed points of the flows that repel."""
NUDGE = 0.01
"""Standard deviation from the sample that a sequence begins near, as a share of each coordinate, whose sign stays."""
SETTLED = 4
"""Samples over which a nudged state returns to the attractor."""


@dataclass(frozen=True, kw_only=True)
class Flow(Continuous):
    """What will the state of a chaotic flow be, `ahead` samples from now? A subclass gives its equations.

    Inputs are the first `observed` coordinates, sampled at regular times, and the answer at each step is the whole
    state (three numbers) `ahead` samples later; each coordinate goes from about -1 to 1 on the attractor. Trajectories
    are integrated by the classical Runge-Kutta method of order four in float64, each from a point on the attractor
    whose coordinates are changed by about one percent. The score is the share of variance explained.
    """

    num_steps: int = field(default=50, metadata={"least": 2})
    """Length of a sequence."""
    max_ahead: int = field(default=10, metadata={"least": 1})
    """Largest `ahead` that a model may have."""
    ahead: int = field(default=3, metadata={"least": 1})
    """Samples from the input to the state that is asked for, at most `max_ahead`."""
    observed: int = field(default=3, metadata={"least": 1})
    """Coordinates that are shown, at most 3; of fewer the others must be inferred from the past."""

    varying: ClassVar[tuple[str, ...]] = ("ahead",)
    difficulty: ClassVar[tuple[str, int] | None] = ("ahead", 1)
    input_kind: ClassVar[InputKind] = "values"
    input_range: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    splits_differ: ClassVar[bool] = False

    interval: ClassVar[float]
    """Time from one sample to the next."""
    substeps: ClassVar[int]
    """Runge-Kutta steps from one sample to the next."""
    centre: ClassVar[tuple[float, float, float]]
    """Middle of each coordinate's range on the attractor."""
    reach: ClassVar[tuple[float, float, float]]
    """Half of each coordinate's range on the attractor."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, most in (("ahead", self.max_ahead), ("observed", SIZE)):
            if getattr(self, name) > most:
                raise ValueError(f"`{name}` (={getattr(self, name)}) must be at most {most}.")

    @classmethod
    @abstractmethod
    def velocity(cls, state: Tensor) -> Tensor:
        """Time derivative (3, ...) of states (3, ...)."""

    @property
    def input_size(self) -> int:
        return self.observed

    @property
    def output_size(self) -> int:
        return SIZE

    def sample(self, values: Mapping[str, Tensor], streams: Streams, batch_size: int, split: Split) -> Batch:
        ahead = self.whole_value("ahead", values, streams, 1, self.max_ahead)
        points = on_attractor(type(self)).to(streams.device)
        begin = points[:, streams.integers(points.shape[1], batch_size)]
        nudges = 1 + NUDGE * streams.normal(SIZE, batch_size, dtype=torch.float64).movedim(1, 0)
        states = integrated(type(self), begin * nudges, self._last)
        # (3, time, models, batch) to (models, time, batch, 3), with each coordinate from -1 to 1.
        centred = (states - self._column(self.centre, states)) / self._column(self.reach, states)
        scaled = centred.permute(2, 1, 3, 0).float()[:, SETTLED:]
        step = ahead[:, None] + torch.arange(self.num_steps, device=streams.device)
        target = scaled.gather(1, step[:, :, None, None].expand(-1, -1, *scaled.shape[2:]))
        x = scaled[:, : self.num_steps, :, : self.observed].contiguous()
        return Batch(x=x, start=x.new_zeros(len(streams), batch_size, 0), target=target)

    @property
    def _last(self) -> int:
        """Samples after the first."""
        return SETTLED + self.num_steps + self.max_ahead

    @staticmethod
    def _column(numbers: tuple[float, float, float], like: Tensor) -> Tensor:
        """One number for each coordinate, along the first axis."""
        column = torch.tensor(numbers, dtype=torch.float64, device=like.device)
        return column.reshape(-1, *[1] * (like.dim() - 1))


def runge_kutta(flow: type[Flow], state: Tensor, time: float) -> Tensor:
    """States (3, ...) after one step of the classical Runge-Kutta method of order four."""
    first = flow.velocity(state)
    second = flow.velocity(state + first * (time / 2))
    third = flow.velocity(state + second * (time / 2))
    fourth = flow.velocity(state + third * time)
    return state + (first + (second + third) * 2 + fourth) * (time / 6)


def integrated(flow: type[Flow], state: Tensor, samples: int) -> Tensor:
    """States (3, 1 + samples, ...) at regular times, the first of which is `state` (3, ...)."""
    kept = [state]
    for _ in range(samples):
        for _ in range(flow.substeps):
            state = runge_kutta(flow, state, flow.interval / flow.substeps)
        kept.append(state)
    return torch.stack(kept, 1)


@cache
def on_attractor(flow: type[Flow]) -> Tensor:
    """Points (3, point) on the attractor of a flow, float64, the same at every call."""
    draws = torch.rand(SIZE, POINTS, dtype=torch.float64, generator=generator(0, flow.__name__, "attractor"))
    begin = BEGIN[0] + (BEGIN[1] - BEGIN[0]) * draws
    return integrated(flow, begin, FORGOTTEN + APART * SAMPLED)[:, FORGOTTEN + APART :: APART].flatten(1)
