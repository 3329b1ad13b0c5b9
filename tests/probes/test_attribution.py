"""Weight times gradient against closed forms, under permutations, and as a part of what probes predict."""

import numpy as np
import pytest
import torch

from probes import attribution
from probes.attribution import Reading, attribute, explained, made_by, occlude, reading_of, unit_sums
from probes.evaluation import evaluate
from probes.feature_sets import Embedding
from probes.problem import read_rows
from probes.targets import named_target
from tests.weightspace.zoos import write_zoo
from weightspace import encoders
from weightspace.families.cprnn import CPRNN
from weightspace.families.elman import Elman
from weightspace.families.gru import GRU
from weightspace.store import Stack, open_zoo

FAMILIES = (
    Elman(input_size=2, hidden_size=4, output_size=3),
    GRU(input_size=2, hidden_size=3, output_size=2),
    CPRNN(input_size=1, hidden_size=4, output_size=2, rank=3),
)


def stack_of(family, models=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    drawn = [family.spec.random_params(generator) for _ in range(models)]
    return Stack(family, {name: torch.stack([one[name] for one in drawn]) for name in drawn[0]}, torch.arange(models))


class Linear:
    """An embedding that is linear in the weights: flattened params @ matrix (weights, embedding_dim)."""

    def __init__(self, matrix):
        self.matrix = matrix

    def __call__(self, stacks):
        return torch.cat([torch.cat([t.flatten(1) for t in s.params.values()], 1) @ self.matrix for s in stacks])


def untrained(name, family):
    torch.manual_seed(0)
    encoder = encoders.available()[name]().double().eval()
    encoder.fit_standardisation([stack_of(family, models=8, seed=1)])
    return encoder


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: type(family).__name__)
def test_of_a_linear_prediction_it_is_weight_times_coefficient_and_complete(family):
    stack = stack_of(family)
    flat = torch.cat([tensor.flatten(1) for tensor in stack.params.values()], 1)
    matrix = torch.randn(flat.shape[1], 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    reading = Reading(np.linspace(-1, 1, 5), 0.25)
    prediction, attributed = attribute(Linear(matrix), reading, stack)
    expected = flat * (matrix @ torch.as_tensor(reading.weights))
    assert torch.allclose(torch.cat([a.flatten(1) for a in attributed.values()], 1), expected, atol=1e-12)
    assert torch.allclose(expected.sum(1) + 0.25, prediction, atol=1e-12)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: type(family).__name__)
def test_of_a_linear_prediction_occlusion_is_weight_times_gradient(family, monkeypatch):
    monkeypatch.setattr(attribution, "OCCLUDED_AT_ONCE", 7)
    stack = stack_of(family)
    size = sum(tensor[0].numel() for tensor in stack.params.values())
    encode = Linear(torch.randn(size, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    reading = Reading(np.linspace(-1, 1, 5), 0.25)
    (prediction, expected), (again, found) = (one(encode, reading, stack) for one in (attribute, occlude))
    assert torch.allclose(prediction, again)
    assert all(torch.allclose(found[name], values, atol=1e-10) for name, values in expected.items())


def test_encoders_that_let_no_gradient_through_are_told_so_and_occluded():
    family, zeros = FAMILIES[0], Reading(np.ones(64), 0.0)
    encoder, stack = untrained("Spectra", family), stack_of(family, models=1)
    with pytest.raises(ValueError, match="Spectra lets no gradient through"):
        attribute(encoder, zeros, stack)
    (name,) = family.spec.recurrent()
    prediction, attributed = occlude(encoder, zeros, stack)
    without = stack.params[name].clone()
    without[0, 1, 2] = 0.0
    other = occlude(encoder, zeros, Stack(family, {**stack.params, name: without}, stack.rows))[0]
    assert float(attributed[name][0, 1, 2]) == pytest.approx(float(prediction[0] - other[0]), abs=1e-6)
    assert float(attributed[name].abs().max()) > 1e-4


@pytest.mark.parametrize("name", ["MessagePassing", "EquivariantLinear", "SignEquivariant"])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: type(family).__name__)
def test_a_permuted_model_has_the_permuted_attribution(name, family):
    spec, encoder, stack = family.spec, untrained(name, family), stack_of(family)
    element = spec.random_element(torch.Generator().manual_seed(5))
    permutation = type(element)(element.permutations, spec.identity().gauges)
    params = [{key: tensor[i] for key, tensor in stack.params.items()} for i in range(2)]
    acted = [spec.act(permutation, one) for one in params]
    moved = Stack(family, {key: torch.stack([one[key] for one in acted]) for key in acted[0]}, stack.rows)
    reading = Reading(np.random.default_rng(0).normal(size=encoder.embedding_dim), 0.0)
    prediction, attributed = attribute(encoder, reading, stack)
    again, of_moved = attribute(encoder, reading, moved)
    assert torch.allclose(prediction, again, atol=1e-8)
    scale = max(float(values.abs().max()) for values in attributed.values())
    assert scale > 1e-6
    for i in range(2):
        expected = spec.act(permutation, {key: values[i] for key, values in attributed.items()})
        for key, values in expected.items():
            assert torch.allclose(of_moved[key][i], values, atol=1e-7 * scale), key
    sums, of_moved_sums = unit_sums(spec, attributed), unit_sums(spec, of_moved)
    for axis, values in sums.items():
        assert torch.allclose(of_moved_sums[axis], values[:, element.permutations[axis]], atol=1e-6 * scale)


def test_it_is_the_slope_along_each_weight():
    family = FAMILIES[0]
    encoder, stack = untrained("MessagePassing", family), stack_of(family, models=1)
    reading = Reading(np.random.default_rng(0).normal(size=encoder.embedding_dim), 0.0)
    _, attributed = attribute(encoder, reading, stack)
    for name, index in ((family.spec.recurrent()[0], (0, 1, 2)), (next(iter(stack.params)), (0, 0, 0))):
        slopes = []
        for step in (1e-5, -1e-5):
            params = {key: tensor.clone() for key, tensor in stack.params.items()}
            params[name][index] *= 1 + step
            slopes.append(attribute(encoder, reading, Stack(family, params, stack.rows))[0][0] / 2e-5)
        assert float(slopes[0] - slopes[1]) == pytest.approx(float(attributed[name][index]), rel=1e-4, abs=1e-8)


def test_sums_over_units_share_a_weight_between_its_hidden_ends():
    family = FAMILIES[0]
    spec = family.spec
    generator = torch.Generator().manual_seed(0)
    values = {name: torch.randn(1, *spec.shape(name), generator=generator) for name in spec.tensors}
    (axis,) = spec.permutable
    expected = torch.zeros(4)
    for name, tensor in values.items():
        axes = spec.tensors[name].axes
        if axes == (axis, axis):
            expected += 0.5 * tensor[0].sum(0) + 0.5 * tensor[0].sum(1)
        elif axis in axes:
            expected += tensor[0].movedim(axes.index(axis), 0).reshape(4, -1).sum(1)
    assert torch.allclose(unit_sums(spec, values)[axis][0], expected, atol=1e-5)
    joined = sum(values[name].sum() for name in values if axis in spec.tensors[name].axes)
    assert float(unit_sums(spec, values)[axis].sum()) == pytest.approx(float(joined), abs=1e-4)


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """A zoo, an encoder of its weights, and the evaluation of its embedding."""
    folder = write_zoo(tmp_path_factory.mktemp("zoo") / "zoo", FAMILIES[:1], models=40, rollouts=False)
    zoo = open_zoo(folder)
    size = sum(int(np.prod(FAMILIES[0].spec.shape(name))) for name in FAMILIES[0].spec.tensors)
    encode = Linear(torch.randn(size, 6, generator=torch.Generator().manual_seed(0)))
    values = torch.cat([encode([stack]) for stack in zoo.stacks()]).double().numpy()
    embedding = Embedding(name="embedding:linear", made_for={("in_distribution", None): values})
    return zoo, encode, embedding, evaluate(zoo.table, [embedding], [named_target(zoo.table, "trace")])


def test_the_reading_gives_the_predictions_that_were_judged(judged):
    _, _, embedding, evaluation = judged
    within = next(p for p in evaluation.predictions if p.metric == "r2_within_cell")
    (problem,) = within.question.problems
    reading = reading_of(problem, embedding)
    values = embedding.made_for["in_distribution", None][problem.test]
    assert values @ reading.weights + reading.offset == pytest.approx(within.predicted, abs=1e-9)


def test_explained_predictions_are_those_that_were_judged(judged):
    zoo, encode, embedding, evaluation = judged
    within = next(p for p in evaluation.predictions if p.metric == "r2_within_cell")
    assert made_by(encode, zoo, read_rows(zoo.table), [embedding]) is embedding
    (one,) = explained(encode, zoo, within, 0.5)
    place = within.question.test.tolist().index(one.row)
    assert one.prediction == pytest.approx(float(within.predicted[place]), abs=1e-5)
    assert one.true == pytest.approx(float(within.question.truth("r2_within_cell")[place]))
    reading = reading_of(within.question.problems[0], embedding)
    total = sum(float(values.double().sum()) for values in one.tensors.values())
    assert total + reading.offset == pytest.approx(one.prediction, abs=1e-4)
    assert (one.target, one.features, one.value) == ("trace", "embedding:linear", 0.5)


def test_an_encoder_that_made_none_of_the_embeddings_is_not_taken_for_one_that_did(judged):
    zoo, encode, embedding, _ = judged
    other = Linear(encode.matrix + 0.1)
    assert made_by(other, zoo, read_rows(zoo.table), [embedding]) is None
    assert made_by(encode, zoo, read_rows(zoo.table), []) is None
