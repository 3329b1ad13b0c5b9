"""Results of rollouts: outputs, states, and measurements along driven trajectories."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from weightspace.spec import State


@dataclass(frozen=True)
class Rollout:
    """Outputs (models, time, batch, output) and each state (models, time, batch, its axis) of a cohort."""

    outputs: Tensor
    states: State
    final: State
    """States (models, batch, axis) after the last input, from which a rollout can continue."""
    report: Mapping[str, Tensor] = field(default_factory=dict)
    """Diagnostics of the method, each (models, ...), such as its number of iterations."""


@dataclass(frozen=True)
class Measured:
    """Measurements along driven trajectories; natively, growth and states have the precision of the inputs."""

    growth: Tensor
    """Log of how much each step stretched a unit tangent vector (models, window, lane), nats."""
    covariance: Tensor
    """Of the states (models, state, state) over lanes and time, up to a factor that keeps it within range."""
    mean_jacobian: Tensor
    """(models, to state, from state), over lanes and the steps with Jacobians; undefined without such steps."""
    log_norms: Tensor
    """Mean over lanes of log ||J(k-1) ... J(0)||_F, (models, k), k = 1 to the number of steps with Jacobians."""
    visited: Tensor | None
    """States before each step (models, window, lane, state), if wanted."""
