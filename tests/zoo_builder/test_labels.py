"""What every label promises, whatever it measures: columns, model-keyed inputs, and neighbours left alone."""

import pytest
import torch

from tests.members import ONE_OF_EACH_FAST
from tests.zoo_builder.linear_family import Linear
from weightspace.families.elman import Elman
from weightspace.families.gru import GRU
from weightspace.rollout.tangents import flatten, unflatten
from zoo_builder import labels
from zoo_builder.labels import Driven
from zoo_builder.labels.driven import JACOBIAN_STEPS, TRAJECTORIES, WINDOW
from zoo_builder.learning.base import fresh_params
from zoo_builder.members import Members
from zoo_builder.tasks.delayed_recall import DelayedRecall

IDS = ["a", "b", "c", "d", "e"]
TASK = DelayedRecall(num_steps=8)
VALUES = {"delay": torch.tensor([0, 1, 2, 3, 4], dtype=torch.float64)}
GENERAL = [name for name, label in labels.available().items() if label.for_all_families]
# With MKL told to be reproducible (see conftest) not a bit depends on the stack; elsewhere the last ones may.
TOLERANCE = 0 if torch.backends.mkl.is_available() else 1e-9
SMALL = Elman(input_size=1, hidden_size=4, output_size=2)


def same(first, second):
    return torch.equal(first.nan_to_num(7.25), second.nan_to_num(7.25))


@pytest.mark.parametrize("family", ONE_OF_EACH_FAST, ids=str)
def test_every_label_measures_the_columns_it_declares(family):
    columns = labels.columns(GENERAL, [family.effective_spec])
    measured = labels.measure(GENERAL, family, fresh_params(family, 0, IDS[:2]), None, Members(0, IDS[:2]))
    assert list(measured) == list(columns) == sorted(columns)
    for name, column in columns.items():
        assert column.name == name
        assert column.unit
        assert column.definition.endswith(".")
        assert column.source
        assert measured[name].shape == (2,)
        assert measured[name].dtype == torch.float64
        assert not measured[name].isinf().any()
    missing = {name for name in columns if measured[name].isnan().all()}
    answers = {"score", "loss", "generalisation_gap"}
    assert answers <= missing
    # Without a task there is no score; any other label says when it does not apply.
    assert all("Null where" in columns[name].definition for name in missing - answers)


def test_a_models_labels_depend_on_its_own_id_values_and_params_alone():
    params = fresh_params(SMALL, 0, IDS)
    together = labels.measure(GENERAL, SMALL, params, TASK, Members(0, IDS, VALUES))
    own = {name: tensor[3:4] for name, tensor in params.items()}
    alone = labels.measure(GENERAL, SMALL, own, TASK, Members(0, IDS[3:4], {"delay": VALUES["delay"][3:4]}))
    for name, column in together.items():
        torch.testing.assert_close(alone[name], column[3:4], rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)
    other_seed = labels.measure(["Memory"], SMALL, params, TASK, Members(1, IDS, VALUES))
    assert not same(other_seed["memory_decay_rate"], together["memory_decay_rate"])


def test_a_model_with_params_that_are_not_finite_has_no_labels_and_spares_the_others():
    params = fresh_params(SMALL, 0, IDS)
    healthy = labels.measure(GENERAL, SMALL, params, TASK, Members(0, IDS, VALUES))
    params["weight_hh.0"][1, 0, 0] = torch.nan
    params["bias_o"][4, 0] = torch.inf
    measured = labels.measure(GENERAL, SMALL, params, TASK, Members(0, IDS, VALUES))
    for name, column in measured.items():
        assert column[[1, 4]].isnan().all()
        assert same(column[[0, 2, 3]], healthy[name][[0, 2, 3]])


def test_a_model_whose_states_overflow_has_no_labels_of_them_and_spares_the_others():
    family = Linear(input_size=1, hidden_size=3, output_size=2)
    params = fresh_params(family, 0, IDS)
    healthy = labels.measure(GENERAL, family, params, TASK, Members(0, IDS, VALUES))
    params["a"][2] = torch.eye(3) * 1e30
    measured = labels.measure(GENERAL, family, params, TASK, Members(0, IDS, VALUES))
    assert measured["state_effective_rank"][2].isnan()
    assert measured["a_spectral_radius"][2] == pytest.approx(1e30)
    assert all(same(column[[0, 1, 3, 4]], healthy[name][[0, 1, 3, 4]]) for name, column in measured.items())


def test_columns_of_gate_rows_are_named_after_the_rows():
    gru, elman = GRU(input_size=1, hidden_size=2, output_size=1), Elman(input_size=1, hidden_size=2, output_size=1)
    columns = labels.columns(["Rank", "Dynamics"], [gru.spec, elman.spec])
    assert {"weight_hh_0_n_effective_rank", "weight_hh_0_z_spectral_radius"} <= set(columns)
    assert "weight_hh_0_effective_rank" in columns


def test_a_wrong_label_is_refused_with_the_near_match():
    with pytest.raises(ValueError, match="Did you mean 'Performance'"):
        labels.measure(["performance"], SMALL, fresh_params(SMALL, 0, IDS), TASK, Members(0, IDS, VALUES))


def drive(family, task=TASK, values=VALUES, ids=IDS):
    return Driven(family, fresh_params(family, 0, ids), task, Members(0, ids, values))


@pytest.mark.parametrize("family", [GRU(input_size=1, hidden_size=3, output_size=2, num_layers=2), SMALL], ids=str)
def test_jacobians_agree_with_reverse_mode_one_state_at_a_time(family):
    driven = drive(family)
    trajectory, jacobians = driven.trajectory, driven.jacobians
    size = family.spec.state_size
    assert jacobians.shape == (5, JACOBIAN_STEPS, TRAJECTORIES, size, size)
    for m, t, lane in [(0, 0, 0), (2, 5, 3), (4, JACOBIAN_STEPS - 1, TRAJECTORIES - 1)]:
        params = {name: tensor[m] for name, tensor in driven.params.items()}

        def step(flat, params=params, m=m, t=t, lane=lane):
            state = unflatten(family, flat[None])
            return flatten(family, family.step(params, state, trajectory.x[m, t, lane][None], {}))[0]

        expected = torch.autograd.functional.jacobian(step, trajectory.before[m, t, lane])
        torch.testing.assert_close(jacobians[m, t, lane], expected, rtol=1e-10, atol=1e-12)
        if t + 1 < WINDOW:
            after = step(trajectory.before[m, t, lane])
            torch.testing.assert_close(trajectory.before[m, t + 1, lane], after, rtol=1e-10, atol=1e-12)


def test_trajectories_are_driven_by_held_out_sequences_from_evenly_spread_places():
    task = DelayedRecall(num_steps=TRAJECTORIES, delay=0)
    driven = drive(SMALL, task, {})
    x, start, noise = driven.inputs.drive
    assert set(x.unique().tolist()) == {-1.0, 1.0}
    assert (start.shape, noise) == ((5, TRAJECTORIES, 0), {})
    steps = x.shape[1]
    pieces = -(-steps // TRAJECTORIES) + 1
    batch = task.sample({}, driven.streams("driven"), pieces * TRAJECTORIES, "test")
    # Lane 3 starts at step 3 of its first sequence and goes on with its second.
    first, second = batch.x[0, :, 3, 0], batch.x[0, :, TRAJECTORIES + 3, 0]
    assert torch.equal(x[0, : TRAJECTORIES - 3, 3, 0], first[3:].double())
    assert torch.equal(x[0, TRAJECTORIES - 3 : 2 * TRAJECTORIES - 3, 3, 0], second.double())


def test_tangents_start_as_random_corners_of_length_one_each_models_own():
    family = Elman(input_size=1, hidden_size=40, output_size=2)
    directions = drive(family).inputs.directions
    assert directions.shape == (5, TRAJECTORIES, 40)
    torch.testing.assert_close(directions.norm(dim=-1), torch.ones(5, TRAJECTORIES, dtype=torch.float64))
    assert len({tuple(row) for row in directions.flatten(0, 1).tolist()}) == 5 * TRAJECTORIES
    # Signs are fair: four standard errors of the mean of 6,400 of them.
    assert directions.sign().mean().abs() < 4 / 6400**0.5


def test_a_column_stands_for_the_label_that_measures_it():
    assert labels.measuring_column("memory_decay_rate") == "Memory"
    assert labels.measuring_column("Memory") == "Memory"
    assert labels.measuring_column("no_such_column") == "no_such_column"
