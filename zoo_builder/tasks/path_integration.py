"""The position in a box, integrated from displacements."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from weightspace.rollout import Streams
from zoo_builder.tasks.base import Task
from zoo_builder.tasks.navigation import STEP, TURN, Navigation

HALF = 1.1
"""Half the side of the box in metres, whose centre is 0."""
NEAR = 0.03
"""Distance to a wall below which a walk gives way."""
SLOWED = 0.25
"""Share of its speed that is left to a walk which gives way."""
SPEED = 0.26 * math.pi
"""Scale of the Rayleigh distribution of speeds, metres per second."""
PULL = 0.05
"""Share of the way to the centre that a biased walk drifts at each step."""
WIDTH = 0.2
"""Width of a cell's place field in metres."""


@dataclass(frozen=True, kw_only=True)
class PathIntegration(Navigation):
    """Where is the animal? Displacements are shown, the first position by the activities of place cells.

    A walk in a box of 2.2 m: at each step of 0.02 s the heading turns by N(0, 11.52^2 rad/s) and the speed is drawn
    from a Rayleigh distribution of scale 0.26 pi m/s. Less than 3 cm from a wall to which it heads it turns along the
    wall, at a quarter of the speed. A `biased` walk drifts 5% of the way to the centre at each step, and the shown
    displacement has the drift. Cell i answers by exp(-|s - c_i|^2 / (2 0.2^2)); the centres c_i are uniform draws, the
    same in all models. Krishna et al. (Sufficient conditions for offline reactivation in recurrent neural networks,
    ICLR 2024), whose code divides the activities by their sum and decodes by the three most active cells; speeds are
    those of the code, the paper's table says 0.2 m/s. The walk is that of Erdem and Hasselmo (European Journal of
    Neuroscience 2012).
    """

    biased: bool = False
    """Whether walks drift to the centre of the box."""

    input_range: ClassVar[tuple[float, float]] = (-0.06, 0.06)

    @property
    def input_size(self) -> int:
        return 2

    def walk(self, streams: Streams, batch_size: int) -> tuple[Tensor, Tensor]:
        start = HALF * (2 * streams.uniform(batch_size, 2) - 1)
        heading = 2 * math.pi * streams.uniform(batch_size)
        turns = TURN * STEP * streams.normal(self.num_steps, batch_size)
        speeds = SPEED * (-2 * torch.log1p(-streams.uniform(self.num_steps, batch_size))).sqrt()
        places, moves = [start], []
        for t in range(self.num_steps):
            heading, slowed = away_from_walls(places[-1], heading + turns[:, t])
            length = STEP * speeds[:, t] * torch.where(slowed, SLOWED, 1.0)
            move = length[..., None] * torch.stack([heading.cos(), heading.sin()], -1)
            move = move - PULL * places[-1] if self.biased else move
            # A step that would leave the box ends at its wall.
            places.append((places[-1] + move).clamp(-HALF, HALF))
            moves.append(places[-1] - places[-2])
        return torch.stack(places, 1), torch.stack(moves, 1)

    @property
    def centres(self) -> Tensor:
        """Centres (cell, coordinate) of the place fields, float32."""
        return HALF * (2 * Streams(0, ["centres"], type(self).__name__).uniform(self.cells, 2)[0] - 1)

    def activities(self, places: Tensor) -> Tensor:
        distance = (places[..., None, :] - self.centres.to(places.device, places.dtype)).square_().sum(-1)
        return distance.div_(-2 * WIDTH**2).exp_()

    def decoded(self, activities: Tensor) -> Tensor:
        """Positions (..., 2): means of the centres of the three most active cells."""
        return self.centres.to(activities.device, activities.dtype)[activities.topk(3, -1).indices].mean(-2)

    @classmethod
    def examples(cls) -> Sequence[Task]:
        return [cls(cells=6, num_steps=5), cls(cells=5, num_steps=50, biased=True)]


def away_from_walls(places: Tensor, heading: Tensor) -> tuple[Tensor, Tensor]:
    """Headings (...) at places (..., 2), turned along a near wall that lies ahead, and where (...) that was so.

    The nearer of the two walls ahead counts, and the heading turns by the smaller angle.
    """
    ahead = torch.stack([heading.cos(), heading.sin()], -1)
    distance = torch.where(ahead > 0, HALF - places, HALF + places)
    nearest, axis = distance.min(-1)
    along = ahead.gather(-1, 1 - axis[..., None])[..., 0]
    forward = torch.where(along < 0, -1.0, 1.0)
    parallel = torch.where(axis == 0, math.pi / 2 * forward, math.pi / 2 * (1 - forward))
    gives_way = nearest < NEAR
    return torch.where(gives_way, parallel, heading), gives_way
