"""A linear recurrent network, whose labels have closed forms."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from weightspace.families.base import Family, Noise, linear
from weightspace.spec import Axis, Params, State, TensorSpec, WeightSpec


@dataclass(frozen=True, kw_only=True)
class Linear(Family):
    """h' = A h + B x, y = C h."""

    hidden_size: int

    def declare(self) -> WeightSpec:
        axes = {
            "input": Axis(size=self.input_size, kind="input"),
            "hidden": Axis(size=self.hidden_size, kind="hidden", permutable=True),
            "output": Axis(size=self.output_size, kind="output"),
        }
        tensors = {
            "a": TensorSpec(axes=("hidden", "hidden")),
            "b": TensorSpec(axes=("hidden", "input")),
            "c": TensorSpec(axes=("output", "hidden")),
        }
        return WeightSpec(axes=axes, tensors=tensors, states={"h": "hidden"})

    def init(self, generator: torch.Generator) -> Params:
        return {k: torch.randn(self.spec.shape(k), generator=generator) / 3 for k in self.spec.tensors}

    def step(self, params: Params, state: State, x: Tensor, noise: Noise) -> State:
        return {"h": linear(state["h"], params["a"]) + linear(x, params["b"])}

    def readout(self, params: Params, state: State) -> Tensor:
        return linear(state["h"], params["c"])

    @classmethod
    def examples(cls) -> Sequence[Family]:
        return []


def shift_register(length: int, gain: float) -> tuple[Linear, Params]:
    """A model that answers DelayedRecall with delay `length` - 1 at log-odds of -gain and gain for its two classes."""
    family = Linear(input_size=1, hidden_size=length, output_size=2)
    params = {"a": torch.diag(torch.ones(length - 1), -1), "b": torch.eye(length)[:, :1]}
    return family, params | {"c": torch.stack([-gain * torch.eye(length)[-1], gain * torch.eye(length)[-1]])}
