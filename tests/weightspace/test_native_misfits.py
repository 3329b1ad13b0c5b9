"""Data that C could not read rightly are refused before it is called, and what autograd would get wrong is refused."""

import dataclasses

import pytest
import torch

from weightspace.families.elman import Elman
from weightspace.rollout import generator, native, rollout
from weightspace.rollout.criterion import Criterion
from weightspace.rollout.forward import answered
from weightspace.rollout.gradients import losses_and_gradients

FAMILY = Elman(input_size=2, hidden_size=4, output_size=6)


def params(models=2, dtype=torch.float32, family=FAMILY):
    draws = [family.spec.random_params(generator(0, str(i), "params"), dtype) for i in range(models)]
    return {name: torch.stack([draw[name] for draw in draws]) for name in family.spec.tensors}


def inputs(models=2, time=5, batch=3):
    return torch.randn(models, time, batch, 2, generator=generator(0, "m", "x"))


def learned(criterion, x=None, **changed):
    x = inputs() if x is None else x
    return losses_and_gradients(
        FAMILY, {**params(), **changed}, FAMILY.spec.trained, x, x.new_zeros(2, 3, 0), criterion, method="native"
    )


def asked(target, weight=None, classes=3):
    return Criterion("cross_entropy", target, torch.full((2, 5), 0.2) if weight is None else weight, classes)


TARGET = torch.zeros(2, 5, 3, 2, dtype=torch.int64)


@pytest.mark.parametrize("shape", [(2, 0, 3), (0, 5, 3), (2, 5, 0)])
def test_a_rollout_of_nothing_is_refused_in_words(shape):
    x = torch.zeros(*shape, 2)
    for method in ("native", "stacked", "sequential"):
        with pytest.raises(ValueError, match="at least one"):
            rollout(FAMILY, params(), x, method=method)


@pytest.mark.parametrize("target", [3, -2, 2**40])
def test_a_class_out_of_range_is_refused(target):
    wrong = TARGET.clone()
    wrong[1, 2, 1, 0] = target
    with pytest.raises(ValueError, match="with 3 classes they go from 0 to 2"):
        learned(asked(wrong))


@pytest.mark.parametrize("weight", [-0.1, torch.nan])
def test_a_negative_weight_is_refused(weight):
    weights = torch.full((2, 5), 0.2)
    weights[1, 3] = weight
    with pytest.raises(ValueError, match="weights below 0 or NaN"):
        learned(asked(TARGET, weights))


def test_classes_that_do_not_divide_the_outputs_are_refused():
    with pytest.raises(ValueError, match="4 classes, which do not divide 6 outputs"):
        learned(asked(TARGET[..., :1], classes=4))


def test_targets_of_any_integer_dtype_are_the_same_questions():
    expected = learned(asked(TARGET))[0]
    assert torch.equal(learned(asked(TARGET.to(torch.int32)))[0], expected)
    x, start = inputs(), torch.zeros(2, 3, 0)
    wide, narrow = (answered(FAMILY, params(), x, start, {}, asked(TARGET.to(d))) for d in (torch.int64, torch.int32))
    assert all(torch.equal(one, other) for one, other in zip(wide, narrow, strict=True))


def test_params_of_a_wrong_shape_are_refused_by_name():
    for shape in ((2, 4, 5), (2, 5, 4), (2, 16), (3, 4, 4)):
        wrong = {"weight_hh.0": torch.zeros(shape)}
        with pytest.raises(ValueError, match=r"weight_hh\.0|params of shape"):
            learned(asked(TARGET), **wrong)
        with pytest.raises(ValueError, match=r"weight_hh\.0|params of shape"):
            rollout(FAMILY, {**params(), **wrong}, inputs(), method="native")


def test_a_second_derivative_is_refused_and_not_wrong():
    x = inputs().requires_grad_()
    outputs = rollout(FAMILY, params(), x, method="native").outputs
    (slope,) = torch.autograd.grad(outputs.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        slope.square().sum().backward()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Starting(Elman):
    """An Elman network whose first state a subclass states."""

    def first(self, params, start):
        raise NotImplementedError

    def initial_state(self, params, start):
        return {"h.0": self.first(params, start)}


class FilledInPlace(Starting):
    def first(self, params, start):
        state = start.new_zeros(start.shape[0], self.hidden_size)
        state += params["bias.0"]
        return state


class OfWhatTheTaskSupplies(Starting):
    def first(self, params, start):
        zeros = start.new_zeros(start.shape[0], self.hidden_size)
        return zeros + start.sum(1, keepdim=True) * params["bias.0"] if start.shape[1] else zeros


class OfOneSequence(Starting):
    def first(self, params, start):
        return params["bias.0"].expand(1, -1)


@pytest.mark.parametrize("kind", [FilledInPlace, OfWhatTheTaskSupplies, OfOneSequence])
@pytest.mark.parametrize("start_size", [0, 3])
def test_first_states_are_those_of_the_sequential_reference(kind, start_size):
    family = kind(input_size=2, hidden_size=4, output_size=6)
    assert native.why_not(family, torch.float64) is None
    draw = generator(0, "m", "start")
    start = torch.randn(2, 3, start_size, dtype=torch.float64, generator=draw)
    x = torch.randn(2, 5, 3, 2, dtype=torch.float64, generator=draw)
    values = params(dtype=torch.float64, family=family)
    answers, gradients = {}, {}
    for method in ("native", "sequential"):
        leaves = {name: value.clone().requires_grad_() for name, value in values.items()}
        answers[method] = rollout(family, leaves, x, start, method=method).outputs
        gradients[method] = torch.autograd.grad(answers[method].square().sum(), list(leaves.values()))
    torch.testing.assert_close(answers["native"], answers["sequential"], rtol=1e-10, atol=1e-12)
    for found, expected in zip(gradients["native"], gradients["sequential"], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
