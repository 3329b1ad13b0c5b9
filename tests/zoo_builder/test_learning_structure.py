"""Untrained params with a rank, a sparsity and a spectrum, against linear algebra, for every family."""

import math

import numpy as np
import pytest
import torch

from weightspace import families
from weightspace.families.cprnn import CPRNN
from weightspace.families.elman import Elman
from weightspace.families.gru import GRU
from weightspace.families.ltc import LTC
from weightspace.families.para_gru import ParaGRU
from weightspace.families.second_order import SecondOrder
from zoo_builder.learning.untrained import Untrained
from zoo_builder.members import Members

IDS = ["a", "b", "c"]
EXAMPLES = [example for kind in families.available().values() for example in kind.examples()]
WITHOUT_SPECTRUM = {"LTC", "LRU", "StableReparam", "LowRankSparse", "WaveRNN", "CPRNN", "SecondOrder"}
"""Families of which some or all instances store their spectrum as something else, or have none."""


def params_of(family, ids=IDS, settings=None, **fields):
    learned = Untrained(**fields).learn(family, None, Members(0, ids, settings=settings or {}), [0])
    return {name: tensor[:, 0] for name, tensor in learned.params.items()}


def effective(family, params, model):
    return {name: value.numpy() for name, value in family.effective({k: v[model] for k, v in params.items()}).items()}


def spectra(family, params, model):
    """Eigenvalues (row, n) of recurrent matrices and diagonals that are stored as they are used, by name."""
    used, spec = effective(family, params, model), family.effective_spec
    found = {name: np.linalg.eigvals(used[name].astype(np.float64)) for name in spec.recurrent() if name in params}
    diagonals = {name: used[name] for name, _ in spec.vectors(diagonal=True) if name in params}
    return {name: np.atleast_2d(values) for name, values in (found | diagonals).items()}


def by_class(family):
    return type(family).__name__


@pytest.mark.parametrize("family", EXAMPLES, ids=by_class)
def test_every_recurrent_matrix_that_a_family_uses_has_the_radius(family):
    params = params_of(family, spectral_radius=0.7)
    found = [spectra(family, params, model) for model in range(3)]
    for values in (values for model in found for values in model.values()):
        np.testing.assert_allclose(np.abs(values).max(1), 0.7, rtol=2e-5)
    assert all(found) or by_class(family) in WITHOUT_SPECTRUM
    plain = params_of(family)
    assert {name for name in plain if not torch.equal(plain[name], params[name])} == set(found[0])


@pytest.mark.parametrize("kind", [GRU, ParaGRU])
def test_a_shift_moves_every_eigenvalue_by_as_much(kind):
    family = kind(input_size=2, hidden_size=5, output_size=1)
    before, after = params_of(family, spectral_radius=0.7), params_of(family, spectral_radius=0.7, spectral_shift=-0.4)
    for model in range(3):
        old, new = spectra(family, before, model), spectra(family, after, model)
        assert old
        for name in old:
            np.testing.assert_allclose(np.sort_complex(new[name]), np.sort_complex(old[name] - 0.4), atol=1e-5)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_matrices_are_cut_to_their_largest_singular_values_at_the_same_norm(share):
    family = GRU(input_size=2, hidden_size=6, output_size=1)
    whole, cut = params_of(family)["weight_hh.0"], params_of(family, rank=share)["weight_hh.0"]
    rank = max(1, round(6 * share))
    old, new = (np.linalg.svd(value.double().numpy(), compute_uv=False) for value in (whole, cut))
    assert (np.linalg.matrix_rank(cut.double().numpy(), tol=1e-5) == rank).all()
    np.testing.assert_allclose(np.linalg.norm(new, axis=-1), np.linalg.norm(old, axis=-1), rtol=1e-6)
    kept = old[..., :rank]
    scale = np.linalg.norm(old, axis=-1, keepdims=True) / np.linalg.norm(kept, axis=-1, keepdims=True)
    np.testing.assert_allclose(new[..., :rank], kept * scale, rtol=1e-5)
    # The best approximation lies in the span of the first singular vectors: what was cut off is orthogonal to it.
    rest = whole - cut / torch.from_numpy(scale)[..., None].to(cut)
    assert (rest.double() @ cut.double().mT).abs().max() < 1e-6


def test_weights_of_products_are_cut_as_matrices_of_pairs():
    family = SecondOrder(input_size=3, hidden_size=5, output_size=1)
    cut = params_of(family, rank=0.4)
    for name in ("weight_hhi", "weight_hh"):
        assert (np.linalg.matrix_rank(cut[name].flatten(2).double().numpy(), tol=1e-5) == 2).all()


@pytest.mark.parametrize("family", EXAMPLES, ids=by_class)
def test_connections_into_units_are_absent_with_their_chance_and_others_stay(family):
    ids = [str(number) for number in range(200)]
    plain, thinned = params_of(family, ids), params_of(family, ids, sparsity=0.3)
    changed = {name for name in plain if not torch.equal(plain[name], thinned[name])}
    spec = family.spec
    assert changed
    for name in changed:
        assert spec.axes[spec.node_axes(name)[0]].kind in ("hidden", "factor")
        present = plain[name] != 0
        absent = (thinned[name][present] == 0).double()
        assert absent.mean() == pytest.approx(0.3, abs=4 * math.sqrt(0.21 / len(absent)))
        kept = thinned[name] != 0
        assert torch.equal(thinned[name][kept], plain[name][kept])


def test_synapses_that_share_a_mask_are_absent_together():
    family = LTC(input_size=2, hidden_size=4, output_size=1, unfolds=1)
    params = params_of(family, sparsity=0.5)
    absent = params["mask_hidden"] == 0
    assert 0 < absent.double().mean() < 1
    for model in range(3):
        used = effective(family, params, model)
        for name in ("w", "mu", "sigma", "erev"):
            assert ((used[name] == 0) | ~absent[model].numpy()).all()


def test_a_gain_scales_and_structure_is_set_after_it():
    family = CPRNN(input_size=2, hidden_size=5, output_size=1, rank=3)
    once, twice = params_of(family), params_of(family, gain=2.0)
    assert all(torch.equal(2 * once[name], twice[name]) for name in once)
    scaled = params_of(family, gain=2.0, spectral_radius=0.9)
    assert torch.equal(scaled["factor_a"], twice["factor_a"])
    np.testing.assert_allclose(np.abs(spectra(family, scaled, 0)["weight_hh"]).max(), 0.9, rtol=1e-5)


def test_models_have_settings_and_streams_of_their_own_whatever_their_neighbours():
    family = Elman(input_size=1, hidden_size=7, output_size=1)
    settings = {
        "gain": torch.tensor([0.5, 1.0, 2.0]).double(),
        "rank": torch.tensor([0.3, 0.6, 1.0]).double(),
        "sparsity": torch.tensor([0.0, 0.2, 0.5]).double(),
        "spectral_radius": torch.tensor([0.0, 0.8, 1.5]).double(),
    }
    together = params_of(family, settings=settings)
    for number, model_id in enumerate(IDS):
        own = {name: value[number : number + 1] for name, value in settings.items()}
        alone = params_of(family, [model_id], own)
        fixed = params_of(family, [model_id], **{name: value.item() for name, value in own.items()})
        for name, value in together.items():
            assert torch.equal(alone[name][0], value[number])
            assert torch.equal(fixed[name][0], value[number])


def test_a_nilpotent_matrix_has_no_radius_and_stays():
    from zoo_builder.learning.structure import with_radius

    family = Elman(input_size=1, hidden_size=3, output_size=1)
    params = family.init(torch.Generator().manual_seed(0)) | {"weight_hh.0": torch.ones(3, 3).triu(1)}
    assert torch.equal(with_radius(family, params, 0.9)["weight_hh.0"], params["weight_hh.0"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rank": 0.0}, r"`rank` \(=0.0\) must be above 0 and at most 1"),
        ({"rank": 1.1}, r"`rank` \(=1.1\)"),
        ({"sparsity": 1.0}, r"`sparsity` \(=1.0\) must be at least 0 and below 1"),
        ({"spectral_radius": -1.0}, r"`spectral_radius` \(=-1.0\) must be 0 \(as drawn\) or above"),
        ({"spectral_shift": math.inf}, r"`spectral_shift` \(=inf\) must be finite"),
    ],
)
def test_structures_that_make_no_sense_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Untrained(**fields)
