"""Examples of every family for tests of what all families must do, and what drives them: inputs, starts and noise."""

import dataclasses
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from weightspace import families
from weightspace.families.gru import GRU
from weightspace.families.noisy_gru import NoisyGRU
from weightspace.rollout import generator

EXAMPLES = [example for kind in families.available().values() for example in kind.examples()]
"""All of them: sizes, layers, wirings, nonlinearities."""


def richest(kind):
    """The example of a family with the most tensors and, of several, the most numbers."""
    return max(kind.examples(), key=lambda example: (len(example.spec.tensors), example.spec.num_parameters))


ONE_OF_EACH = [richest(kind) for kind in families.available().values()]
ONE_OF_EACH_FAST = [
    pytest.param(example, marks=() if example in ONE_OF_EACH else pytest.mark.slow) for example in EXAMPLES
]
"""Parameters of a dear test, with `ids=str`: its other examples run with `-m slow`, and cheaper tests take them all."""


class Drive(NamedTuple):
    """Drive of a stack: inputs (models, time, batch, input), starts (models, batch, start) and noise by name."""

    x: Tensor
    start: Tensor
    noise: dict[str, Tensor]

    def to(self, target):
        """All of it in another dtype, or on another device."""
        return Drive(self.x.to(target), self.start.to(target), {k: v.to(target) for k, v in self.noise.items()})


def drive(family, models, time, batch, dtype=torch.float64):
    """Standard normal inputs, starts of the size that the family reads, and the noise that it declares."""
    draw = generator(0, "m", "x")

    def normal(*shape):
        return torch.randn(models, *shape, dtype=dtype, generator=draw)

    x, start = normal(time, batch, family.input_size), normal(batch, family.reads_start)
    axes = family.spec.noise.items()
    return Drive(x, start, {name: normal(time, batch, family.spec.axes[axis].size) for name, axis in axes})


def sized_for(example, task, **fields):
    """The family in the sizes that a task needs, and in the fields given, or the least that the others allow."""
    sizes = [name for name in ("input_size", "output_size", "start_size") if name in example.config]
    fields |= {name: getattr(task, name) for name in sizes}
    for name, least in example.least(example.config | fields).items():
        fields[name] = max(fields.get(name, example.config[name]), least.number)
    return dataclasses.replace(example, **fields)


def gated(task, hidden_size=3):
    """A gated family that reads a task's inputs and, where it gives one, its start."""
    return sized_for((NoisyGRU if task.start_size else GRU).examples()[0], task, hidden_size=hidden_size)
