"""The contract of an encoder: stacks of models in, one embedding per model out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from weightspace.components.construction import Constructed
from weightspace.families import Family
from weightspace.spec import WeightSpec
from weightspace.store import Stack

_WORDS = {
    "ends": "inputs or outputs",
    "hidden": "hidden units",
    "input": "inputs",
    "output": "outputs",
    "factor": "factors",
    "pairs": "pairs of units whose products a tensor weighs",
}


class Encoder(Constructed, nn.Module, ABC):
    """Reads whole weight spaces. Subclasses state their symmetry, which `weightspace check encoders` verifies."""

    symmetry: ClassVar[frozenset[str]] = frozenset()
    """What leaves embeddings unchanged: "permutation" (of hidden units and factors), "sign", "scale"."""
    max_sizes: Mapping[str, tuple[int, str]] = {}
    """Largest sizes an encoder can read, each with the option that raises it ("" if none does): by node kind, of
    `ends` (ordered axes: inputs, outputs), in `layers`, of `pairs` (of the units that a tensor with three node axes
    reads). What is not named may have any size. Models beyond are refused wherever the encoder meets them."""

    def __init__(self, embedding_dim: int) -> None:
        super().__init__()
        if embedding_dim < 1:
            raise ValueError(f"`embedding_dim` (={embedding_dim}) must be at least 1.")
        self.embedding_dim = embedding_dim
        self.register_forward_pre_hook(_refuse_too_large)

    def refuse_too_large(self, family: Family) -> None:
        """Raise ValueError where models of this family and size are beyond `max_sizes`."""
        sizes = sizes_of(family.effective_spec) if self.max_sizes else {}
        for name, (most, option) in self.max_sizes.items():
            if sizes.get(name, 0) > most:
                way_out = f"train with `{option}` {sizes[name]} or more" if option else "use another encoder"
                raise ValueError(
                    f"{type(family).__name__} has {sizes[name]} {_WORDS.get(name, name)}, but this "
                    f"{type(self).__name__} reads {most} at most; {way_out}, or leave such models out."
                )

    @abstractmethod
    def forward(self, stacks: Sequence[Stack]) -> Tensor:
        """Embeddings (models, embedding_dim) of all models of the stacks, one stack after another."""

    @abstractmethod
    def fit_standardisation(self, stacks: Iterable[Stack]) -> None:
        """Learn input scales from training models; they are buffers, and so part of the checkpoint."""


def sizes_of(spec: WeightSpec) -> dict[str, int]:
    """Units of each node kind (of `hidden`, in the largest layer), of the largest ordered axis (`ends`), and so on.

    Axes of one kind, and of one layer where they are hidden, count together. Names are those of `max_sizes`.
    """
    sizes: dict[str, int] = {}
    hidden: dict[int, int] = {}
    for axis in spec.axes.values():
        if axis.kind == "channel":
            continue
        if axis.kind == "hidden":
            hidden[axis.layer] = hidden.get(axis.layer, 0) + axis.size
        else:
            sizes[axis.kind] = sizes.get(axis.kind, 0) + axis.size
        if not axis.permutable:
            sizes["ends"] = max(sizes.get("ends", 0), axis.size)
        sizes["layers"] = max(sizes.get("layers", 0), axis.layer + 1)
    sizes["hidden"] = max(hidden.values(), default=0)
    pairs = {sources: spec.axes[sources[0]].size * spec.axes[sources[1]].size for _, _, sources in spec.products()}
    sizes["pairs"] = sum(pairs.values())
    return sizes


def _refuse_too_large(encoder: nn.Module, arguments: tuple[Any, ...]) -> None:
    assert isinstance(encoder, Encoder)
    for stack in arguments[0] if arguments else ():
        encoder.refuse_too_large(stack.family)
