"""The spike and its surrogate against closed forms, under every transform, and as tracers see it."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from weightspace.families.spike import SPIKE, spike

SLOPE = 4.0
X = torch.tensor([-2.0, -0.25, 0.0, 0.5, 3.0], dtype=torch.float64)
SPIKES = torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0], dtype=torch.float64)
# 1 / (1 + 4 |x|)^2
SURROGATE = torch.tensor([1 / 81, 1 / 4, 1.0, 1 / 9, 1 / 169], dtype=torch.float64)


def fired(x):
    return spike(x, SLOPE)


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-15, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_spike_is_one_above_zero_and_zero_elsewhere(dtype):
    assert torch.equal(fired(X.to(dtype)), SPIKES.to(dtype))
    assert fired(torch.tensor([torch.inf, -torch.inf, torch.nan])).tolist() == [1, 0, 0]


def test_its_gradient_is_the_surrogate_forward_and_reverse():
    x = X.clone().requires_grad_()
    close(torch.autograd.grad(fired(x).sum(), x)[0], SURROGATE)
    close(torch.func.grad(lambda x: (3 * fired(x)).sum())(X), 3 * SURROGATE)
    value, tangent = torch.func.jvp(fired, (X,), (torch.full_like(X, 2.0),))
    assert torch.equal(value, SPIKES)
    close(tangent, 2 * SURROGATE)
    for jacobian in (torch.func.jacfwd(fired)(X), torch.func.jacrev(fired)(X)):
        close(jacobian, torch.diag(SURROGATE))


def test_transforms_may_be_nested_in_any_order():
    stack = torch.stack([X, -X, X.flip(0)])
    expected = torch.stack([SURROGATE, SURROGATE, SURROGATE.flip(0)])
    assert torch.equal(torch.func.vmap(fired)(stack), torch.stack([SPIKES, fired(-X), SPIKES.flip(0)]))
    assert torch.equal(torch.func.vmap(fired, in_dims=1)(stack.T.contiguous().T), fired(stack).T)
    close(torch.func.vmap(torch.func.grad(lambda x: fired(x).sum()))(stack), expected)
    close(torch.func.grad(lambda s: torch.func.vmap(fired)(s).sum())(stack), expected)
    directions = torch.eye(5, dtype=torch.float64)
    pushed = torch.func.vmap(lambda x: torch.func.vmap(lambda d: torch.func.jvp(fired, (x,), (d,))[1])(directions))
    close(pushed(stack), torch.diag_embed(expected))


def test_second_derivatives_are_those_of_the_surrogate():
    second = torch.func.grad(lambda x: torch.func.grad(lambda x: fired(x).sum())(x).sum())(X)
    close(second[[0, 1, 3, 4]], torch.tensor([8 / 729, 1.0, -8 / 27, -8 / 2197], dtype=torch.float64))


def test_a_tracer_sees_one_operation_with_its_slope():
    graph = make_fx(lambda x: 2 * fired(x - 1))(X).graph
    (node,) = (node for node in graph.nodes if node.target is SPIKE)
    assert node.args[1] == SLOPE
    assert len([node for node in graph.nodes if node.op == "call_function"]) == 3


def test_the_surrogate_is_that_of_snntorch():
    surrogate = pytest.importorskip("snntorch.surrogate")
    for slope in (1.0, 10.0, 25.0):
        x = X.float().requires_grad_()
        theirs = surrogate.fast_sigmoid(slope=slope)(x)
        assert torch.equal(spike(x, slope), theirs)
        found, expected = (torch.autograd.grad(spikes.sum(), x)[0] for spikes in (spike(x, slope), theirs))
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
