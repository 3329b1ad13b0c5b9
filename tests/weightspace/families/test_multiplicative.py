"""Networks with products of units and inputs: identities between them, exact in float64."""

from dataclasses import replace

import pytest
import torch

from weightspace import families
from weightspace.families.cprnn import CPRNN
from weightspace.families.elman import Elman
from weightspace.families.mirnn import MIRNN
from weightspace.families.multiplicative import Multiplicative
from weightspace.families.pairs import skewed
from weightspace.families.second_order import SecondOrder
from weightspace.rollout import generator, native, rollout

SIZES = {"input_size": 3, "hidden_size": 4, "output_size": 2}
KINDS = [kind for kind in families.available().values() if issubclass(kind, Multiplicative)]
EXAMPLES = [example for kind in KINDS for example in kind.examples()]
BOTH = pytest.mark.parametrize("first_order", [True, False], ids=["with_sums", "products_alone"])


def params_of(family):
    return family.spec.random_params(generator(0, "m", "params"))


def outputs(family, params):
    x = torch.randn(1, 9, 5, family.input_size, dtype=torch.float64, generator=generator(0, "m", "x"))
    return rollout(family, {name: value[None] for name, value in params.items()}, x).outputs


def assert_same(family, params, other, other_params):
    torch.testing.assert_close(outputs(family, params), outputs(other, other_params), rtol=0, atol=1e-10)
    assert outputs(family, params).std() > 1e-2


def shared(params):
    return {name: value for name, value in params.items() if "factor" not in name and name != "weight_hhi"}


def test_rank_0_is_an_elman_network():
    params = params_of(CPRNN(**SIZES, rank=0))
    layer = {f"{name}.0": params[name] for name in ("weight_ih", "weight_hh", "bias")}
    plain = layer | {name: params[name] for name in ("weight_ho", "bias_o")}
    assert_same(CPRNN(**SIZES, rank=0), params, Elman(**SIZES), plain)


def test_multiplicative_integration_with_unit_betas_is_a_cprnn_whose_c_is_diagonal():
    params = params_of(MIRNN(**SIZES))
    factors = {"factor_a": params["weight_hh"], "factor_b": params["weight_ih"], "factor_c": params["alpha"].diag()}
    sums = {f"weight_{end}": params[f"beta_{end}"][:, None] * params[f"weight_{end}"] for end in ("hh", "ih")}
    rest = {name: params[name] for name in ("bias", "weight_ho", "bias_o")}
    assert_same(MIRNN(**SIZES), params, CPRNN(**SIZES, rank=4), factors | sums | rest)
    alone = {name: value for name, value in params.items() if not name.startswith("beta")}
    assert_same(MIRNN(**SIZES, first_order=False), alone, CPRNN(**SIZES, rank=4, first_order=False), factors | rest)


@BOTH
def test_any_cp_decomposition_equals_the_full_tensor(first_order):
    full = SecondOrder(**SIZES, first_order=first_order)
    params = params_of(full)
    tensor = params["weight_hhi"]
    pairs = torch.cartesian_prod(torch.arange(4), torch.arange(3))
    trivial = (torch.eye(4).double()[pairs[:, 0]], torch.eye(3).double()[pairs[:, 1]], tensor.flatten(1))
    # Slice by slice, T[:, :, i] = U S V^T: a decomposition of another rank and other factors.
    u, s, v = torch.linalg.svd(tensor.permute(2, 0, 1))
    columns = (u * s[:, None]).transpose(0, 1).flatten(1)
    sliced = (v.flatten(0, 1), torch.eye(3).double().repeat_interleave(4, 0), columns)
    # Any further components may cancel each other.
    extra = torch.randn(3, 2, 12, dtype=torch.float64, generator=generator(0, "m", "extra"))
    a, b, c = (extra[0][:, :4], extra[1][:, :3], extra[2][:, :4].T)
    cancelled = tuple(torch.cat(parts, dim) for parts, dim in zip(
        ((trivial[0], a, a), (trivial[1], b, b), (trivial[2], c, -c)), (0, 0, 1), strict=True
    ))  # fmt: skip
    for factors in (trivial, sliced, cancelled):
        named = dict(zip(("factor_a", "factor_b", "factor_c"), factors, strict=True))
        small = CPRNN(**SIZES, rank=len(factors[0]), first_order=first_order)
        assert_same(full, params, small, named | shared(params))
        torch.testing.assert_close(small.product_tensor(named), tensor, rtol=0, atol=1e-10)


@BOTH
def test_every_cprnn_is_the_full_network_of_its_tensor(first_order):
    small = CPRNN(**SIZES, rank=5, first_order=first_order)
    params = params_of(small)
    whole = {"weight_hhi": small.product_tensor(params)} | shared(params)
    assert_same(small, params, SecondOrder(**SIZES, first_order=first_order), whole)


@pytest.mark.parametrize("zeroed", ["factor_a", "factor_b", "factor_c"])
def test_zero_columns_of_any_one_factor_change_nothing(zeroed):
    small, large = CPRNN(**SIZES, rank=2), CPRNN(**SIZES, rank=5)
    params, padded = params_of(small), params_of(large)
    for name in ("factor_a", "factor_b", "factor_c"):
        dim = 1 if name == "factor_c" else 0
        more = padded[name].narrow(dim, 2, 3)
        padded[name] = torch.cat([params[name], more * (name != zeroed)], dim)
    assert_same(small, params, large, padded | shared(params))


@pytest.mark.parametrize("family", EXAMPLES, ids=str)
def test_units_follow_the_equation_with_the_tensor_written_out(family):
    params = params_of(family)
    h = torch.randn(6, family.hidden_size, dtype=torch.float64, generator=generator(0, "m", "h"))
    x = torch.randn(6, family.input_size, dtype=torch.float64, generator=generator(0, "m", "x"))
    tensor = family.product_tensor(params)
    assert tensor.shape == (family.hidden_size, family.hidden_size, family.input_size)
    products = torch.einsum("kji,bj,bi->bk", tensor, h, x)
    torch.testing.assert_close(family.products(params, h, x), products, rtol=0, atol=1e-10)
    sums = family.sums(params, h, x) if family.first_order else 0
    after = family.step(params, {"h": h}, x, {})["h"]
    torch.testing.assert_close(after, torch.tanh(products + sums + params["bias"]), rtol=0, atol=1e-10)


@pytest.mark.parametrize("family", EXAMPLES, ids=str)
def test_initial_weights_are_uniform_up_to_the_root_of_the_hidden_size(family):
    large = replace(family, hidden_size=25, input_size=12)
    bound = 25**-0.5
    for name, value in large.init(generator(0, "m", "init")).items():
        assert value.abs().max() <= bound, name
        if value.numel() > 200:
            assert value.std().item() == pytest.approx(bound / 3**0.5, rel=0.1), name


@pytest.mark.parametrize("family", EXAMPLES, ids=str)
def test_whole_updates_run_in_c(family):
    assert native.why_not(family, torch.float32) is None


@pytest.mark.parametrize(("to", "source"), [(3, 5), (5, 3), (4, 4), (1, 3), (3, 1)])
def test_rows_of_pairs_join_each_unit_to_each_source_once(to, source):
    weight = torch.arange(to * source * 2).view(to, source, 2)
    rows = skewed(weight).view(source, to, 2)
    for unit in range(to):
        for d in range(source):
            assert torch.equal(rows[d, unit], weight[unit, (unit + d) % source])


def test_a_network_without_any_terms_is_refused():
    with pytest.raises(ValueError, match=r"`rank` \(=0\) of CPRNN leaves no products and `first_order`"):
        CPRNN(**SIZES, rank=0, first_order=False)
