"""Returns of models that act in their environment."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from weightspace.spec import WeightSpec
from zoo_builder.labels.base import Label, LabelColumn
from zoo_builder.labels.closed_loop import EPISODES, Actor
from zoo_builder.labels.driven import Driven
from zoo_builder.tasks.environment import Environment


@dataclass(frozen=True, kw_only=True)
class EpisodeReturn(Label):
    """Mean return of the model's own episodes in the environment that it learned."""

    def columns(self, spec: WeightSpec) -> tuple[LabelColumn, ...]:
        return (
            LabelColumn(
                name="episode_return",
                unit="sum of the task's rewards",
                definition=f"Mean over {EPISODES} episodes of the undiscounted sum of rewards that the model earns by "
                "its most probable actions. Null where the task is no environment.",
                source="Sutton and Barto, Reinforcement Learning, 2018, section 3.3; rewards by the task's definition",
            ),
        )

    def measure(self, driven: Driven) -> dict[str, Tensor]:
        if not isinstance(driven.task, Environment):
            return {"episode_return": driven.not_applicable}
        values = {name: driven.at_every_snapshot(value) for name, value in driven.inputs.members.values.items()}
        streams = driven.streams("episode_return")
        return {"episode_return": driven.task.returns(Actor(driven), values, streams, EPISODES)}
