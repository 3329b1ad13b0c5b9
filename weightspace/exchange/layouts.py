"""Layouts of other frameworks: the tensors of Keras and Flax layers under the names and in the order of torch.nn."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor


class KerasCell(NamedTuple):
    """The blocks of columns of a Keras kernel: how many there are, and their order in torch.nn's rows."""

    blocks: int
    order: tuple[int, ...]


KERAS = {1: KerasCell(1, (0,)), 3: KerasCell(3, (1, 0, 2)), 4: KerasCell(4, (0, 1, 2, 3))}
"""Number of blocks -> cell: SimpleRNN; GRU, whose blocks z, r, n are r, z, n in torch.nn; LSTM."""
FLAX = (("i", "f", "g", "o"), ("r", "z", "n"), ("",))
"""Gate names of Flax's LSTMCell, GRUCell and SimpleCell, whose modules are called i or h and the name of the gate."""


def torch_names(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The tensors with those of Keras and Flax cells as torch.nn's cells have them; others keep their names.

    A Keras layer is known by `recurrent_kernel`, a Flax cell by the modules of its gates, such as `hi` and `ii`; a
    `kernel` (from, to) elsewhere is the `weight` (to, from) of a torch.nn.Linear. Parts of names are joined by dots.
    ValueError where Keras computed something else than torch.nn.
    """
    result = dict(tensors)
    for front in sorted({name.removesuffix("recurrent_kernel") for name in tensors if _ends(name, "recurrent_kernel")}):
        _replace(result, front, ("kernel", "recurrent_kernel", "bias"), partial(_keras, where))
    for gates in FLAX:
        kernels = [f"{side}{gate}.kernel" for side in "ih" for gate in gates]
        ends = [name.removesuffix(kernels[0]) for name in result if _ends(name, kernels[0])]
        for front in sorted(end for end in ends if all(end + kernel in result for kernel in kernels)):
            names = [kernel.replace("kernel", kind) for kernel in kernels for kind in ("kernel", "bias")]
            _replace(result, front, names, partial(_flax, gates))
    for name in [name for name in result if _ends(name, "kernel") and result[name].dim() == 2]:
        result[f"{name.removesuffix('kernel')}weight"] = result.pop(name).T
    return result


def _ends(name: str, last: str) -> bool:
    """Whether the last parts of a dotted name are these."""
    return f".{name}".endswith(f".{last}")


def _replace(
    tensors: dict[str, Tensor],
    front: str,
    names: Collection[str],
    convert: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]],
) -> None:
    part = {name: tensors.pop(front + name) for name in names if front + name in tensors}
    tensors |= {front + name: tensor for name, tensor in convert(part).items()}


def _keras(where: str, part: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """torch.nn's tensors of a Keras SimpleRNN, GRU or LSTM; its kernels are (from, block * unit)."""
    recurrent = part["recurrent_kernel"]
    units, width = recurrent.shape if recurrent.dim() == 2 else (0, 0)
    if "kernel" not in part or units == 0 or width % units or width // units not in KERAS:
        shapes = {name: tuple(tensor.shape) for name, tensor in part.items()}
        raise ValueError(f"{where} holds {shapes}, which is no SimpleRNN, GRU or LSTM of Keras.")
    cell = KERAS[width // units]
    rows = torch.cat([torch.arange(units) + block * units for block in cell.order])
    converted = {"weight_ih": part["kernel"].T[rows], "weight_hh": recurrent.T[rows]}
    bias = part.get("bias")
    if cell.blocks == 3 and (bias is None or bias.dim() == 1):
        raise ValueError(
            f"{where} holds a GRU of Keras with `reset_after=False` (its bias is not (2, 3 * units)), which resets h "
            "before W_hn and not after it, as torch.nn.GRU and all families here do; train it with reset_after=True."
        )
    if bias is not None:
        both = bias if bias.dim() == 2 else torch.stack([bias, torch.zeros_like(bias)])
        converted |= {"bias_ih": both[0][rows], "bias_hh": both[1][rows]}
    return converted


def _flax(gates: Collection[str], part: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """torch.nn's tensors of a Flax cell, each of whose gates has a kernel (from, to) and may have a bias."""
    converted: dict[str, Tensor] = {}
    for side, ending in (("i", "ih"), ("h", "hh")):
        kernels = [part[f"{side}{gate}.kernel"].T for gate in gates]
        biases = [
            part.get(f"{side}{gate}.bias", kernel.new_zeros(len(kernel)))
            for gate, kernel in zip(gates, kernels, strict=True)
        ]
        converted |= {f"weight_{ending}": torch.cat(kernels), f"bias_{ending}": torch.cat(biases)}
    return converted
