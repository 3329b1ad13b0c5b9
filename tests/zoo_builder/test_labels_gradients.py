"""Gradient norms against lag, by closed forms and by one backward pass."""

import math

import pytest
import torch

from tests.zoo_builder.linear_family import Linear
from weightspace.families.gru import GRU
from weightspace.rollout.tangents import flatten, unflatten
from zoo_builder import labels
from zoo_builder.labels import Driven
from zoo_builder.labels.driven import JACOBIAN_STEPS
from zoo_builder.labels.gradients import MAX_LAG, log_gradients
from zoo_builder.learning.base import fresh_params
from zoo_builder.members import Members
from zoo_builder.tasks.delayed_recall import DelayedRecall


def test_gradients_of_a_scaled_rotation_decay_by_its_scale_and_those_of_a_shift_vanish():
    family, ids = Linear(input_size=1, hidden_size=3, output_size=2), ["a", "b", "c"]
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).Q
    shift = torch.diag(torch.ones(2, dtype=torch.float64), -1)
    params = {name: value.double() for name, value in fresh_params(family, 0, ids).items()}
    params["a"] = torch.stack([0.8 * rotation, 1.1 * rotation, shift])
    slope = labels.measure(["GradientFlow"], family, params, None, Members(0, ids))["gradient_log_slope"]
    assert slope[:2].tolist() == pytest.approx([math.log(0.8), math.log(1.1)], rel=1e-6)
    assert slope[2].isnan()


def test_gradients_agree_with_one_backward_pass_through_the_same_steps():
    family, ids = GRU(input_size=1, hidden_size=3, output_size=2, num_layers=2), ["a", "b"]
    driven = Driven(family, fresh_params(family, 0, ids), DelayedRecall(), Members(0, ids))
    found, trajectory = log_gradients(driven), driven.trajectory
    v = driven.streams("gradients").normal(trajectory.before.shape[2], 2, dtype=torch.float64)
    v = v / v.norm(dim=-1, keepdim=True)
    for m in range(2):
        params = {name: value[m] for name, value in driven.params.items()}
        flat = trajectory.before[m, JACOBIAN_STEPS - MAX_LAG].clone().requires_grad_()
        states = [flat]
        for t in range(JACOBIAN_STEPS - MAX_LAG, JACOBIAN_STEPS):
            state = family.step(params, unflatten(family, states[-1]), trajectory.x[m, t], {})
            states.append(flatten(family, state))
        output = (family.readout(params, unflatten(family, states[-1])) * v[m]).sum()
        for lag in range(MAX_LAG + 1):
            (gradient,) = torch.autograd.grad(output, states[-1 - lag], retain_graph=True)
            expected = gradient.norm(dim=-1).mean().log()
            assert found[m, lag].item() == pytest.approx(expected.item(), rel=1e-9)
