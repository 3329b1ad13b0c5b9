"""The contract of a family: a declared weight space and the function its params compute."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from weightspace.families.torch_module import Layer
from weightspace.spec import Params, State, WeightSpec

Noise = Mapping[str, Tensor]


class Least(NamedTuple):
    """The least value of an integer field, and the fields that ask for it."""

    number: int
    reason: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family(ABC):
    """One family of recurrent networks at one size. Subclasses are frozen dataclasses whose fields are their config.

    Integer fields are at least 1; `field(metadata={"least": 0})` declares another least value, such as 0 layers, and
    `least` one that depends on other fields, such as a unit for each rank.
    Every method is pure and computes ONE model on a batch of sequences; `torch.func.vmap` adds the models axis.
    No method branches on the values of tensors.
    """

    input_size: int
    output_size: int

    def __post_init__(self) -> None:
        config = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        bounds = [(item.name, Least(item.metadata.get("least", 1))) for item in dataclasses.fields(self)]
        for name, (number, reason) in [*bounds, *self.least(config).items()]:
            value = config[name]
            if isinstance(value, int) and not isinstance(value, bool) and value < number:
                because = f": {reason}" if reason else ""
                raise ValueError(f"`{name}` (={value}) of {type(self).__name__} must be at least {number}{because}.")

    @classmethod
    def least(cls, config: Mapping[str, Any]) -> Mapping[str, Least]:
        """Least values of integer fields that depend on other fields of `config`, by name of the field."""
        return {}

    @abstractmethod
    def declare(self) -> WeightSpec:
        """The weight space of this family at this size; read it as `family.spec`."""

    @property
    def reads_start(self) -> int:
        """Size of the task's start that the initial state reads, 0 where there is none: then models start alike."""
        return 0

    @cached_property
    def spec(self) -> WeightSpec:
        """The declared weight space of the stored (raw) params."""
        return self.declare()

    @abstractmethod
    def init(self, generator: torch.Generator) -> Params:
        """Fresh float32 params of one model."""

    def initial_state(self, params: Params, start: Tensor) -> State:
        """State before the first input; `start` (batch, start) comes from the task, of size 0 where it has none."""
        return {name: start.new_zeros(start.shape[0], self.spec.size_of_state(name)) for name in self.spec.states}

    @abstractmethod
    def step(self, params: Params, state: State, x: Tensor, noise: Noise) -> State:
        """State after one input x (batch, input)."""

    @abstractmethod
    def readout(self, params: Params, state: State) -> Tensor:
        """Outputs (batch, output) of a state."""

    def effective(self, params: Params) -> Params:
        """The params that the function uses, masked and clamped; by default the stored ones."""
        return params

    def as_rnn(self, params: Params) -> Layer:
        """One model as an nn.Module with `batch_first`, `(input, h) -> (output, h)` and `.cell`; see `Layer`.

        Its parameters are the trained tensors of `params` under their names, so that it can be trained further.
        """
        return Layer(self, params)

    @property
    def effective_spec(self) -> WeightSpec:
        """The declared weight space of `effective(params)`."""
        return self.spec

    @property
    def numbers_per_step(self) -> int:
        """About how many sums one step of one sequence makes; more than declared where a step repeats itself."""
        return self.spec.numbers_per_step

    @classmethod
    @abstractmethod
    def examples(cls) -> Sequence[Family]:
        """Small instances that every contract test runs on."""

    @property
    def config(self) -> dict[str, Any]:
        """The fields of this instance, from which `families.load` rebuilds it."""
        return dataclasses.asdict(self)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Affine map of x (batch, from) by weight (to, from); channel rows are concatenated, (batch, gate * to)."""
    return F.linear(x, weight.flatten(0, -2), None if bias is None else bias.flatten())


def uniform(shape: Sequence[int], fan: int, generator: torch.Generator) -> Tensor:
    """Draws from U(-1/sqrt(fan), 1/sqrt(fan)), the default of torch.nn's recurrent layers."""
    bound = 1 / math.sqrt(fan)
    return (2 * torch.rand(tuple(shape), generator=generator) - 1) * bound


def glorot(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Draws from U(-b, b) with b = sqrt(6 / (to + from)), each gate row a matrix (Glorot and Bengio, AISTATS 2010)."""
    return uniform(shape, 1, generator) * math.sqrt(6 / (shape[-1] + shape[-2]))


def gamma(mean: float, shape: int, size: int, generator: torch.Generator) -> Tensor:
    """Draws (size,) of a gamma distribution of whole shape: the sum of so many exponential variables."""
    return mean * -torch.log1p(-torch.rand(shape, size, generator=generator)).mean(0)
