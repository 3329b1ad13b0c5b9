"""What rollouts give: outputs, states, and what is measured along driven trajectories."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from weightspace.spec import State


@dataclass(frozen=True)
class Rollout:
    """What a cohort did: outputs (models, time, batch, output) and each state (models, time, batch, its axis)."""

    outputs: Tensor
    states: State
    final: State
    """States (models, batch, axis) after the last input, from which a rollout can go on."""
    report: Mapping[str, Tensor] = field(default_factory=dict)
    """What a method says of its own work, each (models, ...): the iterations of one that iterates, say."""


@dataclass(frozen=True)
class Measured:
    """What is measured along driven trajectories; natively, growth and states are in the precision of the inputs."""

    growth: Tensor
    """Log of how much each step stretched a unit tangent vector (models, window, lane), nats."""
    covariance: Tensor
    """Of the states (models, state, state) over lanes and time, up to a factor that keeps it within range."""
    mean_jacobian: Tensor
    """(models, to state, from state), over lanes and the steps with Jacobians; without these, anything."""
    log_norms: Tensor
    """Mean over lanes of log ||J(k-1) ... J(0)||_F, (models, k), k = 1 to the number of steps with Jacobians."""
    visited: Tensor | None
    """States before each step (models, window, lane, state), if wanted."""
