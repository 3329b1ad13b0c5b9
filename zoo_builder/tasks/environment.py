"""The contract of an environment: a task in which what a model sees depends on what it did."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from weightspace.rollout import Streams
from zoo_builder.tasks.base import Batch, Policy, Split
from zoo_builder.tasks.categorical import Categorical

World = dict[str, Tensor]
"""State of many episodes side by side, tensors (models, episode, ...)."""


@dataclass(frozen=True)
class Outcome:
    """Consequences of one action in each of many episodes."""

    world: World
    """World after the action, of episodes that have ended, too."""
    reward: Tensor
    """Reward of the action (models, episode), float32."""
    ended: Tensor
    """Whether the episode ended with the action (models, episode), bool."""


@dataclass(frozen=True, kw_only=True)
class Environment(Categorical):
    """A task with a world in which a model acts: outputs are the log-odds of its actions.

    A partially observable Markov decision process (Kaelbling, Littman and Cassandra, Artificial Intelligence 1998) in
    which all episodes of all models advance together. As a task like any other it asks which action an expert takes,
    who sees the whole world: `sample` records the expert's episodes, so that labels, exams, stored rollouts and
    learners by imitation read an environment as they read other tasks. `returns` is what a model earns that acts
    itself, and the learner ActorCritic learns from that alone.
    """

    splits_differ: ClassVar[bool] = False

    @property
    @abstractmethod
    def longest(self) -> int:
        """Number of steps after which every episode has ended; an episode of the expert takes `num_steps`."""

    @abstractmethod
    def begin(self, values: Mapping[str, Tensor], streams: Streams, count: int) -> World:
        """Worlds at the first steps of `count` episodes of each model; `values` are those of `sample`.

        How many numbers are drawn from the streams depends on `count` alone, here and in `act`.
        """

    @abstractmethod
    def observe(self, world: World) -> Tensor:
        """Inputs (models, episode, input), float32, of the next step."""

    @abstractmethod
    def act(self, world: World, actions: Tensor, streams: Streams) -> Outcome:
        """Outcome of actions (models, episode), int64; episodes that have ended may go on in any way."""

    @abstractmethod
    def expert(self, world: World) -> Tensor:
        """Right actions (models, episode), int64."""

    def sample(self, values: Mapping[str, Tensor], streams: Streams, batch_size: int, split: Split) -> Batch:
        """See the base; the target at every step is what the expert does."""
        world = self.begin(values, streams, batch_size)
        inputs, actions = [], []
        for _ in range(self.num_steps):
            inputs.append(self.observe(world))
            actions.append(self.expert(world))
            world = self.act(world, actions[-1], streams).world
        x = torch.stack(inputs, dim=1)
        return Batch(x=x, start=x.new_zeros(len(streams), batch_size, 0), target=torch.stack(actions, dim=1))

    def returns(self, policy: Policy, values: Mapping[str, Tensor], streams: Streams, episodes: int) -> Tensor:
        """Mean sum of rewards of a policy's most probable actions (models,), float64, over `episodes` of each model.

        NaN where an output is not finite.
        """
        world = self.begin(values, streams, episodes)
        total = torch.zeros(len(streams), episodes, dtype=torch.float64, device=streams.device)
        lasts = torch.ones_like(total, dtype=torch.bool)
        finite = lasts
        for _ in range(self.longest):
            log_odds = policy(self.observe(world).double())
            finite = finite & log_odds.isfinite().all(-1)
            outcome = self.act(world, log_odds.argmax(-1), streams)
            total = total + torch.where(lasts, outcome.reward.double(), 0)
            lasts, world = lasts & ~outcome.ended, outcome.world
        return torch.where(finite.all(1), total.mean(1), torch.nan)


def renewed(ended: Tensor, fresh: Mapping[str, Tensor], old: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors (models, episode, ...), fresh where the episode `ended` (models, episode), else the old ones."""
    return {
        name: torch.where(ended.reshape(*ended.shape, *[1] * (value.dim() - 2)), fresh[name], value)
        for name, value in old.items()
    }
