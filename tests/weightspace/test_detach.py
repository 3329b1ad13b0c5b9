"""Where a family detaches, native gradients, tangents and Jacobians stop as torch's do; or torch takes over."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from tests.weightspace.test_native import TOLERANCE, criteria, everything, far, stack
from weightspace.families.elman import Elman
from weightspace.rollout import generator, native, rollout
from weightspace.rollout.gradients import losses_and_gradients
from weightspace.rollout.native.engine import encoded as engine
from weightspace.rollout.tangents import jacobians, tangent_rollout


@dataclasses.dataclass(frozen=True, kw_only=True)
class Everywhere(Elman):
    """Detaches inputs, states, params, sums, products, parts and what is put together."""

    def step(self, params, state, x, noise):
        h, below = state["h.1"], state["h.0"]
        own, other = params["weight_hh.0"], params["weight_hh.1"]
        a = torch.tanh(F.linear(x, params["weight_ih.0"], params["bias.0"]) + F.linear(below.detach(), own))
        # Products of one tile, of which one stops: they may not become one.
        b = F.linear(below, own.detach()) + F.linear(below, other) + F.linear(below.detach(), own)
        c = torch.sigmoid((h * b).detach() + h * a.detach() + a.detach())
        left, right = torch.cat([a, b], dim=1).detach().chunk(2, dim=1)
        d = torch.maximum(h, left) - torch.sin(right) / (1.5 + c) + params["bias.1"].detach().exp()
        e = (F.linear(c, other) + params["bias.1"]).detach() * d + torch.sub(h.detach(), a * params["bias.0"].detach())
        # These two do become one, of which one half stops.
        f = b + torch.tanh(F.linear(h, own)) * F.linear(h, other).detach()
        return {"h.0": torch.tanh(d * a + f), "h.1": torch.tanh(e) + torch.cat([h[:, :2], h.detach()[:, 2:]], dim=1)}

    def readout(self, params, state):
        read = super().readout(params, {"h.1": state["h.1"] + state["h.0"].detach()})
        return read * F.linear(state["h.0"], params["weight_ho"]).detach()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Truncated(Elman):
    """No gradient goes through time in its upper layer, nor to the lower one."""

    def step(self, params, state, x, noise):
        new = super().step(params, state, x, noise)
        return {"h.0": new["h.0"], "h.1": new["h.1"].detach()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kept(Elman):
    """Its lower layer never moves, and its outputs are detached."""

    def step(self, params, state, x, noise):
        h = super().step(params, state, x, noise)["h.1"]
        return {"h.0": state["h.0"].detach(), "h.1": h}

    def readout(self, params, state):
        return super().readout(params, state).detach()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Frozen(Elman):
    """Its recurrent weights are not learned, nor what is computed from them."""

    def step(self, params, state, x, noise):
        frozen = {name: params[name].detach() for name in ("weight_hh.0", "weight_hh.1")}
        gain = 1 + params["weight_hh.0"].square().mean(0).detach() * params["bias.0"].abs()
        new = super().step({**params, **frozen}, state, x, noise)
        return {"h.0": new["h.0"] * gain, "h.1": new["h.1"]}


STOPPING = [kind(input_size=3, hidden_size=5, output_size=2, num_layers=2) for kind in
            (Everywhere, Truncated, Kept, Frozen)]  # fmt: skip


def drawn(family, dtype, time=4, batch=19):
    draw = generator(0, "m", "x")

    def normal(*shape):
        return torch.randn(2, *shape, dtype=dtype, generator=draw)

    state, moved = ({name: normal(batch, 5) for name in family.spec.states} for _ in range(2))
    return stack(family, 2, dtype, scale=0.5), normal(time, batch, family.input_size), state, moved


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("family", STOPPING, ids=lambda family: type(family).__name__)
def test_native_gradients_stop_where_torchs_do(family, dtype):
    assert native.why_not(family, dtype) is None
    params, x, state, _ = drawn(family, dtype)
    draw = generator(0, "m", "w")
    weights = [torch.randn(2, 4, 19, size, dtype=dtype, generator=draw) for size in (2, 5, 5)]
    if isinstance(family, Kept):
        # Autograd has nothing to do with outputs that are detached.
        weights[0] = torch.zeros_like(weights[0])
    found, expected = (everything(family, params, x, state, weights, m) for m in ("native", "sequential"))
    for one, other in zip(found, expected, strict=True):
        assert far(one, other) < TOLERANCE[dtype]


@pytest.mark.parametrize("family", [STOPPING[0], STOPPING[1], STOPPING[3]], ids=lambda family: type(family).__name__)
def test_gradients_of_a_declared_loss_stop_there_too(family):
    params, x, *_ = drawn(family, torch.float64, time=5)
    (criterion, *_) = criteria(family, torch.float64, 5, 19)
    criterion = dataclasses.replace(criterion, target=criterion.target[:2], weight=criterion.weight[:2])
    found, expected = (
        losses_and_gradients(family, params, family.spec.trained, x, x.new_zeros(2, 19, 0), criterion, method=method)[1]
        for method in ("native", "sequential")
    )
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert far(found[name], gradient) < 1e-10, name


@pytest.mark.parametrize("family", STOPPING, ids=lambda family: type(family).__name__)
def test_native_tangents_and_jacobians_stop_where_forward_mode_does(family):
    params, x, state, moved = drawn(family, torch.float64)
    found, expected = (
        tangent_rollout(family, params, x, state, moved, {}, method=method)[1] for method in ("native", "stacked")
    )
    assert all(far(found[name], expected[name]) < 1e-10 for name in family.spec.states)
    of_steps, expected = (jacobians(family, params, x, state, {}, method=method) for method in ("native", "stacked"))
    assert far(of_steps, expected) < 1e-10


def test_what_is_detached_has_no_gradient_at_all():
    family = STOPPING[1]
    params, x, state, _ = drawn(family, torch.float64)
    leaves = {name: tensor.requires_grad_() for name, tensor in params.items()}
    rollout(family, leaves, x, method="native", state=state).outputs.sum().backward()
    reached = {name for name, leaf in leaves.items() if leaf.grad is not None and bool(leaf.grad.any())}
    assert reached == {"weight_ho", "bias_o"}
    assert not jacobians(family, params, x, state, {}, method="native")[..., 5:, :].any()


class Straight(torch.autograd.Function):
    """A step function that says it is the identity."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return torch.where(x > 0, 1.0, 0.0)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def without_gradient(h):
    with torch.no_grad():
        return h * 2


def detached_in_place(h):
    return (h + 1).detach_()


def descended(h):
    own = h.detach().requires_grad_()
    return torch.autograd.grad(own.exp(), own, h, create_graph=True)[0]


KINDS = {kind.__name__: kind for kind in (without_gradient, detached_in_place, descended)}
KINDS["Straight"] = Straight.apply


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unclear(Elman):
    """A step whose derivative tracing does not see."""

    kind: str

    def step(self, params, state, x, noise):
        h = super().step(params, state, x, noise)["h.0"]
        return {"h.0": h * 0.5 + KINDS[self.kind](h)}


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("without_gradient", "`mul` is called where gradients are switched off"),
        ("Straight", "`gt` is called where gradients are switched off"),
        ("detached_in_place", "leaves no trace"),
        ("descended", "where gradients stop is unclear"),
    ],
)
def test_a_derivative_that_tracing_does_not_see_is_refused(kind, reason):
    assert reason in native.why_not(Unclear(input_size=3, hidden_size=5, output_size=2, kind=kind), torch.float64)


@pytest.mark.parametrize("kind", ["without_gradient", "Straight"])
def test_what_is_refused_has_torchs_gradients(kind, caplog):
    family = Unclear(input_size=3, hidden_size=5, output_size=2, kind=kind)
    params, x, state, _ = drawn(family, torch.float64)
    weights = [torch.ones(2, 4, 19, size, dtype=torch.float64) for size in (2, 5)]
    found, expected = (everything(family, params, x, state, weights, m) for m in ("native", "sequential"))
    for one, other in zip(found, expected, strict=True):
        assert far(one, other) < 1e-10
    assert "Unclear is rolled out by torch, not natively" in caplog.text


def test_a_family_is_traced_whether_or_not_gradients_are_on():
    for switched_off in (torch.no_grad, torch.inference_mode):
        engine.traced.cache_clear()
        with switched_off():
            assert native.why_not(STOPPING[0], torch.float64) is None
