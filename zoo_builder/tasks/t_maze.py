"""A maze whose way out is shown at the entrance alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from weightspace.rollout import Streams
from weightspace.store import InputKind
from zoo_builder.tasks.base import Batch
from zoo_builder.tasks.environment import Environment, Outcome, World

FORWARD, LEFT, RIGHT = 0, 1, 2
"""Actions."""
ARRIVED, WRONG, BUMPED = 1.0, -0.1, -0.1
"""Rewards of the right turn, of the wrong one, and of walking into a wall."""
PATIENCE = 3
"""Length of the longest episode, in episodes of the expert."""


@dataclass(frozen=True, kw_only=True)
class TMaze(Environment):
    """Which way at the end of the corridor? A sign at its entrance says it, and has to be remembered on the way.

    The T-maze of Bakker (Reinforcement learning with long short-term memory, NIPS 2001; details read second-hand).
    The model sees 0 1 1 at the entrance if the way is left and 1 1 0 if it is right, a 0 b in the corridor with a and b
    new at every step, uniform from 0 to 1 (both 1 where it is not `noisy`), and 0 1 0 at the junction. It goes forward,
    turns left or turns right (outputs 0, 1, 2); the paper has the four points of the compass. At the junction the right
    turn earns 1 (in the paper 4), the wrong one -0.1, and both end the episode; walking into a wall costs 0.1 and the
    model stays where it was. Episodes end after three times the steps of the expert. The loss asks for the expert's
    action at every step, the score for the turn at the junction alone: guessing left or right scores 0.5.
    """

    corridor_length: int = field(default=10, metadata={"least": 1})
    """Steps from the entrance to the junction."""
    noisy: bool = True
    """Whether the walls of the corridor look different at every step."""

    input_kind: ClassVar[InputKind] = "values"
    input_range: ClassVar[tuple[float, float]] = (0.0, 1.0)

    @property
    def input_size(self) -> int:
        return 3

    @property
    def output_size(self) -> int:
        return 3

    @property
    def num_steps(self) -> int:
        return self.corridor_length + 1

    @property
    def longest(self) -> int:
        return PATIENCE * self.num_steps

    def begin(self, values: Mapping[str, Tensor], streams: Streams, count: int) -> World:
        way = LEFT + streams.integers(2, count)
        nothing = torch.zeros_like(way)
        return {"way": way, "position": nothing, "time": nothing, "walls": self._walls(streams, count)}

    def observe(self, world: World) -> Tensor:
        walls = world["walls"]
        left = (world["way"] == LEFT).to(walls.dtype)
        full, zero = torch.ones_like(left), torch.zeros_like(left)
        entrance = torch.stack([1 - left, full, left], dim=-1)
        corridor = torch.stack([walls[..., 0], zero, walls[..., 1]], dim=-1)
        junction = torch.stack([zero, full, zero], dim=-1)
        inside = torch.where(self._at_junction(world)[..., None], junction, corridor)
        return torch.where((world["position"] == 0)[..., None], entrance, inside)

    def act(self, world: World, actions: Tensor, streams: Streams) -> Outcome:
        forward, junction = actions == FORWARD, self._at_junction(world)
        turned, arrived = junction & ~forward, junction & (actions == world["way"])
        reward = torch.where(turned, WRONG, torch.where(forward == junction, BUMPED, 0.0))
        walls, time = self._walls(streams, actions.shape[1]), world["time"] + 1
        position = world["position"] + (forward & ~junction)
        after = {"way": world["way"], "position": position, "time": time, "walls": walls}
        reward = torch.where(arrived, ARRIVED, reward).to(walls.dtype)
        return Outcome(after, reward, turned | (time >= self.longest))

    def expert(self, world: World) -> Tensor:
        return torch.where(self._at_junction(world), world["way"], FORWARD)

    def score(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Share of right turns at the junction (models,), the last step of outputs (models, time, batch, output).

        NaN where one of these outputs is not finite.
        """
        turns = outputs[:, -1]
        right = (turns.argmax(-1) == batch.target[:, -1]).to(torch.float64).mean(1)
        return torch.where(turns.isfinite().flatten(1).all(1), right, torch.nan)

    def _at_junction(self, world: World) -> Tensor:
        return world["position"] == self.corridor_length

    def _walls(self, streams: Streams, count: int) -> Tensor:
        """Looks of the walls (models, episode, side), float32."""
        if self.noisy:
            return streams.uniform(count, 2)
        return torch.ones(len(streams), count, 2, device=streams.device)

    @classmethod
    def examples(cls) -> Sequence[TMaze]:
        return [cls(corridor_length=4), cls(corridor_length=2, noisy=False)]
