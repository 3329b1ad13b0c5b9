"""Cells that no family has, random ones and named ones: the native engine gives torch's numbers, or refuses them."""

import re

import pytest
import torch

from tests.weightspace.cell_judge import TOLERANCE, Undecided, _refuse_rounding, everything, judged, problem
from tests.weightspace.cells import Cell, outcomes, summary, wrong
from tests.weightspace.test_native import far
from weightspace.rollout import native

FEW, MANY, THOROUGH = 100, 10_000, 500


def judge(seeds, *, deep=False):
    found = list(outcomes(seeds, deep=deep))
    assert not wrong(found), summary(found)
    assert sum(one["outcome"] == "accepted" for one in found) > len(found) / 2, summary(found)


def test_a_hundred_random_cells_are_right_or_refused():
    judge(range(FEW))


@pytest.mark.slow
def test_ten_thousand_random_cells_are_right_or_refused():
    judge(range(MANY))


@pytest.mark.slow
def test_some_random_cells_are_right_in_every_way():
    judge(range(MANY, MANY + THOROUGH), deep=True)


def test_what_cancels_in_whole_is_rounding_and_a_wrong_number_is_not():
    expected = {"gradient": torch.zeros(3, dtype=torch.float64), "x": torch.ones(3, dtype=torch.float64)}
    with pytest.raises(Undecided):
        _refuse_rounding(
            {"gradient": torch.full((3,), 1e-14).double(), "x": torch.ones(3).double()},
            {"gradient": torch.full((3,), 3e-6), "x": torch.ones(3)},
            expected,
        )
    wrong_in_both = {"gradient": torch.full((3,), 1e-7).double(), "x": torch.ones(3).double()}
    _refuse_rounding(wrong_in_both, {name: value.float() for name, value in wrong_in_both.items()}, expected)
    _refuse_rounding({**expected, "x": torch.ones(3).double() + 1e-8}, expected, expected)


def cell(*body, answer="h", reading=(), noises=(), first=(), tensors=None, x=3, out=4, **after):
    """A cell of states of 4 units; its tensors are what its lines name: `w` square, `w_x` for inputs, `b` a vector."""
    shapes = {"w": (4, 4), "v": (4, 4), "w_x": (4, x), "wide": (8, x), "b": (4,), "g": (4,)}
    text = " ".join((*body, answer, *reading, *first, *after.values()))
    used = {name: shape for name, shape in shapes.items() if re.search(rf"\b{name}\b", text)}
    named = tuple((name, "trained", shape) for name, shape in (tensors or used or {"b": (4,)}).items())
    return Cell(
        input_size=x, output_size=out, states=tuple((name, 4) for name in after), tensors=named, noises=noises,
        after=tuple(after.values()), answer=answer, body=body, reading=reading, first=first,
    )  # fmt: skip


def products(count):
    """A sum of so many products of tiles of their own, no two of which can be joined."""
    tensors = {f"w{place}": (4, 4) for place in range(count)} | {"w_x": (4, 3)}
    tiles = [f"(torch.tanh(h) * {place + 1})" for place in range(count)]
    total = " + ".join(f"F.linear({tile}, w{place})" for place, tile in enumerate(tiles))
    return cell(h=f"torch.tanh(F.linear(x, w_x) + ({total}) / {count * 10})", tensors=tensors)


DRIVE = "z = F.linear(x, w_x) + F.linear(h, w, b)"
ACCEPTED = {
    "delay line": cell(DRIVE, h="torch.tanh(z)", c="h", d="c", answer="h + c * d"),
    "delay line of the new state": cell(DRIVE, "n = torch.tanh(z)", h="n", c="n", answer="F.linear(h, w) + c"),
    "swap": cell(h="c", c="h", answer="h"),
    "clamped tiles": cell(DRIVE, h="z.clamp(-0.4, 0.7) + 0.1 * x.clamp(min=0.2) @ w_x.t() - h.clamp(max=0.3)"),
    "swap and a product": cell(DRIVE, h="c", c="torch.tanh(z)", answer="h * c"),
    "states that stay": cell(h="h", c="torch.tanh(c + h)", answer="h * c"),
    "momentum": cell(DRIVE, "m = torch.sigmoid(g) * c", h="torch.tanh(m + z)", c="m", answer="F.linear(h, w)"),
    "momentum with a gate": cell(DRIVE, "m = torch.sigmoid(z) * c", h="torch.tanh(m + z)", c="m", answer="h"),
    "a product that is a state": cell(DRIVE, "p = torch.tanh(z) * h", h="torch.tanh(p + z)", c="p", answer="c"),
    "a product read twice": cell(DRIVE, "p = z * h", h="torch.tanh(p + z)", c="torch.sigmoid(p)", answer="h * c"),
    "a product that the read-out reads": cell(
        h="torch.tanh(h)", answer="F.linear(p, w) + s", reading=("p = h * b", "s = p + h")
    ),
    "halves of one value": cell("p, q = torch.tanh(F.linear(x, wide)).chunk(2, 1)", h="p", c="q", answer="h * c"),
    "halves of one sum": cell("p, q = F.linear(x, wide).chunk(2, dim=1)", h="p + h", c="q", answer="h + c"),
    "one value as two states": cell(DRIVE, "n = torch.tanh(z)", h="n", c="n", answer="h * c"),
    "the input as a state": cell(h="x", c="torch.tanh(c + h)", x=4, answer="h + c"),
    "noise as a state": cell(h="e", c="torch.tanh(c + h)", noises=(("e", 4),), answer="h * c"),
    "a state that is detached": cell(DRIVE, h="torch.tanh(z).detach()", c="torch.tanh(h + c)", answer="h + c"),
    "dead code beside a folded product": cell(DRIVE, "p = z * h", "q = p + h", "r = q * p", h="torch.tanh(z)"),
    "a folded product and a dead sum": cell(DRIVE, "p = z * h", "s = p + z", h="torch.tanh(p)"),
    "a read-out that joins": cell(DRIVE, h="torch.tanh(z)", c="h * c + z", answer="torch.cat([h, c, h], 1)", out=12),
    "overlapping parts": cell(
        DRIVE, "p = z[:, 1:] * z[:, :3]", "q = torch.cat([p, z[:, :1]], 1)", h="torch.tanh(q + z)"
    ),
    "sum of 12 products": products(12),
    "sum of 13 products": products(13),
    "sum of 40 products": products(40),
}  # fmt: skip
ANY = {
    "softplus with a slope": cell(DRIVE, h="torch.tanh(F.softplus(z, beta=2.0))"),
    "softplus with a threshold": cell(DRIVE, h="torch.tanh(F.softplus(z, threshold=0.5))"),
    "softplus with both": cell(DRIVE, h="torch.tanh(F.softplus(z, 3.0, 0.5))"),
    "a factor of rsub": cell(DRIVE, h="torch.tanh(torch.rsub(z, 0.5, alpha=3))"),
    "a factor of rsub of tiles": cell(DRIVE, h="torch.tanh(torch.rsub(z, h, alpha=3))"),
    "a factor of add": cell(DRIVE, h="torch.tanh(torch.add(z, h, alpha=3))"),
    "factors of addmm": cell(DRIVE, h="torch.tanh(torch.addmm(b, z, w, beta=0.5, alpha=2))"),
    "a negative slope": cell(DRIVE, h="torch.tanh(F.leaky_relu(z, -0.5))"),
    "a slope above 1": cell(DRIVE, h="torch.tanh(F.leaky_relu(z, 2.5))"),
    "tiles scaled by numbers and by vectors": cell(
        DRIVE, h="torch.tanh(z - 0.3 * h + c * g / 2)", c="c * b - h * g", answer="-h - 2 * (c * g)"
    ),
    "more scaled tiles than C adds at once": cell(
        "s, k = torch.sin(h), torch.cos(c)",
        "q = s * g - k / 3 + 0.1 * h - c * b + 0.2 * x - torch.sigmoid(h)",
        h="torch.tanh(F.linear(h, w) + q - 0.7 * (s + k))",
        c="q * 0.5",
        x=4,
        answer="h - c",
    ),
    "rounded division": cell(DRIVE, h="torch.tanh(z - torch.div(z, 0.5, rounding_mode='floor'))"),
    "a tensor made in the step": cell(DRIVE, h="torch.tanh(z * torch.tensor([0.5, 1, 2, 3], dtype=z.dtype))"),
    "a float32 tensor made in the step": cell(DRIVE, h="torch.tanh(z * torch.tensor([0.1, 0.2, 0.3, 0.4]))"),
    "a number made a tensor": cell(DRIVE, h="torch.tanh(z * torch.tensor(0.3))"),
    "whole numbers made in the step": cell(DRIVE, h="torch.tanh(z * torch.arange(4))"),
    "the number of sequences as a factor": cell(DRIVE, h="torch.tanh(z * (0.1 * x.shape[0]))"),
    "the number of sequences as a divisor": cell(DRIVE, h="torch.tanh(z / len(x))"),
    "the number of sequences as an addend": cell(DRIVE, h="torch.tanh(z + 1 / x.size(0))"),
    "zeros for every sequence": cell(DRIVE, h="torch.tanh(z + torch.zeros(x.shape[0], 4, dtype=z.dtype))"),
    "a column for every sequence": cell(DRIVE, h="torch.tanh(z + torch.ones(len(x), 1, dtype=z.dtype))"),
    "a number for every sequence": cell(DRIVE, h="torch.tanh(z + torch.full((len(x), 4), 1 / len(x), dtype=z.dtype))"),
    "size of the input as a factor": cell(DRIVE, h="torch.tanh(z / x.shape[1])"),
    "params changed in place": cell(DRIVE, "k = w.clone()", "k.fill_diagonal_(0)", h="torch.tanh(z + F.linear(h, k))"),
    "a part of params changed in place": cell(DRIVE, "k = b + 0", "k[:1] += 1", h="torch.tanh(z + k)"),
    "a value changed in place": cell(DRIVE, "k = z.clone()", "k += h", h="torch.tanh(k)"),
    "a part of a value changed in place": cell(DRIVE, "k = z.clone()", "k[:, :1] = h[:, :1]", h="torch.tanh(k)"),
    "a value changed after it is read": cell(DRIVE, "k = z.clone()", "q = k * 2", "k.mul_(3)", h="torch.tanh(q + k)"),
    "a part read before the whole changes": cell(
        DRIVE, "k = z.clone()", "q = k[:, :4]", "k.add_(1)", h="torch.tanh(q + k)"
    ),
    "a state that is constant": cell(DRIVE, h="torch.tanh(z)", c="torch.zeros_like(h)", answer="h + c"),
    "an output that is constant": cell(DRIVE, h="torch.tanh(z)", answer="h.new_zeros(h.shape[0], 4)"),
    "places that a task gives": cell(DRIVE, h="torch.tanh(z)", first=("start @ v[:2]",)),
    "a start of params": cell(DRIVE, h="torch.tanh(z)", first=("torch.tanh(b).expand(len(start), 4)",)),
    "a place where a task gives one": cell(
        DRIVE, h="torch.tanh(z)", first=("start @ v[:2] if start.shape[1] else start.new_zeros(len(start), 4)",)
    ),
}  # fmt: skip


AT_ZERO = ("torch.log(x)", "1 - torch.tanh(x) / x", "torch.sqrt(x)", "torch.log(x * x)", "torch.exp(-torch.log(x))")


@pytest.mark.parametrize("batch", [1, 5, 19, 33])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("text", AT_ZERO)
def test_places_of_sequences_that_are_not_there_spoil_nothing(text, dtype, batch):
    # These are run beside the others on zeros, where each of these functions or its derivative is infinite.
    family = cell(f"k = {text}", h="torch.tanh(0.1 * F.linear(k, w_x) + b * h)", c="k * 0.1", x=4, answer="h * c")
    assert native.why_not(family, dtype) is None
    own = problem(family, 0, 3, batch)
    own.x = own.x.abs() + 0.3
    leaves = [*(f"param {name}" for name in own.params), "x", "initial h", "initial c"]
    weights = {"outputs": own.normal(2, 3, batch, 4)}
    expected = everything(own, "sequential", leaves, weights, given=True)
    found = everything(own.of(dtype), "native", leaves, weights, given=True)
    for name, value in expected.items():
        assert far(found[name].double(), value) < TOLERANCE[dtype], name


def test_bytes_do_not_depend_on_threads_where_parts_of_a_tensor_overlap():
    text = "torch.tanh(F.linear(x, w_x) + F.linear(h, w[:4]) + F.linear(torch.tanh(h), w[1:]))"
    family = cell(h=text, tensors={"w": (5, 4), "w_x": (4, 3)})
    own, found = problem(family, 0, 7, 75, models=1).of(torch.float32), []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        found.append(everything(own, "native", ["param w"], {"outputs": torch.ones(1)}, given=True))
    torch.set_num_threads(1)
    assert torch.equal(found[0]["gradient of param w"], found[1]["gradient of param w"])


@pytest.mark.parametrize("name", ACCEPTED)
def test_cells_that_are_unlike_any_family_are_run_natively_and_right(name):
    found = judged(ACCEPTED[name], 0, deep=True)
    assert found["outcome"] == "accepted", f"{found}\n{ACCEPTED[name]}"


@pytest.mark.parametrize("name", ANY)
def test_what_the_engine_may_refuse_is_right_where_it_does_not(name):
    found = judged(ANY[name], 0, deep=True)
    assert found["outcome"] in ("accepted", "refused"), f"{found}\n{ANY[name]}"
