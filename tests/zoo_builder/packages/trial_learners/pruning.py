"""A family with a mask, and a learner that prunes it between updates."""

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch

from tests.zoo_builder.linear_family import Linear
from weightspace.families.base import linear
from weightspace.rollout.gradients import losses_and_gradients
from weightspace.spec import TensorSpec
from zoo_builder.learning.descent import Descent


@dataclass(frozen=True, kw_only=True)
class Masked(Linear):
    """h' = (M * A) h + B x, y = C h."""

    def declare(self):
        spec = super().declare()
        mask = TensorSpec(axes=("hidden", "hidden"), role="mask")
        tensors = spec.tensors | {"a": TensorSpec(axes=("hidden", "hidden"), mask="mask"), "mask": mask}
        return dataclasses.replace(spec, tensors=tensors)

    def init(self, generator):
        size = self.hidden_size
        fresh = {name: torch.randn(self.spec.shape(name), generator=generator) / 3 for name in ("a", "b", "c")}
        return fresh | {"mask": torch.ones(size, size)}

    def step(self, params, state, x, noise):
        return {"h": linear(state["h"], params["a"] * params["mask"]) + linear(x, params["b"])}


@dataclass(frozen=True, kw_only=True)
class Pruning(Descent):
    """Half of the remaining weights, the smallest, are taken out after each of the updates `when`."""

    when: tuple[int, ...] = (3, 5)
    tensor: str = "mask"
    native_updates: ClassVar[bool] = True

    @property
    def mask_updates(self):
        """See the base."""
        return self.when

    def masks(self, family, params, update):
        """Keep the larger half of what is left."""
        size = (params["a"] * params["mask"]).abs().flatten(1)
        left = int(params["mask"][0].count_nonzero()) // 2
        mask = torch.zeros_like(size).scatter_(1, size.topk(left, dim=1).indices, 1.0)
        return {self.tensor: mask.view_as(params["mask"])}

    def gradients(self, family, task, params, batch, noise, method):
        """Those of BPTT."""
        loss = task.criterion(batch) or partial(task.loss, batch=batch)
        trained = family.spec.trained
        return losses_and_gradients(family, params, trained, batch.x, batch.start, loss, method=method, noise=noise)
