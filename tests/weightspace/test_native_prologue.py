"""What a family computes from its params before the first step, in C: gradients equal autograd's."""

import dataclasses

import pytest
import torch

from weightspace.families.base import linear
from weightspace.families.elman import Elman
from weightspace.rollout import generator, rollout
from weightspace.rollout.criterion import Criterion
from weightspace.rollout.gradients import losses_and_gradients
from weightspace.rollout.native.descent import can_descend_on


@dataclasses.dataclass(frozen=True, kw_only=True)
class Computed(Elman):
    """An Elman network that uses a function of its weights."""

    def used(self, weight, bias):
        raise NotImplementedError

    def step(self, params, state, x, noise):
        weight, bias = self.used(params["weight_hh.0"], params["bias.0"])
        h = state["h.0"]
        return {"h.0": torch.tanh(linear(x, params["weight_ih.0"], bias) + linear(h, weight) + 0.1 * bias * h)}


def _family(name, used):
    return type(name, (Computed,), {"used": lambda self, weight, bias: used(weight, bias)})


USED = {
    "a mask of zeros on the diagonal": lambda w, b: (w * (1 - torch.eye(5, dtype=w.dtype)), b),
    "a product of factors": lambda w, b: (w[:, :2] @ w[:2], b),
    "a symmetric matrix": lambda w, b: ((w + w.t()) / 2, b.flip(0)),
    "a skew matrix with decay": lambda w, b: (w - w.T - 0.3 * torch.eye(5, dtype=w.dtype), -b),
    "rows rescaled": lambda w, b: (w * torch.exp(b)[:, None], torch.exp(-torch.exp(b))),
    "columns normalised": lambda w, b: (w / w.square().sum(0, keepdim=True).sqrt(), b / (1 + b.abs())),
    "clamped between two numbers": lambda w, b: (w.clamp(-0.2, 0.3), b.clamp(min=0.1)),
    "a clamp that ties": lambda w, b: (w.clamp(min=0).clamp(max=0.2) + w * 0, (b * 0 + 1).clamp(min=1) * b),
    "a softplus and a reciprocal": lambda w, b: (w, 1 / (1 + torch.nn.functional.softplus(b))),
    "parts put together": lambda w, b: (torch.cat([w[:2], w[2:] * 0.5]), torch.stack([b, b * 2]).sum(0) / 3),
    "a part that is detached": lambda w, b: (w.detach() * 0.5 + w * 0.5, b.detach() + 0.2 * b),
    "a diagonal": lambda w, b: (w, w.diagonal() * b),
    "a constant tensor": lambda w, b: (w * torch.tensor(0.7, dtype=w.dtype), b + torch.arange(5, dtype=b.dtype) / 9),
    "two uses of one weight": lambda w, b: (w * w, w.sum(1) * 0.1 + b),
}


@pytest.mark.parametrize("batch", [3, 40])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", USED)
def test_gradients_through_what_is_computed_from_params_are_those_of_autograd(name, dtype, batch):
    family = _family(name.title().replace(" ", ""), USED[name])(input_size=2, hidden_size=5, output_size=3)
    assert can_descend_on(family, dtype)
    draws = [family.spec.random_params(generator(0, str(i), "params"), dtype) for i in range(3)]
    params = {k: torch.stack([draw[k] for draw in draws]) * 0.5 for k in family.spec.tensors}
    draw = generator(0, "m", "x")
    x = torch.randn(3, 6, batch, 2, dtype=dtype, generator=draw)
    criterion = Criterion("cross_entropy", torch.randint(3, (3, 6, batch, 1), generator=draw), torch.rand(3, 6), 3)
    for trained in (family.spec.trained, ("bias.0",), ("weight_ho",)):
        found, expected = (
            losses_and_gradients(family, params, trained, x, x.new_zeros(3, batch, 0), criterion, method=method)
            for method in ("native", "sequential")
        )
        bound = 1e-10 if dtype == torch.float64 else 2e-5
        torch.testing.assert_close(found[0], expected[0], rtol=bound, atol=bound)
        for key, gradient in expected[1].items():
            scale = float(gradient.abs().max().clamp(min=1e-6))
            torch.testing.assert_close(found[1][key] / scale, gradient / scale, rtol=0, atol=bound, msg=key)


def test_params_in_transposed_memory_are_computed_from_as_others():
    family = _family("OneFlat", lambda w, b: (w, b * w.flatten()[:5]))(input_size=2, hidden_size=5, output_size=3)
    params = {k: torch.stack([v] * 2) for k, v in family.spec.random_params(generator(0, "0", "params")).items()}
    params["weight_hh.0"] = params["weight_hh.0"].mT.contiguous().mT
    assert not params["weight_hh.0"][0].is_contiguous()
    x = torch.randn(2, 6, 3, 2, dtype=torch.float64, generator=generator(0, "m", "x"))
    native, expected = (rollout(family, params, x, method=method).outputs for method in ("native", "sequential"))
    torch.testing.assert_close(native, expected, rtol=1e-10, atol=1e-10)


def test_threads_do_not_change_a_bit_of_gradients_that_come_both_ways():
    family = _family("BothWays", lambda w, b: (w + w.t(), b * 2))(input_size=2, hidden_size=5, output_size=3)
    draw = generator(0, "m", "x")
    params = {k: torch.randn(1, *family.spec.shape(k), generator=draw) / 3 for k in family.spec.tensors}
    x, before = torch.randn(1, 6, 70, 2, generator=draw), torch.get_num_threads()
    criterion = Criterion("squared_error", torch.randn(1, 6, 70, 3, generator=draw), torch.rand(1, 6))
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            arguments = (family, params, family.spec.trained, x, x.new_zeros(1, 70, 0), criterion)
            found.append(losses_and_gradients(*arguments, method="native")[1])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
