"""Lyapunov exponents of single units against QR decompositions of whole Jacobians, and closed forms."""

import pytest
import torch

from tests.members import EXAMPLES
from weightspace.families.gru import GRU
from weightspace.families.lru import LRU
from weightspace.families.para_gru import ParaGRU
from weightspace.rollout.sensitivities import memory_of, unit_jacobians
from zoo_builder import labels
from zoo_builder.labels import Driven
from zoo_builder.labels.driven import WINDOW
from zoo_builder.labels.lyapunov import ALIGNING, SPECTRUM_TRAJECTORIES, spectrum
from zoo_builder.labels.unit_lyapunov import unit_exponents
from zoo_builder.learning.base import fresh_params
from zoo_builder.members import Members

DIAGONAL = [example for example in EXAMPLES if example.spec.recurrence == "diagonal"]
IDS = ["a", "b"]


def driven_by_noise(family):
    return Driven(family, fresh_params(family, 0, IDS), None, Members(0, IDS))


@pytest.mark.parametrize("family", DIAGONAL, ids=str)
def test_the_whole_spectrum_is_that_of_qr_decompositions_of_whole_jacobians(family):
    driven = driven_by_noise(family)
    names, spec = memory_of(family).states, family.spec
    size = spec.size_of_state(names[0])
    order = list(spec.states)
    first = {name: sum(map(spec.size_of_state, order[:place])) for place, name in enumerate(order)}
    # Unit by unit, so that a decomposition of the whole decomposes each unit's block.
    read = torch.tensor([first[name] + unit for unit in range(size) for name in names])
    q, growth = torch.eye(len(read), dtype=torch.float64), []
    for t in range(WINDOW):
        before, x = driven.trajectory.before[:, t], driven.trajectory.x[:, t]
        whole = driven.jacobians_at(before, x, {})[..., read[:, None], read]
        q, r = torch.linalg.qr(whole @ q)
        growth.append(r.diagonal(dim1=-2, dim2=-1).abs().log())
    expected = torch.stack(growth).mean((0, 2)).sort(1).values
    found = unit_exponents(driven).flatten(1).sort(1).values
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_volumes_grow_as_the_label_of_the_spectrum_says():
    family = ParaGRU(input_size=1, hidden_size=5, output_size=1)
    driven, lanes = driven_by_noise(family), slice(SPECTRUM_TRAJECTORIES)
    logs = []
    for t in range(ALIGNING, WINDOW):
        state = {"h": driven.trajectory.before[:, t, lanes]}
        logs.append(unit_jacobians(family, driven.params, state, driven.trajectory.x[:, t, lanes], {}).abs().log())
    found = torch.stack(logs).mean((0, 2)).sum((1, 2, 3))
    torch.testing.assert_close(found, spectrum(driven)[0].sum(1), rtol=1e-8, atol=1e-8)


def test_linear_units_have_the_logarithms_of_their_radii():
    family = LRU(input_size=2, hidden_size=4, output_size=1, min_radius=0.3, max_radius=0.95)
    params = fresh_params(family, 0, IDS)
    found = labels.measure(["UnitLyapunov"], family, params, None, Members(0, IDS))
    radii = -torch.exp(params["nu"].double())
    torch.testing.assert_close(found["unit_lyapunov_largest"], radii.amax(1), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found["unit_lyapunov_smallest"], radii.amin(1), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found["unit_lyapunov_mean"], radii.mean(1), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found["unit_time_constant"], -1 / radii.quantile(0.5, dim=1), rtol=1e-9, atol=1e-9)


def test_units_that_forget_or_grow_and_families_that_mix_units_have_no_such_numbers():
    family = LRU(input_size=1, hidden_size=2, output_size=1)
    params = fresh_params(family, 0, IDS)
    params["nu"][0] = 9.0
    found = labels.measure(["UnitLyapunov"], family, params, None, Members(0, IDS))
    assert found["unit_lyapunov_smallest"].isfinite().tolist() == [False, True]
    dense = GRU(input_size=1, hidden_size=2, output_size=1)
    assert labels.measure(["UnitLyapunov"], dense, fresh_params(dense, 0, IDS), None, Members(0, IDS)) == {}
