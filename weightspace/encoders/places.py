"""Fixed places for the units of models of any size up to a largest one, for encoders that tell units by their place."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from weightspace.graph import layout
from weightspace.spec import WeightSpec


class Places:
    """One place per unit: inputs, outputs, factors, hidden units layer by layer, then pairs whose products are weighed.

    `most` says how many there may be of each: `input`, `output`, `factor`, `hidden` (of a layer), `layers`, `pairs`.
    """

    def __init__(self, most: Mapping[str, int]) -> None:
        for name, size in most.items():
            if size < (1 if name in ("hidden", "layers") else 0):
                least = 1 if name in ("hidden", "layers") else 0
                raise ValueError(f"The largest number of `{name}` (={size}) must be at least {least}.")
        self.most = dict(most)
        self.units = sum(most[kind] for kind in ("input", "output", "factor")) + most["layers"] * most["hidden"]
        self.sources = self.units + most["pairs"]

    def of(self, spec: WeightSpec) -> Tensor:
        """The place (node,) of every node of the graph of a model whose sizes are within the largest."""
        free, start = {}, 0
        for kind in ("input", "output", "factor"):
            free[kind, 0] = start
            start += self.most[kind]
        for layer in range(self.most["layers"]):
            free["hidden", layer] = start + layer * self.most["hidden"]
        free["pairs", 0] = self.units
        places = []
        for name, part in layout(spec).offsets.items():
            axis = spec.axes.get(name)
            # Layers are of hidden units; axes of one kind and layer follow each other.
            region = ("pairs", 0) if axis is None else (axis.kind, axis.layer if axis.kind == "hidden" else 0)
            size = part.stop - part.start
            places.append(torch.arange(free[region], free[region] + size))
            free[region] += size
        return torch.cat(places)
