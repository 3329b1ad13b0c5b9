"""The noise that a family declares, drawn from each model's own stream."""

from __future__ import annotations

from torch import Tensor

from weightspace.rollout import Streams
from weightspace.spec import WeightSpec


def draw_noise(spec: WeightSpec, streams: Streams, num_steps: int, batch_size: int) -> dict[str, Tensor]:
    """Standard normal noise (models, time, batch, axis), float32, for every noise that `spec` declares."""
    return {name: streams.normal(num_steps, batch_size, spec.axes[axis].size) for name, axis in spec.noise.items()}
