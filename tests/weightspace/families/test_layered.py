"""From torch.nn and back."""

import pytest
import torch
from torch import nn

from weightspace import families
from weightspace.families.elman import Elman
from weightspace.families.gru import GRU
from weightspace.families.layered import Layered
from weightspace.families.lstm import LSTM
from weightspace.rollout import generator, rollout

KINDS = [kind for kind in families.available().values() if issubclass(kind, Layered)]
ALL = [example for kind in KINDS for example in kind.examples()]
EXAMPLES = [example for example in ALL if example.has_bias]
BIAS_FREE = [example for example in ALL if not example.has_bias]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}


def outputs_of(family: Layered, params: dict, x: torch.Tensor) -> torch.Tensor:
    return rollout(family, {k: v[None] for k, v in params.items()}, x[None]).outputs[0]


def outputs_of_torch(module: nn.RNNBase, readout: nn.Linear | None, x: torch.Tensor) -> torch.Tensor:
    hidden, _ = module(x)
    return hidden if readout is None else readout(hidden)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_a_torch_module_and_what_is_made_of_it_give_the_same_outputs(example, biases, dtype):
    torch.manual_seed(0)
    options = {"nonlinearity": example.nonlinearity} if isinstance(example, Elman) else {}
    module = example.torch_class(
        example.input_size, example.hidden_size, example.num_layers, bias=biases, dtype=dtype, **options
    )
    readout = None
    if example.has_readout:
        readout = nn.Linear(example.hidden_size, example.output_size, bias=biases, dtype=dtype)
    x = torch.randn(9, 4, example.input_size, dtype=dtype)
    expected = outputs_of_torch(module, readout, x).detach()
    family, params = type(example).from_torch(module, readout)
    assert family == example
    assert {v.dtype for v in params.values()} == {dtype}
    torch.testing.assert_close(outputs_of(family, params, x), expected, rtol=0, atol=TOLERANCE[dtype])
    back = outputs_of_torch(*family.to_torch(params), x).detach()
    torch.testing.assert_close(back, expected, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("family", EXAMPLES, ids=str)
def test_to_torch_gives_the_same_outputs_and_comes_back_bit_for_bit(family, dtype):
    params = family.init(generator(0, "m", "init"))
    params = {k: v.to(dtype) for k, v in params.items()}
    x = torch.randn(7, 3, family.input_size, dtype=dtype, generator=generator(0, "m", "x"))
    module, readout = family.to_torch(params)
    expected = outputs_of_torch(module, readout, x).detach()
    torch.testing.assert_close(outputs_of(family, params, x), expected, rtol=0, atol=TOLERANCE[dtype])
    again, same = type(family).from_torch(module, readout)
    assert again == family
    assert all(torch.equal(same[k], params[k]) for k in params)


def test_converted_params_are_copies():
    module = nn.GRU(1, 2)
    _, params = GRU.from_torch(module)
    before = {k: v.clone() for k, v in params.items()}
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1)
    assert all(torch.equal(params[k], before[k]) for k in params)
    assert not any(v.requires_grad for v in params.values())


@pytest.mark.parametrize(
    ("kind", "module", "named"),
    [
        (Elman, nn.RNN(1, 2, bidirectional=True), r"`bidirectional` \(=True\) of the torch.nn.RNN"),
        (GRU, nn.GRU(1, 2, num_layers=2, dropout=0.5), r"`dropout` \(=0.5\) of the torch.nn.GRU"),
        (LSTM, nn.LSTM(1, 4, proj_size=2), r"`proj_size` \(=2\) of the torch.nn.LSTM"),
        (LSTM, nn.GRU(1, 4), "LSTM.from_torch takes a torch.nn.LSTM or torch.nn.LSTMCell, not a GRU"),
    ],
)
def test_what_cannot_be_represented_is_refused_by_name(kind, module, named):
    with pytest.raises(ValueError, match=named):
        kind.from_torch(module)


def test_a_read_out_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"`in_features` \(=3\), but the torch.nn.LSTM has `hidden_size` \(=2\)"):
        LSTM.from_torch(nn.LSTM(1, 2), nn.Linear(3, 1))


def test_params_of_another_size_are_refused():
    params = Elman(input_size=1, hidden_size=3, output_size=1).init(generator(0, "m", "init"))
    with pytest.raises(ValueError, match=r"Axis 'hidden\.0'"):
        Elman(input_size=1, hidden_size=4, output_size=1).to_torch(params)


@pytest.mark.parametrize("family", BIAS_FREE, ids=str)
def test_a_family_without_biases_becomes_modules_without_and_comes_back_with_zeros(family):
    params = family.spec.random_params(generator(0, "m", "init"))
    x = torch.randn(7, 3, family.input_size, dtype=torch.float64, generator=generator(0, "m", "x"))
    module, readout = family.to_torch(params)
    assert not module.bias
    assert readout.bias is None
    expected = outputs_of_torch(module, readout, x).detach()
    torch.testing.assert_close(outputs_of(family, params, x), expected, rtol=0, atol=1e-12)
    again, same = type(family).from_torch(module, readout)
    assert again.has_bias
    assert not any(value.any() for name, value in same.items() if name not in params)
    assert all(torch.equal(same[name], params[name]) for name in params)
    torch.testing.assert_close(outputs_of(again, same, x), expected, rtol=0, atol=1e-12)


def test_without_biases_the_origin_is_a_fixed_point_with_the_jacobian_w_hh():
    family = Elman(input_size=2, hidden_size=5, output_size=1, bias=False)
    params = family.spec.random_params(generator(0, "m", "init"))
    stay = {"h.0": torch.zeros(1, 5, dtype=torch.float64)}
    nothing = torch.zeros(1, 2, dtype=torch.float64)
    assert not family.step(params, stay, nothing, {})["h.0"].any()
    jacobian = torch.func.jacrev(lambda h: family.step(params, {"h.0": h}, nothing, {})["h.0"])(stay["h.0"])
    torch.testing.assert_close(jacobian[0, :, 0], params["weight_hh.0"], rtol=1e-12, atol=1e-12)


def test_the_option_without_biases_leaves_no_trace_where_it_is_not_taken():
    family = Elman(input_size=2, hidden_size=5, output_size=1)
    assert "bias" not in family.config
    assert Elman(input_size=2, hidden_size=5, output_size=1, bias=False).config["bias"] is False
