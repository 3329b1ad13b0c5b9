"""Augmentations, as PyG transforms of stacks: group moves, noise on weights, hidden connections."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor
from torch_geometric.transforms import BaseTransform

from weightspace.components.construction import Constructed
from weightspace.rows import flip_even
from weightspace.spec import GroupElement
from weightspace.store import Stack


class Augmentation(Constructed, BaseTransform):  # type: ignore[misc]  # torch_geometric ships no types
    """A random transform of stacks: a call returns a new stack, the old one is unchanged.

    Draws come from the transform's generator, which `reseed` seeds for each batch.
    """

    def __init__(self) -> None:
        self._generator = torch.Generator().manual_seed(0)

    def reseed(self, key: int) -> None:
        """Seed the generator with the key of a batch."""
        self._generator.manual_seed(key)

    @abstractmethod
    def forward(self, stack: Stack) -> Stack:
        """The transformed stack."""


class GroupMoves(Augmentation):
    """Move each model by a random element of its family's declared group: the function stays exactly the same.

    For encoders that are not invariant. `gauges` are sign flips and rescalings, `permutations` reorder hidden units.
    """

    def __init__(self, permutations: bool = False, gauges: bool = True) -> None:
        super().__init__()
        if not (permutations or gauges):
            raise ValueError("GroupMoves with neither `permutations` nor `gauges` changes nothing; switch one on.")
        self.permutations, self.gauges = permutations, gauges

    def forward(self, stack: Stack) -> Stack:
        """The stack with every model moved by its own element."""
        elements, spec, params = self.draw(stack), stack.family.spec, stack.params
        if self.gauges:
            params = flip_even(spec, params, self._generator)
        if not elements.permutations and not elements.gauges:
            return dataclasses.replace(stack, params=params)
        return dataclasses.replace(stack, params=spec.act_stacked(elements, params))

    def draw(self, stack: Stack) -> GroupElement:
        """Elements to move the models by, each its own: tensors (models, axis)."""
        first = next(iter(stack.params.values()))
        random = stack.family.spec.random_elements(first.shape[0], self._generator, first.dtype)
        # Draws of what is left out are made all the same, so that options do not change the others.
        permutations = random.permutations if self.permutations else {}
        gauges = random.gauges if self.gauges else {name: torch.ones_like(f) for name, f in random.gauges.items()}
        return GroupElement(
            {axis: p.to(first.device) for axis, p in permutations.items()},
            {name: factor.to(first.device) for name, factor in gauges.items()},
        )


class WeightNoise(Augmentation):
    """Add Gaussian noise to trained tensors, `scale` times the standard deviation of each model's own tensor.

    Values stay in the tensor's domain; masks and fixed tensors stay as they are.
    """

    def __init__(self, scale: float = 0.02) -> None:
        super().__init__()
        if scale < 0:
            raise ValueError(f"`scale` (={scale}) must not be negative.")
        self.scale = scale

    def forward(self, stack: Stack) -> Stack:
        """The stack with noisy weights."""
        spec = stack.family.spec
        params = dict(stack.params)
        for name in spec.trained:
            params[name] = self._noisy(params[name], spec.tensors[name].domain)
        return dataclasses.replace(stack, params=params)

    def _noisy(self, tensor: Tensor, domain: str) -> Tensor:
        axes = tuple(range(1, tensor.dim()))
        deviation = tensor.std(axes, correction=0, keepdim=True)
        noise = torch.randn(tensor.shape, generator=self._generator, dtype=tensor.dtype).to(tensor.device)
        noisy = tensor + self.scale * deviation * noise
        # Clamped to half the old value (positive), or to halfway between it and 1 (at_least_1).
        if domain == "positive":
            return torch.maximum(noisy, tensor / 2)
        if domain == "at_least_1":
            return torch.maximum(noisy, (1 + tensor) / 2)
        return noisy


class MaskEdges(Augmentation):
    """Hide a random `share` of the connections of each model: their weights become 0, in all gate rows alike.

    Connections that the model's own mask has removed count as absent, not as hidden; biases, masks and tensors whose
    domain leaves out 0 stay as they are. The function changes, and an invariant encoder can see it.
    """

    def __init__(self, share: float = 0.15) -> None:
        super().__init__()
        if not 0 <= share < 1:
            raise ValueError(f"`share` (={share}) must be at least 0 and below 1.")
        self.share = share

    def forward(self, stack: Stack) -> Stack:
        """The stack with some connections hidden."""
        return self.hide(stack, self.draw(stack))

    def draw(self, stack: Stack) -> dict[str, Tensor]:
        """Entries to hide, per tensor that joins nodes: bool, in the shape of the params (models, ...)."""
        spec, hidden = stack.family.spec, {}
        for name, nodes in spec.connections():
            if spec.tensors[name].domain not in ("real", "even"):
                continue
            params, mask = stack.params[name], spec.tensors[name].mask
            shape = (params.shape[0], *params.shape[-len(nodes) :])
            drawn = (torch.rand(shape, generator=self._generator) < self.share).to(params.device)
            if spec.channel_axis(name) is not None:
                drawn = drawn[:, None].expand(params.shape)
            hidden[name] = drawn if mask is None else drawn & (stack.params[mask] > 0)
        return hidden

    @staticmethod
    def hide(stack: Stack, hidden: Mapping[str, Tensor]) -> Stack:
        """The stack with the entries of `hidden` (see `draw`) set to 0."""
        masked = {name: torch.where(entries, 0.0, stack.params[name]) for name, entries in hidden.items()}
        return dataclasses.replace(stack, params={**stack.params, **masked})
