"""Statistics of weights by type and role, against numpy."""

import numpy as np
import torch

from tests.weightspace.encoders.models import stack_of
from weightspace.declaration import NODE_KINDS
from weightspace.encoders.statistics import Statistics, described
from weightspace.families.lstm import LSTM
from weightspace.families.second_order import SecondOrder
from weightspace.graph import CHANNELS, EDGE_TYPES
from weightspace.rows import channel_of

LAYERS = LSTM(input_size=2, hidden_size=4, output_size=3, num_layers=2)
ROLES = {"gate": 0, "timescale": 1, "drive": 2, "gain": 3}
"""Rows i, f, g, o of a LSTM."""


def expected_of(values):
    quantiles = np.quantile(values, [0, 0.25, 0.5, 0.75, 1])
    return np.array([values.mean(), values.var(), *quantiles])


def table_of(family):
    stack = stack_of(family, models=3)
    table = Statistics().read(stack)["weights"].unflatten(1, (len(EDGE_TYPES) + len(NODE_KINDS), CHANNELS)).numpy()
    return table, {name: value.numpy() for name, value in stack.params.items()}


def test_each_type_and_role_has_the_statistics_of_its_weights_in_all_layers():
    table, params = table_of(LAYERS)
    diagonal = np.eye(4, dtype=bool)
    for model in range(3):
        for role, row in ROLES.items():
            channel = channel_of(role, 0)
            maps = [params[f"weight_hh.{layer}"][model, row] for layer in (0, 1)]
            parts = {
                "recurrent": np.concatenate([m[~diagonal] for m in maps]),
                "self": np.concatenate([m[diagonal] for m in maps]),
                "input": params["weight_ih.0"][model, row].ravel(),
                "layer": params["weight_ih.1"][model, row].ravel(),
            }
            for name, values in parts.items():
                found = table[model, EDGE_TYPES.index(name), channel]
                np.testing.assert_allclose(found, expected_of(values), rtol=1e-12, atol=1e-14)
            biases = np.concatenate([params[f"bias.{layer}"][model, row] for layer in (0, 1)])
            found = table[model, len(EDGE_TYPES) + NODE_KINDS.index("hidden"), channel]
            np.testing.assert_allclose(found, expected_of(biases), rtol=1e-12, atol=1e-14)


def test_what_a_family_does_not_have_is_nan_and_nothing_else_is():
    table, _ = table_of(LAYERS)
    there = {(name, role) for name in ("recurrent", "self", "input", "layer") for role in ROLES} | {("output", "drive")}
    found = {
        (name, role)
        for i, name in enumerate(EDGE_TYPES)
        for role in (*ROLES, "other")
        for slot in (0, 1)
        if not np.isnan(table[:, i, channel_of(role, slot)]).any()
    }
    assert found == there


def test_statistics_leave_out_what_a_mask_removes():
    torch.manual_seed(0)
    values, present = torch.randn(5, 30, dtype=torch.float64), torch.rand(5, 30) < 0.4
    present[4] = False
    found = described(values, present).numpy()
    for row in range(4):
        np.testing.assert_allclose(found[row], expected_of(values[row][present[row]].numpy()), rtol=1e-12)
    assert np.isnan(found[4]).all()


def test_products_that_a_unit_is_part_of_are_self_connections():
    family = SecondOrder(input_size=2, hidden_size=3, output_size=1)
    table, params = table_of(family)
    tensor = params["weight_hhi"]
    own = [tensor[:, i, i].reshape(3, -1) for i in range(3)]
    own += [params["weight_hh"][:, i, i, None] for i in range(3)] if "weight_hh" in params else []
    slots = table[:, EDGE_TYPES.index("self"), channel_of("drive", 0)]
    for model in range(3):
        values = np.concatenate([part[model] for part in own])
        np.testing.assert_allclose(slots[model], expected_of(values), rtol=1e-12)
