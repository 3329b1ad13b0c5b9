"""Activities of single units in responses to queries: what each node of a model's graph did, for encoders of graphs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from weightspace.encoders.responses import FLAT, MET, TINY, Responses

STATES = 2
"""States of one node that are told apart, such as h and c of an LSTM; further ones are added to the second."""
MOMENTS = 4
"""Mean, log deviation, and correlation with the same unit one and two steps before."""


def trajectories(responses: Responses, offsets: Mapping[str, slice], num_nodes: int) -> Tensor:
    """Activities (models, node, state, time, lane) of inputs, states and outputs, 0 where a node has none."""
    models, time, lanes = responses.inputs.shape[:3]
    found = responses.inputs.new_zeros(models, num_nodes, STATES, time, lanes)
    states: dict[str, int] = {}
    for axis, values in _by_axis(responses):
        slot = min(states.get(axis, 0), STATES - 1)
        states[axis] = slot + 1
        found[:, offsets[axis], slot] += values.permute(0, 3, 1, 2)
    return found


def _by_axis(responses: Responses) -> Iterator[tuple[str, Tensor]]:
    """(axis, (models, time, lane, unit)) of inputs, states and outputs; a state on two axes has its means on each."""
    family = responses.stack.family
    spec = family.spec
    ends = {"input": (responses.inputs, family.input_size), "output": (responses.outputs, family.output_size)}
    for name, axis in spec.axes.items():
        values, size = ends.get(axis.kind, (responses.inputs, 0))
        if axis.size == size:
            yield name, values
    for name, state in responses.states.items():
        by_axis = state.unflatten(-1, spec.state_shape(name))
        axes = spec.state_axes(name)
        for number, axis_name in enumerate(axes):
            others = [3 + i for i in range(len(axes)) if i != number]
            yield axis_name, by_axis.mean(others) if others else by_axis


def statistics(activity: Tensor, responses: Responses, max_outputs: int) -> Tensor:
    """Moments, correlations with outputs, and log distances of pairs from the kick on, (models, node, statistic).

    `activity` (models, node, time, lane) is of one state; NaN where a unit does not vary, or an output is not there.
    """
    main, other = activity.chunk(2, dim=3)
    centred, size = _centred(main)
    varies = size > 0
    outputs, _ = _centred(responses.outputs.chunk(2, dim=2)[0].permute(0, 3, 1, 2))
    followed = [_followed(centred, lag) for lag in (1, 2)]
    covariances = torch.einsum("mntk,motk->mno", centred, outputs) / (main.shape[2] * main.shape[3])
    share = (main - other).square().mean(3)[:, :, responses.kick :] / torch.where(varies, size, 1.0).square()[..., None]
    moments = torch.stack([main.mean((2, 3)), torch.log(size + TINY), *followed], dim=-1)
    covariances = F.pad(covariances, (0, max_outputs - covariances.shape[-1]), value=torch.nan)
    columns = torch.cat([moments, covariances, torch.log(share + MET) / 2], dim=-1)
    return torch.where((varies & responses.finite[:, None])[..., None] & columns.isfinite(), columns, torch.nan)


def num_statistics(num_steps: int, kick: int, max_outputs: int) -> int:
    """Number of statistics of a node."""
    return MOMENTS + max_outputs + num_steps - kick


def correlations(activity: Tensor) -> Tensor:
    """Correlations of nodes (models, plane, node, node) with each other, with what the others did a step before, and
    of what the others did with them a step before; 0 where a node does not vary.
    """
    centred, _ = _centred(activity.chunk(2, dim=3)[0])
    count = centred.shape[2] * centred.shape[3]
    now = centred.flatten(2) @ centred.flatten(2).mT
    before = centred[:, :, 1:].flatten(2) @ centred[:, :, :-1].flatten(2).mT
    return torch.stack([now, before, before.mT], dim=1) / count


def _centred(values: Tensor) -> tuple[Tensor, Tensor]:
    """Values (models, node, time, lane) with mean 0 and deviation 1, 0 where they are constant; and deviations."""
    centred = values - values.mean((2, 3), keepdim=True)
    square = centred.square().mean((2, 3), keepdim=True)
    varies = square > FLAT * values.square().mean((2, 3), keepdim=True)
    size = torch.where(varies, square, 1.0).sqrt()
    return torch.where(varies, centred / size, 0.0), torch.where(varies, size, 0.0)[:, :, 0, 0]


def _followed(centred: Tensor, lag: int) -> Tensor:
    later, earlier = centred[:, :, lag:], centred[:, :, : centred.shape[2] - lag]
    return (later * earlier).sum((2, 3)) / (centred.shape[2] * centred.shape[3])
