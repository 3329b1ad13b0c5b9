"""Spectra, Markov parameters and the basis in which a linear recurrence is a wave."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from weightspace.families.elman import Elman
from weightspace.rollout import Streams, rollout
from zoo_builder.labels.waves import LASTING
from zoo_builder.tasks.variable_binding import VariableBinding

SHOWN = 24
"""Answers during which the wave is shown."""


def persistent(eigenvalues: Tensor) -> Tensor:
    """The eigenvalues (value,) that last, of those of one matrix."""
    return eigenvalues[eigenvalues.abs() > LASTING]


def argument_errors(eigenvalues: Tensor, expected: Tensor) -> Tensor:
    """Mean distance in rad (model,) of the arguments of the largest eigenvalues (model, value) from those expected.

    As many are taken as are expected (value,), and matched so that the sum of distances is least (Kuhn, The Hungarian
    method for the assignment problem, Naval Research Logistics Quarterly 1955). Their number is judged apart.
    """
    from scipy.optimize import linear_sum_assignment

    errors = []
    for values in eigenvalues:
        largest = values[values.abs().argsort(descending=True)[: len(expected)]]
        distances = (largest[:, None] * expected.conj()).angle().abs()
        rows, columns = linear_sum_assignment(distances.numpy())
        errors.append(distances[torch.from_numpy(rows), torch.from_numpy(columns)].mean())
    return torch.stack(errors)


def markov_parameters(into: Tensor, across: Tensor, out: Tensor, lags: int) -> Tensor:
    """G_k = W_ho W_hh^k W_ih (model, lag, value, value), lags 1 to `lags`: impulse responses around the origin."""
    carried, parameters = into, []
    for _ in range(lags):
        carried = across @ carried
        parameters.append(out @ carried)
    return torch.stack(parameters, 1)


def silence(parameters: Tensor, task: VariableBinding) -> Tensor:
    """Largest entry (model,) of Markov parameters (model, lag, value, value) at silent lags, over the least elsewhere.

    Both in absolute value. Silent are lags at which the law leaves nothing of an input; elsewhere its entries count.
    """
    newest = torch.eye(task.length * task.num_values, dtype=parameters.dtype)[None, :, -task.num_values :]
    law = markov_parameters(newest, task.transition, newest.mT, parameters.shape[1])[0]
    silent = (law == 0).flatten(1).all(1)
    loudest = parameters[:, silent].abs().flatten(1).amax(1)
    return loudest / parameters[:, law != 0].abs().amin(1)


def wave_basis(across: Tensor, out: Tensor, task: VariableBinding) -> tuple[Tensor, Tensor]:
    """The basis Psi (unit, step * value), oldest step first, and the mean size rho of the K* largest eigenvalues.

    C = P pinv(W_ho P), with P the projection on the modes of the K* largest eigenvalues, is the newest block; each step
    of W_hh / rho makes the block before. So W_hh / rho moves blocks by construction, and only that W_hh^s C / rho^s is
    C again says something about the network. Whatever else W_ho C = I leaves open turns a wave into a sum of waves.
    """
    values, modes = torch.linalg.eig(across)
    count = len(persistent(torch.linalg.eigvals(task.transition)))
    largest = values.abs().argsort(descending=True)[:count]
    projection = (modes[:, largest] @ torch.linalg.inv(modes)[largest]).real
    rho = values[largest].abs().mean()
    block = projection @ torch.linalg.pinv(out @ projection)
    blocks = [block]
    for _ in range(task.length - 1):
        blocks.append(across @ blocks[-1] / rho)
    return torch.cat(blocks[::-1], 1), rho


def wave_of(params: Mapping[str, Tensor], task: VariableBinding) -> Tensor:
    """Coordinates (time, step * value) of one network's states on one sequence, in its wave basis."""
    basis, _ = wave_basis(params["weight_hh.0"], params["weight_ho"], task)
    batch = task.sample({}, Streams(0, ["shown"], "wave"), 1, "test")
    hidden = params["weight_hh.0"].shape[0]
    family = Elman(input_size=task.input_size, output_size=task.output_size, hidden_size=hidden, bias=False)
    x = batch.x[:, : task.length + SHOWN].to(basis.dtype)
    states = rollout(family, {name: value[None] for name, value in params.items()}, x).states["h.0"][0, :, 0]
    wave: Tensor = states @ torch.linalg.pinv(basis).T
    return wave
