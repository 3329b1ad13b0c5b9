"""How long a model survives where it acts itself."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from weightspace.rollout.noise import draw_noise
from weightspace.spec import WeightSpec
from zoo_builder.labels.base import Label, LabelColumn
from zoo_builder.labels.driven import Driven
from zoo_builder.tasks.base import Disturbance

EPISODES = 32
DISTURBANCES = {
    "survival": Disturbance(),
    "survival_noisy": Disturbance(observation=0.1),
    "survival_pushed": Disturbance(push=0.3),
}
"""Column -> what the model meets."""


@dataclass(frozen=True, kw_only=True)
class ClosedLoop(Label):
    """Survival in the closed loop of a task in which models act: undisturbed, with noisy inputs, and pushed."""

    def columns(self, spec: WeightSpec) -> tuple[LabelColumn, ...]:
        return tuple(
            LabelColumn(
                name=name,
                unit="share of the task's horizon",
                definition=f"Mean over {EPISODES} episodes of the share of the task's horizon that the model survives "
                f"its own acts, with Gaussian noise of {kind.observation:g} on each input and of {kind.push:g} of the "
                "largest act on what it does, at every step. Null where the task has no world to act in.",
                source="the task's definition; disturbances as in Tumma et al., ICLR 2024, arXiv 2310.03915",
            )
            for name, kind in DISTURBANCES.items()
        )

    def measure(self, driven: Driven) -> dict[str, Tensor]:
        missing = driven.not_applicable
        if driven.task is None:
            return dict.fromkeys(DISTURBANCES, missing)
        survival = {}
        for name, disturbance in DISTURBANCES.items():
            streams = driven.streams("closed_loop")
            share = driven.task.closed_loop(Actor(driven), streams, EPISODES, disturbance)
            survival[name] = missing if share is None else share
        return survival


class Actor:
    """Models that answer one step after another, (models, episode, input) to (models, episode, output)."""

    def __init__(self, driven: Driven) -> None:
        self.family, self.params = driven.family, driven.params
        start = torch.zeros(len(driven.finite), EPISODES, 0, dtype=torch.float64, device=driven.device)
        self.state = torch.func.vmap(self.family.initial_state)(self.params, start)
        self.streams = driven.streams("closed_loop/noise")

    def __call__(self, x: Tensor) -> Tensor:
        drawn = draw_noise(self.family.spec, self.streams, 1, EPISODES)
        noise = {name: value[:, 0].double() for name, value in drawn.items()}
        self.state = torch.func.vmap(self.family.step)(self.params, self.state, x, noise)
        outputs: Tensor = torch.func.vmap(self.family.readout)(self.params, self.state)
        return outputs
