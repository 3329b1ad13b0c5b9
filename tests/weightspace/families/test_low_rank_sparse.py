"""Recurrent matrices of low rank under sparse masks: the function, the start, and the law of their spectra."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from weightspace.families.low_rank_sparse import LowRankSparse
from weightspace.rollout import generator, native, rollout
from weightspace.store import Stack

EXAMPLES = pytest.mark.parametrize("family", LowRankSparse.examples(), ids=str)
UNITS, SEEDS = 64, 20


@EXAMPLES
def test_it_is_the_cell_with_computed_matrices(family):
    params = family.spec.random_params(generator(0, "m", "params"))
    dense = {name: value for name, value in params.items() if name in family.dense.spec.tensors}
    for name in set(family.dense.spec.tensors) - set(dense):
        to, source, mask = (params[f"{name}.{part}"].numpy() for part in ("to", "from", "mask"))
        dense[name] = torch.from_numpy(np.einsum("...ir,...rj->...ij", to, source) * mask)
    x = torch.randn(1, 6, 3, family.input_size, dtype=torch.float64, generator=generator(0, "m", "x"))
    outputs, expected = (
        rollout(one, {name: value[None] for name, value in values.items()}, x).outputs
        for one, values in ((family, params), (family.dense, dense))
    )
    torch.testing.assert_close(outputs, expected, rtol=1e-12, atol=1e-12)


@EXAMPLES
def test_whole_updates_run_in_c(family):
    if native.why_not_here() is not None:
        pytest.skip("there is no compiler")
    assert native.can_descend_on(family)


def effective_matrix(seed, **fields):
    family = LowRankSparse(input_size=1, output_size=1, hidden_size=UNITS, cell="Elman", **fields)
    return family.effective(family.init(generator(0, str(seed), "init")))["weight_hh.0"].double()


def test_factors_start_from_the_first_singular_values():
    whole, cut = (effective_matrix(0, rank=rank, initial="orthogonal") for rank in (UNITS, 16))
    torch.testing.assert_close(whole @ whole.T, torch.eye(UNITS, dtype=torch.float64), rtol=0, atol=1e-5)
    values = torch.linalg.svdvals(cut)
    torch.testing.assert_close(values[:16], torch.ones(16, dtype=torch.float64), rtol=0, atol=1e-5)
    assert values[16:].max() < 1e-5
    glorot, cut = (effective_matrix(0, rank=rank) for rank in (UNITS, 16))
    assert glorot.var().item() == pytest.approx(1 / UNITS, rel=0.1)
    torch.testing.assert_close(torch.linalg.svdvals(cut)[:16], torch.linalg.svdvals(glorot)[:16], rtol=0, atol=1e-5)


def spectral_radius(**fields):
    """Mean over seeds of the largest |eigenvalue|."""
    matrices = torch.stack([effective_matrix(seed, **fields) for seed in range(SEEDS)])
    return torch.linalg.eigvals(matrices).abs().amax(1).mean().item()


def predicted_radius(rank, sparsity, initial):
    """sqrt(1 - s) sqrt(sum of the first r squared singular values / hidden), that of a matrix of random entries."""
    values = np.ones((1, UNITS))
    if initial == "glorot":
        draws = np.random.default_rng(0).uniform(-1, 1, (SEEDS, UNITS, UNITS)) * (3 / UNITS) ** 0.5
        values = np.linalg.svd(draws, compute_uv=False)
    return np.sqrt((1 - sparsity) * np.square(values[:, :rank]).sum(1) / UNITS).mean()


@pytest.mark.parametrize("initial", ["glorot", "orthogonal"])
def test_spectral_radius_follows_rank_and_sparsity(initial):
    ranks, shares = (4, 16, 64), (0.0, 0.5, 0.8)
    radius = {(r, s): spectral_radius(rank=r, sparsity=s, initial=initial) for r in ranks for s in shares}
    for (rank, sparsity), found in radius.items():
        assert found == pytest.approx(predicted_radius(rank, sparsity, initial), rel=0.15), (rank, sparsity)
    for sparsity in shares:
        assert all(radius[low, sparsity] < radius[high, sparsity] for low, high in pairwise(ranks))
    for rank in ranks:
        assert all(radius[rank, low] > radius[rank, high] for low, high in pairwise(shares))


def test_a_mask_takes_synapses_out_of_the_graph_and_lifts_the_rank():
    family = LowRankSparse(input_size=1, output_size=1, hidden_size=UNITS, cell="Elman", rank=4, sparsity=0.2)
    params = {name: value[None] for name, value in family.init(generator(0, "m", "init")).items()}
    spec, used = Stack(family, params, torch.arange(1)).effective
    mask = used[spec.tensors["weight_hh.0"].mask]
    assert mask.mean().item() == pytest.approx(0.8, abs=0.02)
    assert (used["weight_hh.0"][mask == 0] == 0).all()
    assert torch.linalg.matrix_rank(used["weight_hh.0"].double()).item() > 60


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rank": 5}, r"`hidden_size` \(=4\) .* must be at least 5: no matrix has a `rank` above its size"),
        ({"sparsity": 1.0}, r"`sparsity` \(=1.0\) must be at least 0 and below 1"),
        ({"initial": "normal"}, r"`initial` \(='normal'\) must be one of"),
        ({"cell": "GRUU"}, r"No family is called 'GRUU'.*Did you mean 'GRU'"),
        ({"cell": "LRU"}, r"`cell` \(='LRU'\) has no recurrent matrix"),
        ({"cell": "CPRNN"}, r"CPRNN needs `rank`"),
    ],
)
def test_what_cannot_be_factored_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        LowRankSparse(**{"input_size": 1, "hidden_size": 4, "output_size": 2, "cell": "Elman", "rank": 2, **fields})
