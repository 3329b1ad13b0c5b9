"""Truncated backpropagation through time, as a user may write it."""

from dataclasses import dataclass

import torch

from weightspace.rollout import rollout
from zoo_builder.learning.descent import Descent


@dataclass(frozen=True, kw_only=True)
class WindowedBPTT(Descent):
    """Gradients that go back over `window` steps at most (Williams and Peng, Neural Computation 1990)."""

    window: int = 2

    def gradients(self, family, task, params, batch, noise, method):
        """Roll out window by window, each from the detached state of the last."""
        leaves = {name: params[name].detach().requires_grad_() for name in family.spec.trained}
        x, state, outputs = batch.x.split(self.window, 1), None, []
        for number, part in enumerate(x):
            drawn = {name: tensor.split(self.window, 1)[number] for name, tensor in noise.items()}
            rolled = rollout(family, params | leaves, part, batch.start, method=method, noise=drawn, state=state)
            outputs.append(rolled.outputs)
            state = {name: tensor.detach() for name, tensor in rolled.final.items()}
        losses = task.loss(torch.cat(outputs, 1), batch)
        found = torch.autograd.grad(losses.sum(), list(leaves.values()), allow_unused=True, materialize_grads=True)
        return losses.detach(), dict(zip(leaves, found, strict=True))

    def why_not(self, family, task):
        """See the base; a window must be shorter than the sequences."""
        if task is not None and self.window >= task.num_steps:
            return f"`window` (={self.window}) must be below the task's {task.num_steps} steps."
        return super().why_not(family, task)
