"""Message passing in C against torch in float64: embeddings, gradients, bytes, and what is left to torch."""

import copy

import numpy as np
import pytest
import torch
from torch.autograd import forward_ad

from weightspace import families
from weightspace.encoders import message_passing
from weightspace.encoders.fused import availability, lent
from weightspace.encoders.fused.availability import why_not
from weightspace.encoders.fused.stack import Widths
from weightspace.encoders.message_passing import MessagePassing
from weightspace.families.elman import Elman
from weightspace.families.gru import GRU
from weightspace.graph import dense_graphs
from weightspace.rollout import generator
from weightspace.rollout.native.engine.compiler import NoNative
from weightspace.spec import Axis, TensorSpec, WeightSpec
from weightspace.store import Stack

EXAMPLES = [example for family in families.available().values() for example in family.examples()]
SMALL = {"embedding_dim": 6, "edge_dim": 12, "node_dim": 20, "product_dim": 5, "num_layers": 2}


def stack_of(family, models=3):
    draws = [family.spec.random_params(generator(0, str(i), "messages"), torch.float32) for i in range(models)]
    return Stack(family, {k: torch.stack([d[k] for d in draws]) for k in family.spec.tensors}, torch.arange(models))


def encoder_for(stacks, **options):
    torch.manual_seed(0)
    encoder = MessagePassing(**options)
    encoder.fit_standardisation(stacks)
    return encoder


def in_float64(encoder, stacks):
    params = [{k: v.double() for k, v in stack.params.items()} for stack in stacks]
    return copy.deepcopy(encoder).double(), [
        Stack(stack.family, own, stack.rows) for stack, own in zip(stacks, params, strict=True)
    ]


def embedded(encoder, stacks):
    """Embeddings, and the gradients of all weights of a function of them."""
    encoder.zero_grad()
    embeddings = encoder(stacks)
    (embeddings * torch.cos(torch.arange(embeddings.numel()).view_as(embeddings))).sum().backward()
    return embeddings.detach(), {k: p.grad for k, p in encoder.named_parameters() if p.grad is not None}


def refuse_torch(monkeypatch):
    """Where C does not serve, a test that it equals torch would compare torch with itself."""

    def only_in_c(*arguments):
        reason = why_not(*arguments)
        assert reason is None or "float64" in reason, reason

    monkeypatch.setattr(message_passing, "why_not", lambda *a: only_in_c(*a) or why_not(*a))


def assert_equal(encoder, stacks):
    found, gradients = embedded(encoder, stacks)
    expected, reference = embedded(*in_float64(encoder, stacks))
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert set(gradients) == set(reference)
    for name, gradient in gradients.items():
        error, scale = (gradient - reference[name]).norm(), reference[name].norm()
        assert error <= 1e-5 * scale + 1e-9, f"{name}: {error / scale}"


@pytest.fixture(autouse=True)
def _needs_a_compiler():
    reason = availability._uncompiled(Widths(16, 16, 8, 1))
    if reason is not None:
        pytest.skip(reason)


@pytest.mark.parametrize("family", EXAMPLES, ids=str)
def test_c_equals_torch_in_float64(family, monkeypatch):
    refuse_torch(monkeypatch)
    stacks = [stack_of(family)]
    assert_equal(encoder_for(stacks, **SMALL), stacks)


# Few models where they are large: of many edges, some are so near to a kink that rounding takes them across.
@pytest.mark.parametrize(("hidden", "models"), [(1, 9), (2, 17), (7, 9), (16, 2), (33, 1)])
def test_c_equals_torch_at_every_size(hidden, models, monkeypatch):
    refuse_torch(monkeypatch)
    stacks = [stack_of(Elman(input_size=2, hidden_size=hidden, output_size=1), models)]
    assert_equal(encoder_for(stacks), stacks)


def test_c_equals_torch_on_several_layouts_at_once(monkeypatch):
    refuse_torch(monkeypatch)
    stacks = [stack_of(family, models) for family, models in zip(EXAMPLES[::7], (1, 2, 9, 3, 5, 8, 17), strict=False)]
    assert_equal(encoder_for(stacks, **SMALL), stacks)


@pytest.mark.slow
@pytest.mark.parametrize("widths", [(1, 1, 1), (17, 33, 9), (32, 48, 16), (40, 16, 40), (128, 20, 8)], ids=str)
def test_c_equals_torch_at_other_widths(widths, monkeypatch):
    refuse_torch(monkeypatch)
    stacks = [stack_of(family) for family in EXAMPLES[::5]]
    sizes = dict(zip(("edge_dim", "node_dim", "product_dim"), widths, strict=True))
    assert_equal(encoder_for(stacks, num_layers=2, **sizes), stacks)


def masked_graphs(dtype):
    """Three models whose masks differ; in the second one, a hidden unit has no connection at all."""
    spec = WeightSpec(
        axes={"input": Axis(size=2, kind="input"), "hidden": Axis(size=5, kind="hidden", permutable=True)},
        tensors={
            "weight_ih": TensorSpec(axes=("hidden", "input"), mask="mask_ih"),
            "weight_hh": TensorSpec(axes=("hidden", "hidden"), mask="mask_hh"),
            "mask_ih": TensorSpec(axes=("hidden", "input"), role="mask"),
            "mask_hh": TensorSpec(axes=("hidden", "hidden"), role="mask"),
        },
        states={"h": "hidden"},
    )
    stream = generator(0, "masked", "weights")
    params = {name: torch.randn(3, *spec.shape(name), generator=stream) for name in spec.tensors}
    params |= {name: (params[name] > 0).float() for name in ("mask_ih", "mask_hh")}
    params["mask_ih"][1, 0] = params["mask_hh"][1, 0] = params["mask_hh"][1, :, 0] = 0
    return dense_graphs(spec, {name: tensor.to(dtype) for name, tensor in params.items()})


def test_masks_that_differ_by_model_are_as_in_torch(monkeypatch):
    refuse_torch(monkeypatch)
    encoder = encoder_for([], **SMALL)
    graphs = masked_graphs(torch.float32)
    assert graphs.present.shape[0] == 3
    unit = graphs.layout.offsets["hidden"].start
    assert not graphs.present[1, unit].any()
    assert not graphs.present[1, :, unit].any()
    found, expected = [], []
    for own, values, dtype in (
        (encoder, found, torch.float32),
        (copy.deepcopy(encoder).double(), expected, torch.float64),
    ):
        values.append(own.head(own._pooled(masked_graphs(dtype), {})))
        (values[0] * torch.cos(torch.arange(values[0].numel()).view_as(values[0]))).sum().backward()
        values += [p.grad for p in own.parameters() if p.grad is not None]
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().max() <= 1e-5 * other.abs().max() + 1e-9


def pooled(encoder, stacks, monkeypatch):
    """Results of C before the head, and gradients: torch's head may differ in its last bits by number of models."""
    found = []
    own = message_passing.rounds
    with monkeypatch.context() as patch:
        patch.setattr(message_passing, "rounds", lambda *a: found.append(own(*a)) or found[-1])
        encoder(stacks)
    encoder.zero_grad()
    sum((one * torch.cos(torch.arange(one.numel()).view_as(one))).sum() for one in found).backward()
    return found, [p.grad for p in encoder.layers.parameters()]


def test_bytes_do_not_depend_on_the_number_of_threads(monkeypatch):
    stacks = [stack_of(GRU(input_size=3, hidden_size=9, output_size=2), models=43)]
    encoder, threads, runs = encoder_for(stacks), torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            runs.append(pooled(encoder, stacks, monkeypatch))
    finally:
        torch.set_num_threads(threads)
    for found, gradients in runs[1:]:
        assert torch.equal(found[0], runs[0][0][0])
        assert all(torch.equal(*pair) for pair in zip(gradients, runs[0][1], strict=True))


def test_bytes_do_not_depend_on_the_other_models(monkeypatch):
    whole = stack_of(GRU(input_size=3, hidden_size=9, output_size=2), models=19)
    encoder = encoder_for([whole])
    together = pooled(encoder, [whole], monkeypatch)[0][0]
    for some in ([3], [18, 3, 7], list(range(5, 17))):
        alone = Stack(whole.family, {k: v[some] for k, v in whole.params.items()}, whole.rows[some])
        assert torch.equal(pooled(encoder, [alone], monkeypatch)[0][0], together[some])


def test_what_is_kept_for_the_way_back_is_nobody_elses(monkeypatch):
    refuse_torch(monkeypatch)
    stacks = [stack_of(Elman(input_size=2, hidden_size=5, output_size=1), models) for models in (3, 3, 4)]
    encoder = encoder_for(stacks)
    expected = [embedded(encoder, [stack])[1] for stack in stacks]
    losses = [encoder([stack]) for stack in stacks]
    for loss, gradients in zip(losses, expected, strict=True):
        weighted = (loss * torch.cos(torch.arange(loss.numel()).view_as(loss))).sum()
        for _ in range(2):
            again = torch.autograd.grad(weighted, list(encoder.layers.parameters()), retain_graph=True)
            own = [gradients[f"layers.{name}"] for name, _ in encoder.layers.named_parameters()]
            assert all(torch.equal(*pair) for pair in zip(again, own, strict=True))


def test_memory_goes_from_one_call_to_the_next():
    lent._waiting.clear()
    first = lent.lent(1000)
    address, part = first.data_ptr(), first[10:20]
    second = lent.lent(1000)
    assert second.data_ptr() != address
    del first
    assert lent.lent(1000).data_ptr() != address, "a part is still in use"
    del part
    assert address in {lent.lent(900).data_ptr(), *(key[0] for key in lent._waiting)}


def test_memory_that_another_thread_takes_while_it_is_chosen_is_not_lent_twice():
    taken = []

    class Contended(np.ndarray):
        @property
        def size(self):
            if not taken:
                taken.append(None)
                taken.append(lent.lent(1000))
            return 1000

    lent._waiting.clear()
    lent._give_back(np.zeros(1000, np.float32).view(Contended))
    assert lent.lent(1000).data_ptr() != taken[1].data_ptr()


def test_what_c_does_not_do_is_left_to_torch():
    stack = stack_of(Elman(input_size=2, hidden_size=3, output_size=1))
    graphs, encoder = dense_graphs(*stack.effective), encoder_for([stack], **SMALL)
    data = (graphs.edges, graphs.nodes, graphs.present)

    def reason(data=data, widths=encoder.widths, weight=encoder.edge_in.weight):
        return why_not(widths, data, weight)

    assert reason() is None
    assert "float64" in reason([tensor.double() for tensor in data])
    assert "float64" in reason(weight=encoder.edge_in.weight.double())
    assert "meta" in reason([tensor.to("meta") for tensor in data])
    assert "128 channels" in reason(widths=Widths(129, 8, 8, 1))
    many = graphs.edges[:1, :1, :1].expand(1, 513, 513, -1)
    assert "512 nodes" in reason((many, graphs.nodes, graphs.present))
    wanted = (graphs.edges.clone().requires_grad_(), *data[1:])
    assert "gradients" in reason(wanted)
    with torch.no_grad():
        assert reason(wanted) is None
    with torch.autocast("cpu"):
        assert "mixed precision" in reason()
    with forward_ad.dual_level():
        assert "forward-mode" in reason()


def test_derivatives_by_weights_of_models_are_those_of_torch():
    stack = stack_of(Elman(input_size=2, hidden_size=3, output_size=1))
    encoder = encoder_for([stack], **SMALL).requires_grad_(False)

    def total(values):
        return encoder([Stack(stack.family, {**stack.params, name: values}, stack.rows)]).sum()

    for name in ("weight_hh.0", "bias.0"):
        values = stack.params[name]
        (by_tape,) = torch.autograd.grad(total(leaf := values.clone().requires_grad_()), leaf)
        along = torch.randn(values.shape, generator=generator(0, name, "direction"))
        _, tangent = torch.func.jvp(total, (values,), (along,))
        torch.testing.assert_close(torch.func.grad(total)(values), by_tape)
        torch.testing.assert_close(tangent, (by_tape * along).sum())


def test_without_a_compiler_torch_embeds(monkeypatch, caplog):
    stacks = [stack_of(Elman(input_size=2, hidden_size=3, output_size=1))]
    encoder = encoder_for(stacks, **SMALL)
    expected = encoder(stacks)

    def missing(widths):
        raise NoNative("no C compiler was found")

    monkeypatch.setattr(availability, "compiled", missing)
    availability._uncompiled.cache_clear()
    try:
        found = encoder(stacks)
        encoder(stacks)
    finally:
        availability._uncompiled.cache_clear()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert [record.message for record in caplog.records] == [
        "Message passing is computed by torch, not natively: no C compiler was found."
    ]
