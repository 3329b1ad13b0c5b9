"""Sums that one step's adjoint leaves to the read-out of the step before: the same bytes as where each is a pass."""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from weightspace.families.base import Family, Noise, linear
from weightspace.families.gru import GRU
from weightspace.families.lru import LRU
from weightspace.rollout import generator, rollout
from weightspace.rollout.criterion import Criterion
from weightspace.rollout.gradients import losses_and_gradients
from weightspace.rollout.native.derive.deferred import deferred
from weightspace.rollout.native.derive.sound import refuse_unsound
from weightspace.rollout.native.engine import encoded
from weightspace.rollout.native.trace.program import Untraceable
from weightspace.spec import Axis, Params, State, TensorSpec, WeightSpec


@dataclass(frozen=True, kw_only=True)
class Oscillators(Family):
    """u' = a u - b v + tanh(W x), v' = a v + b u: gradients of its states are no factors of gradients of weights."""

    hidden_size: int

    def declare(self) -> WeightSpec:
        axes = {
            "input": Axis(size=self.input_size, kind="input"),
            "hidden": Axis(size=self.hidden_size, kind="hidden", permutable=True),
            "output": Axis(size=self.output_size, kind="output"),
        }
        tensors = {
            "damping": TensorSpec(axes=("hidden",), diagonal=True),
            "turn": TensorSpec(axes=("hidden",), diagonal=True),
            "weight_ih": TensorSpec(axes=("hidden", "input")),
            "weight_ho": TensorSpec(axes=("output", "hidden")),
            "weight_vo": TensorSpec(axes=("output", "hidden")),
        }
        return WeightSpec(axes=axes, tensors=tensors, states={"u": "hidden", "v": "hidden"}, recurrence="diagonal")

    def init(self, generator: torch.Generator) -> Params:
        return {name: torch.randn(self.spec.shape(name), generator=generator) / 2 for name in self.spec.tensors}

    def step(self, params: Params, state: State, x: Tensor, noise: Noise) -> State:
        a, b, u, v = params["damping"], params["turn"], state["u"], state["v"]
        return {"u": a * u - b * v + torch.tanh(linear(x, params["weight_ih"])), "v": a * v + b * u}

    def readout(self, params: Params, state: State) -> Tensor:
        return linear(state["u"], params["weight_ho"]) + linear(state["v"], params["weight_vo"])

    @classmethod
    def examples(cls) -> Sequence[Family]:
        return []


FAMILIES = [LRU(input_size=3, hidden_size=5, output_size=2), Oscillators(input_size=3, hidden_size=5, output_size=2)]
TIMES = [1, 2, 3, 60]
"""Lengths of sequences; the longest has several rings of gradients for weights."""


@pytest.fixture
def apart(monkeypatch):
    """Function that makes every sum a pass of its own from now on."""

    def forget():
        encoded.engine.cache_clear()
        encoded.learning_engine.cache_clear()

    def make_apart():
        monkeypatch.setattr(encoded, "deferred", lambda back, builder: None)
        forget()

    forget()
    yield make_apart
    forget()


def drawn(family, time, batch):
    draws = [family.init(generator(0, str(model), "init")) for model in range(2)]
    params = {name: torch.stack([draw[name] for draw in draws]) for name in family.spec.tensors}
    return params, torch.randn(2, time, batch, family.input_size, generator=generator(0, "m", "x"))


def adjoint_of(family):
    """A family's program, builder and adjoint for the gradients of its tensors."""
    source = encoded.traced(family, torch.float32)
    builder = source.builder.copy()
    tensors = frozenset(range(len(source.stored) + len(source.computed)))
    back = encoded._adjoint_of(source.program, builder, encoded.Wanted(tensors), tensors)
    return source.program, builder, back


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_both_sums_of_a_turning_state_are_left_to_the_step_before(family):
    program, builder, back = adjoint_of(family)
    split = deferred(back, builder)
    assert len(back.step) - len(split.step) == 2
    assert len(split.readout) == len(back.readout)
    refuse_unsound(program, builder.rows, back, split, once=False)


def test_a_sum_of_more_than_what_is_carried_stays_where_it_is():
    _, builder, back = adjoint_of(GRU(input_size=3, hidden_size=5, output_size=2))
    assert deferred(back, builder) is None


def test_a_sum_that_nobody_takes_over_is_refused():
    program, builder, back = adjoint_of(FAMILIES[0])
    split = deferred(back, builder)
    with pytest.raises(Untraceable, match="before it is computed"):
        refuse_unsound(program, builder.rows, back, type(split)(split.step, back.readout[:1], split.later), once=False)


@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_gradients_of_a_loss_at_some_steps_have_the_same_bytes(family, time, apart):
    params, x = drawn(family, time, 19)
    # Steps that count and steps that do not, in turns of one, two and three.
    weight = torch.tensor([1.0, 0, 1, 1, 0, 0, 1, 1, 1, 0, 0, 0])[torch.arange(time).flip(0) % 12].expand(2, time)
    target = torch.randint(2, (2, time, 19, 1), generator=generator(0, "m", "target"))

    def gradients():
        criterion = Criterion("cross_entropy", target, weight, 2)
        run = (family, params, family.spec.trained, x, x.new_zeros(2, 19, 0), criterion)
        losses, gradients = losses_and_gradients(*run, method="native")
        return [losses, *gradients.values()]

    joined = gradients()
    apart()
    assert all(torch.equal(first, second) for first, second in zip(joined, gradients(), strict=True))
    assert time == 1 or all(bool(part.any()) for part in joined)


@pytest.mark.parametrize("through_states", [False, True])
@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_gradients_that_come_from_outside_have_the_same_bytes(family, time, through_states, apart):
    params, x = drawn(family, time, 37)

    def gradients():
        leaves = [leaf.detach().clone().requires_grad_() for leaf in (*params.values(), x)]
        run = rollout(family, dict(zip(params, leaves, strict=False)), leaves[-1], method="native")
        total = run.outputs.square().sum()
        if through_states:
            total = total + sum(state.square().sum() for state in run.states.values())
        return torch.autograd.grad(total, leaves, materialize_grads=True, allow_unused=True)

    joined = gradients()
    apart()
    assert all(torch.equal(first, second) for first, second in zip(joined, gradients(), strict=True))
