"""Every family against its contract, and against torch.nn or a closed form where one exists."""

import dataclasses
import difflib

import pytest
import torch

from tests.members import EXAMPLES, drive
from tests.weightspace.thresholds import Potentials
from weightspace import checks, families
from weightspace.families import Family
from weightspace.families.cprnn import CPRNN
from weightspace.families.elman import Elman
from weightspace.families.gru import GRU
from weightspace.rollout import generator, rollout


@pytest.mark.parametrize("family", EXAMPLES, ids=str)
def test_declared_moves_keep_the_function_and_all_others_are_seen(family):
    checks.assert_family(family)


@pytest.mark.parametrize("family", EXAMPLES, ids=str)
def test_init_fits_the_declaration_and_its_seed(family):
    params, again = (family.init(generator(0, "m", "init")) for _ in range(2))
    family.spec.check(params, stacked=False)
    assert all(torch.equal(params[k], again[k]) and params[k].dtype == torch.float32 for k in params)
    assert any(not torch.equal(params[k], family.init(generator(0, "n", "init"))[k]) for k in params)


@pytest.mark.parametrize("family", EXAMPLES, ids=str)
def test_a_family_is_rebuilt_from_its_json(family):
    assert families.load(type(family).__name__, family.config) == family


@pytest.mark.parametrize("family", EXAMPLES, ids=str)
def test_effective_params_fit_the_effective_spec(family):
    params = family.init(generator(0, "m", "init"))
    family.effective_spec.check(family.effective(params), stacked=False)


@pytest.mark.parametrize("family", EXAMPLES, ids=str)
def test_gradients_of_trained_tensors_are_finite_and_reach_everything(family):
    draws = [family.init(generator(0, str(i), "init")) for i in range(8)]
    params = {k: torch.stack([d[k] for d in draws]).requires_grad_() for k in family.spec.tensors}
    x, start, noise = drive(family, 8, 7, 3, torch.float32)
    loss = rollout(family, params, x, start, noise=noise).outputs.square().sum()
    for name, gradient in zip(params, torch.autograd.grad(loss, list(params.values())), strict=True):
        assert gradient.isfinite().all(), name
        assert gradient.abs().max() > 0, name


@pytest.mark.parametrize("family", EXAMPLES, ids=str)
def test_the_declaration_says_which_units_spike(family):
    params = {name: value[None] for name, value in family.init(generator(0, "m", "init")).items()}
    x, start, noise = drive(family, 1, 2, 1, torch.float32)
    with Potentials() as seen:
        rollout(family, params, x, start, noise=noise)
    spiking = [axis for axis in family.spec.axes.values() if axis.nonlinearity == "spike"]
    assert bool(seen.nearest) == bool(spiking)


def as_torch(family: Family, module: torch.nn.RNNBase, params: dict) -> None:
    """Load params into torch.nn's layers: the summed bias goes to b_ih, the rest of b_hh is 0."""
    with torch.no_grad():
        for layer in range(family.num_layers):
            getattr(module, f"weight_ih_l{layer}").copy_(
                params[f"weight_ih.{layer}"].reshape(-1, params[f"weight_ih.{layer}"].shape[-1])
            )
            getattr(module, f"weight_hh_l{layer}").copy_(params[f"weight_hh.{layer}"].reshape(-1, family.hidden_size))
            getattr(module, f"bias_ih_l{layer}").copy_(params.get(f"bias.{layer}", torch.zeros(1)).flatten())
            bias_hh = getattr(module, f"bias_hh_l{layer}").zero_()
            if isinstance(family, GRU):
                bias_hh[2 * family.hidden_size :] = params[f"bias_hn.{layer}"]


@pytest.mark.parametrize("family", [f for f in EXAMPLES if isinstance(f, Elman | GRU)], ids=str)
def test_outputs_and_gradients_equal_those_of_torch_nn(family):
    params = family.spec.random_params(generator(0, "m", "params"))
    if isinstance(family, GRU):
        module: torch.nn.RNNBase = torch.nn.GRU(family.input_size, family.hidden_size, family.num_layers)
    else:
        module = torch.nn.RNN(family.input_size, family.hidden_size, family.num_layers, family.nonlinearity)
    module = module.double()
    as_torch(family, module, params)
    x = torch.randn(9, 4, family.input_size, dtype=torch.float64, generator=generator(0, "m", "x"))
    hidden, _ = module(x)
    expected = hidden @ params["weight_ho"].T + params.get("bias_o", 0) if family.has_readout else hidden
    expected.square().sum().backward()
    leaves = {k: v[None].clone().requires_grad_() for k, v in params.items()}
    outputs = rollout(family, leaves, x[None]).outputs[0]
    torch.testing.assert_close(outputs, expected, rtol=1e-12, atol=1e-12)
    outputs.square().sum().backward()
    for layer in range(family.num_layers):
        reference = getattr(module, f"weight_hh_l{layer}").grad
        ours = leaves[f"weight_hh.{layer}"].grad[0].reshape(reference.shape)
        torch.testing.assert_close(ours, reference, rtol=1e-10, atol=1e-10)


def second_order_reference(family: CPRNN, params: dict, x: torch.Tensor) -> torch.Tensor:
    """The full second-order network: h' = tanh(A h x + W_hh h + W_ih x + b) with the explicit third-order tensor."""
    tensor = torch.einsum("kr,rj,ri->kji", params["factor_c"], params["factor_a"], params["factor_b"])
    h, outputs = x.new_zeros(x.shape[1], family.hidden_size), []
    for x_t in x:
        drive = torch.einsum("kji,bj,bi->bk", tensor, h, x_t) + params["bias"]
        if family.first_order:
            drive = drive + h @ params["weight_hh"].T + x_t @ params["weight_ih"].T
        h = torch.tanh(drive)
        outputs.append(h @ params["weight_ho"].T + params["bias_o"])
    return torch.stack(outputs)


@pytest.mark.parametrize("family", [one for one in CPRNN.examples() if one.rank], ids=str)
def test_cprnn_equals_the_full_second_order_network(family):
    params = family.spec.random_params(generator(0, "m", "params"))
    x = torch.randn(8, 3, family.input_size, dtype=torch.float64, generator=generator(0, "m", "x"))
    outputs = rollout(family, {k: v[None] for k, v in params.items()}, x[None]).outputs[0]
    torch.testing.assert_close(outputs, second_order_reference(family, params, x), rtol=1e-12, atol=1e-12)


def test_zero_columns_of_the_factors_change_nothing_and_no_factors_leave_an_elman_network():
    small, large = (CPRNN(input_size=2, hidden_size=4, output_size=1, rank=r) for r in (2, 5))
    params = small.spec.random_params(generator(0, "m", "params"))
    padded = dict(params)
    for name in ("factor_a", "factor_b"):
        padded[name] = torch.cat([params[name], params[name].new_zeros(3, params[name].shape[1])])
    padded["factor_c"] = torch.cat([params["factor_c"], params["factor_c"].new_zeros(4, 3)], dim=1)
    x = torch.randn(1, 6, 3, 2, dtype=torch.float64, generator=generator(0, "m", "x"))
    a = rollout(small, {k: v[None] for k, v in params.items()}, x).outputs
    b = rollout(large, {k: v[None] for k, v in padded.items()}, x).outputs
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    elman = Elman(input_size=2, hidden_size=4, output_size=1)
    plain = {**params, "factor_c": torch.zeros_like(params["factor_c"])}
    renamed = {
        f"{k}.0" if k in ("weight_ih", "weight_hh", "bias") else k: v for k, v in params.items() if "factor" not in k
    }
    c = rollout(small, {k: v[None] for k, v in plain.items()}, x).outputs
    d = rollout(elman, {k: v[None] for k, v in renamed.items()}, x).outputs
    torch.testing.assert_close(c, d, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["elman", "Elmann", "GRUU", "CPRN"])
def test_an_unknown_family_is_refused_with_the_near_match(name):
    near = difflib.get_close_matches(name.casefold(), ["cprnn", "elman", "gru"], n=1)[0]
    with pytest.raises(ValueError, match=f"(?i)did you mean '{near}'"):
        families.load(name, {})


def test_an_unknown_option_is_refused_with_the_near_match():
    with pytest.raises(ValueError, match="Did you mean 'hidden_size'"):
        families.load("Elman", {"input_size": 1, "output_size": 1, "hiden_size": 3})


def test_sizes_below_one_are_refused():
    with pytest.raises(ValueError, match=r"`hidden_size` \(=0\) of Elman must be at least 1"):
        Elman(input_size=1, hidden_size=0, output_size=1)


def test_least_values_that_depend_on_other_fields_are_taken_and_one_less_is_refused():
    judged = set()
    for example in EXAMPLES:
        for name, least in example.least(example.config).items():
            assert getattr(dataclasses.replace(example, **{name: least.number}), name) == least.number
            message = rf"`{name}` \(={least.number - 1}\) of {type(example).__name__} must be at least"
            with pytest.raises(ValueError, match=message):
                dataclasses.replace(example, **{name: least.number - 1})
            judged.add(type(example).__name__)
    assert judged == {"HRSNN", "LTC", "LowRankSparse"}
