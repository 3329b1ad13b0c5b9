"""Wirings of liquid networks: which synapses there are, and whether they excite or inhibit at first."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

KINDS = ("full", "random", "ncp")
EXCITATORY = 2 / 3
"""Share of excitatory synapses in full and random wirings."""


class Wiring(NamedTuple):
    """Signed synapses, 1 excitatory, -1 inhibitory, 0 none."""

    sensory: Tensor
    """(unit, input)."""
    recurrent: Tensor
    """(unit, unit), to and from."""


class Layers(NamedTuple):
    """Numbers of an NCP wiring."""

    command: int
    inter: int
    sensory_fanout: int
    inter_fanout: int
    recurrent: int
    motor_fanin: int


def refuse(kind: str, sparsity: float) -> None:
    """Raise ValueError unless there is such a wiring, with synapses as sparse as this."""
    if kind not in KINDS:
        raise ValueError(f"`wiring` (={kind!r}) must be one of {KINDS}.")
    low, high = {"full": (0.0, 0.0), "random": (0.0, 0.9), "ncp": (0.1, 0.9)}[kind]
    if not low <= sparsity <= high:
        bounds = f"from {low} to {high}" if high else "0, since it has every synapse"
        raise ValueError(f"`sparsity` (={sparsity}) of the wiring '{kind}' must be {bounds}.")


def least_units(kind: str, outputs: int) -> int:
    """Least number of units of a wiring: the motor units, one for each output, and in layers three others."""
    return outputs + 3 if kind == "ncp" else outputs


def wired(kind: str, sparsity: float, inputs: int, units: int, outputs: int, generator: torch.Generator) -> Wiring:
    """A wiring of `units`, of which the first `outputs` are motor units.

    "full" has every synapse, and "random" the share 1 - sparsity of them; both excite with probability 2/3. "ncp" has
    the layers sensory -> inter -> command -> motor of Lechner et al. (Neural circuit policies, Nature Machine
    Intelligence 2020), with recurrent synapses between command units and fair signs.
    """
    if kind == "ncp":
        return _layered(layers(units, outputs, sparsity), inputs, outputs, generator)
    sizes = ((units, inputs), (units, units))
    return Wiring(*(_scattered(to, source, sparsity, generator) for to, source in sizes))


def layers(units: int, outputs: int, sparsity: float) -> Layers:
    """Sizes and fan-outs as the class AutoNCP of the authors' package has them."""
    command = max(int(0.4 * (units - outputs)), 1)
    inter = units - outputs - command
    dense = 1 - sparsity
    return Layers(
        command=command,
        inter=inter,
        sensory_fanout=max(int(inter * dense), 1),
        inter_fanout=max(int(command * dense), 1),
        recurrent=max(int(2 * command * dense), 1),
        motor_fanin=max(int(command * dense), 1),
    )


def _scattered(to: int, source: int, sparsity: float, generator: torch.Generator) -> Tensor:
    exists = torch.zeros(to * source)
    exists[torch.randperm(to * source, generator=generator)[: round(to * source * (1 - sparsity))]] = 1
    excites = torch.rand(to * source, generator=generator) < EXCITATORY
    return (exists * (2.0 * excites - 1)).view(to, source)


def _layered(numbers: Layers, inputs: int, outputs: int, generator: torch.Generator) -> Wiring:
    """Motor units first, then command, then inter units."""
    command = slice(outputs, outputs + numbers.command)
    inter = slice(command.stop, command.stop + numbers.inter)
    sensory, recurrent = torch.zeros(inter.stop, inputs), torch.zeros(inter.stop, inter.stop)
    sensory[inter] = _fanned_out(numbers.inter, inputs, numbers.sensory_fanout, generator)
    recurrent[command, inter] = _fanned_out(numbers.command, numbers.inter, numbers.inter_fanout, generator)
    # Motor units choose their command units; those that none has chosen get synapses too.
    recurrent[:outputs, command] = _fanned_out(numbers.command, outputs, numbers.motor_fanin, generator).T
    pairs = torch.randint(numbers.command**2, (numbers.recurrent,), generator=generator)
    between = torch.zeros(numbers.command**2)
    between[pairs] = 1
    recurrent[command, command] = between.view(numbers.command, numbers.command)
    return Wiring(*(part * _signs(part, generator) for part in (sensory, recurrent)))


def _fanned_out(to: int, source: int, fanout: int, generator: torch.Generator) -> Tensor:
    """Synapses (to, source): each source reaches `fanout` units, and a unit that none reaches gets the mean number."""
    exists = torch.zeros(to, source)
    for column in range(source):
        exists[torch.randperm(to, generator=generator)[:fanout], column] = 1
    fanin = min(max(source * fanout // to, 1), source)
    for row in (exists.sum(1) == 0).nonzero().flatten().tolist():
        exists[row, torch.randperm(source, generator=generator)[:fanin]] = 1
    return exists


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    return 1.0 - 2 * torch.randint(2, like.shape, generator=generator)
