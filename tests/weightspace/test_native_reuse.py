"""Gradients that lie where values of the forward pass lay: which do, and that nothing is lost by it."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from weightspace import families
from weightspace.families.base import Family, Noise, linear
from weightspace.rollout import generator, rollout
from weightspace.rollout.native.derive.adjoint import adjoint, pruned
from weightspace.rollout.native.engine.encoded import traced
from weightspace.rollout.native.engine.layout import laid_out
from weightspace.spec import Axis, Params, State, TensorSpec, WeightSpec

EXAMPLES = [example for family in families.available().values() for example in family.examples()]
ONE = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "negative": torch.neg,
    "scaled": lambda x: 2 * x - 1,
}
TWO = {"sum": torch.add, "difference": torch.sub, "product": torch.mul}


@dataclass(frozen=True, kw_only=True)
class Drawn(Family):
    """A cell drawn at random: gates, and a few operations on whatever has been computed until then."""

    hidden_size: int
    seed: int

    def declare(self) -> WeightSpec:
        axes = {
            "input": Axis(size=self.input_size, kind="input"),
            "hidden": Axis(size=self.hidden_size, kind="hidden", permutable=True),
            "output": Axis(size=self.output_size, kind="output"),
            "gate": Axis(size=3, kind="channel", names=("a", "b", "c")),
        }
        roles = ("drive",) * 3
        tensors = {
            "weight_ih": TensorSpec(axes=("gate", "hidden", "input"), row_roles=roles),
            "weight_hh": TensorSpec(axes=("gate", "hidden", "hidden"), row_roles=roles),
            "bias": TensorSpec(axes=("gate", "hidden"), row_roles=roles),
            "weight_ho": TensorSpec(axes=("output", "hidden")),
        }
        return WeightSpec(axes=axes, tensors=tensors, states={"h": "hidden", "c": "hidden"})

    def init(self, generator: torch.Generator) -> Params:
        return {name: torch.randn(self.spec.shape(name), generator=generator) / 3 for name in self.spec.tensors}

    def step(self, params: Params, state: State, x: Tensor, noise: Noise) -> State:
        draw = random.Random(self.seed)
        gates = linear(x, params["weight_ih"], params["bias"]) + linear(state["h"], params["weight_hh"])
        known = [torch.sigmoid(part) if draw.random() < 0.5 else part for part in gates.chunk(3, dim=-1)]
        known += [state["h"], state["c"]]
        for _ in range(draw.randrange(3, 9)):
            one, other = draw.sample(known[-6:], 2)
            name = draw.choice([*ONE, *TWO])
            known.append(ONE[name](one) if name in ONE else TWO[name](one, other))
            if draw.random() < 0.2:
                known.append(linear(known[-1], params["weight_hh"][draw.randrange(3)]))
        return {"h": torch.tanh(known[-1] + known[0]), "c": torch.tanh(known[-2] - known[1])}

    def readout(self, params: Params, state: State) -> Tensor:
        return linear(state["h"] * state["c"], params["weight_ho"])

    @classmethod
    def examples(cls) -> Sequence[Family]:
        return []


def way_back(family):
    """The program of a family, its way back for gradients of all params, and where both lie."""
    own = traced(family, torch.float64)
    builder = own.builder.copy()
    back = pruned(adjoint(own.program, builder), range(len(family.spec.tensors)), inputs=False, initial=False)
    return own.program, back, laid_out(own.program, back, builder.rows)


def moved(back, layout):
    """Gradients for weights that lie in the record."""
    return {one.dy.value for one in back.step_weights if layout.place[one.dy.value][0] == "record"}


@pytest.mark.parametrize(("name", "kept"), [("LSTM", 0), ("GRU", 1), ("MGU", 0), ("LIF", 1), ("Elman", 1)])
def test_gradients_of_gates_take_the_places_of_the_gates(name, kept):
    (family, *_) = families.available()[name].examples()
    _, back, layout = way_back(family)
    assert len({one.dy.value for one in back.step_weights} - moved(back, layout)) == kept


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_a_place_is_taken_only_when_nobody_reads_it_any_more(example):
    program, back, layout = way_back(example)
    rows = traced(example, torch.float64).builder.rows
    lasting = {ref.value for ref in program.states.values()}
    lasting |= {one.x.value for one in (*back.step_weights, *back.readout_weights) if one.x}
    forward = [value for value, (space, _) in layout.place.items() if space == "record" and value in rows]
    for gradient in moved(back, layout):
        taken: set[int] = set()
        for operation in back.step:
            # What an operation reads of the forward pass was not overwritten before.
            for ref in operation.reads:
                if ref.value in forward:
                    first = layout.place[ref.value][1] + ref.start
                    assert not taken & set(range(first, first + ref.rows))
            out = getattr(operation, "out", None)
            if out is not None and out.value == gradient:
                first = layout.place[gradient][1] + out.start
                taken |= set(range(first, first + out.rows))
        for value in lasting & set(forward):
            first = layout.place[value][1]
            assert not taken & set(range(first, first + rows[value]))


@pytest.mark.parametrize("seed", range(1, 41))
def test_cells_drawn_at_random_have_the_gradients_of_torch(seed):
    family = Drawn(input_size=3, hidden_size=5, output_size=2, seed=seed)
    draw = generator(seed, "m", "x")
    params = {
        name: torch.randn(2, *family.spec.shape(name), dtype=torch.float64, generator=draw) / 3
        for name in family.spec.tensors
    }
    x = torch.randn(2, 6, 19, 3, dtype=torch.float64, generator=draw)
    weight = torch.randn(2, 6, 19, 2, dtype=torch.float64, generator=draw)
    found = {}
    for method in ("native", "sequential"):
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in params.items()}
        (rollout(family, leaves, x, method=method).outputs * weight).sum().backward()
        found[method] = {name: leaf.grad for name, leaf in leaves.items()}
    for name, expected in found["sequential"].items():
        torch.testing.assert_close(found["native"][name], expected, rtol=1e-10, atol=1e-12)
