"""Pruning against scipy, numpy and networkx, what is held while the rest learns, and what cannot be pruned."""

import itertools

import networkx
import numpy as np
import pytest
import scipy.linalg
import torch

from tests.members import ONE_OF_EACH, sized_for
from tests.zoo_builder.linear_family import Linear
from weightspace.families.echo_state import EchoState
from weightspace.families.elman import Elman
from weightspace.families.gru import GRU
from weightspace.families.hrsnn import HRSNN
from weightspace.families.leaky import Leaky
from weightspace.families.low_rank_sparse import LowRankSparse
from weightspace.families.lru import LRU
from weightspace.families.second_order import SecondOrder
from weightspace.rollout import Streams, generator, rollout
from zoo_builder import learning
from zoo_builder.learning import lyapunov_pruning as lyapunov
from zoo_builder.learning import pruning
from zoo_builder.learning.base import Run, fresh_params
from zoo_builder.learning.bptt import BPTT
from zoo_builder.learning.pruned import CHOICES, Pruned
from zoo_builder.learning.surrogate_search import minimise, posterior
from zoo_builder.members import Members
from zoo_builder.tasks.lorenz import Lorenz
from zoo_builder.tasks.roessler import Roessler

IDS = ["a", "b", "c"]
TASK = Lorenz(num_steps=8, max_ahead=2, ahead=1)
SIZES = {"input_size": 3, "output_size": 3}
HELD = [
    Elman(hidden_size=8, **SIZES),
    Elman(hidden_size=6, num_layers=2, **SIZES),
    Leaky(hidden_size=8, **SIZES),
    HRSNN(hidden_size=8, degree=4, **SIZES),
]


class Halved(Linear):
    """A network that uses half of its stored matrix."""

    def effective(self, params):
        return {**params, "a": params["a"] / 2}


def matrix(size=12, seed="m"):
    draws = np.random.default_rng([size, len(seed)]).standard_normal((size, size)) / size**0.5
    return np.where(np.abs(draws) > 0.1, draws, 0)


def parent(size=12):
    return pruning.Parent(weight=matrix(size), activity=np.arange(size, dtype=float))


def off_diagonal(weight):
    return weight * (1 - torch.eye(weight.shape[-1]))


def test_the_covariance_is_that_of_the_linear_model_under_noise():
    model = pruning.linearised(parent().edges)
    found = pruning.noise_covariance(model)
    # C is the integral of exp(A t) exp(A^T t); the linear model forgets within some 20 time constants.
    assert np.linalg.eigvals(model).real.max() <= -pruning.LEAK
    symmetric = (model + model.T) / 2
    np.testing.assert_allclose(
        pruning.noise_covariance(symmetric), -np.linalg.inv(symmetric) / 2, rtol=1e-9, atol=1e-9
    )
    step = 0.002
    grown, power, total = scipy.linalg.expm(step * model), np.eye(len(model)), np.zeros_like(model)
    while np.abs(power).max() > 1e-4:
        total += step * power @ power.T
        power = grown @ power
    np.testing.assert_allclose(found, total, rtol=0.02, atol=0.02 * np.abs(found).max())


@pytest.mark.parametrize("share", [0.05, 0.4, 0.9])
def test_probabilities_are_proportional_below_one_and_have_the_sum(share):
    importance = np.random.default_rng(0).exponential(size=(9, 9)) ** 3
    importance[2] = 0
    expected = share * 72
    found = pruning.keep_probabilities(importance, expected)
    assert found.sum() == pytest.approx(expected)
    assert found.max() <= 1
    assert not found[2].any()
    below = (found < 1) & (importance > 0)
    factor = found[below] / importance[below]
    np.testing.assert_allclose(factor, factor[0])
    assert (factor[0] * importance[found == 1] >= 1 - 1e-12).all()
    assert pruning.keep_probabilities(importance, 72).sum() == 72


def test_noise_pruning_keeps_by_variance_of_differences_and_its_mean_is_the_matrix():
    whole = parent()
    edges, size = whole.edges, 12
    covariance = pruning.noise_covariance(pruning.linearised(edges))
    importance = np.zeros((size, size))
    for i, j in itertools.product(range(size), range(size)):
        sign = -1 if edges[i, j] < 0 else 1
        apart = covariance[i, i] + covariance[j, j] - 2 * sign * covariance[i, j]
        importance[i, j] = abs(edges[i, j]) * apart
    expected = pruning.keep_probabilities(importance, 50)
    draws = np.stack([pruning.by_noise(whole, 50, generator(0, str(i), "prune")) for i in range(2000)])
    assert np.abs((draws != 0).mean(0) - expected).max() < 5 * 0.5 / 2000**0.5
    kept = draws[:, expected > 0.2]
    np.testing.assert_allclose(kept.mean(0), edges[expected > 0.2], atol=0.05)
    pair = np.unravel_index(np.argmin(np.where(expected > 0, expected, 2)), expected.shape)
    values = np.unique(draws[:, pair[0], pair[1]])
    np.testing.assert_allclose(values[values != 0], edges[pair] / expected[pair])


def test_magnitude_and_activity_keep_the_largest_as_they_are():
    whole = parent()
    edges = whole.edges
    for rule, importance in (
        (pruning.by_magnitude, np.abs(edges)),
        (pruning.by_activity, np.abs(edges) * np.arange(12)),
    ):
        kept = rule(whole, 30, generator(0, "m", "prune"))
        least = np.sort(importance.flatten())[-30]
        np.testing.assert_array_equal(kept, np.where(importance >= least, edges, 0))


def test_chance_keeps_all_connections_alike():
    draws = np.stack([pruning.by_chance(parent(), 40, generator(0, str(i), "prune")) for i in range(1000)])
    rates = (draws != 0).mean(0)[parent().edges != 0]
    assert rates.mean() == pytest.approx(40 / (parent().edges != 0).sum(), abs=0.005)
    assert rates.std() < 0.03
    np.testing.assert_allclose(draws.mean(0), parent().edges, atol=0.15)


def test_exponents_of_pairs_are_harmonic_means_over_neighbourhoods():
    edges = np.zeros((4, 4))
    edges[1, 0], edges[2, 1] = 0.5, -0.8
    model = pruning.linearised(edges)
    # Triangular: eigenvalues of the parts are diagonal entries, -leak - sum |w|.
    alone = {0: -0.02, 1: -0.52, 2: -0.82, 3: -0.02}
    near = {0: (0, 1), 1: (0, 1, 2), 2: (1, 2), 3: (3,)}
    own = {unit: max(alone[other] for other in others) for unit, others in near.items()}
    found = lyapunov.pair_exponents(model, edges)
    for i, j in itertools.product(range(4), range(4)):
        assert found[i, j] == pytest.approx(2 / (1 / own[i] + 1 / own[j]))


def test_betweenness_counts_shortest_paths_from_source_to_target():
    edges = parent(7).edges * (np.random.default_rng(1).random((7, 7)) < 0.5)
    lengths = np.random.default_rng(2).random((7, 7)) + 0.1
    graph = networkx.DiGraph()
    graph.add_nodes_from(range(7))
    for i, j in zip(*edges.nonzero(), strict=True):
        graph.add_edge(j, i, weight=lengths[i, j])
    through = np.zeros(7)
    for source, target in itertools.permutations(range(7), 2):
        if networkx.has_path(graph, source, target):
            paths = list(networkx.all_shortest_paths(graph, source, target, weight="weight"))
            for unit in set(range(7)) - {source, target}:
                through[unit] += np.mean([unit in path for path in paths])
    np.testing.assert_allclose(lyapunov.betweenness(edges, lengths), through / 30)


def test_added_connections_reach_the_count_and_never_a_lost_unit():
    edges = pruning.by_noise(parent(), 20, generator(0, "m", "prune"))
    alive = np.arange(12) >= 3
    edges = edges * np.outer(alive, alive)
    grown = lyapunov.spread_out(edges, alive, 40, generator(0, "m", "prune"))
    assert (grown != 0).sum() == 40
    assert not grown[:3].any()
    assert not grown[:, :3].any()
    assert not np.diag(grown).any()
    np.testing.assert_array_equal(grown[edges != 0], edges[edges != 0])
    most = lyapunov.spread_out(edges, alive, 1000, generator(0, "m", "prune"))
    assert (most != 0).sum() == 9 * 8


def test_an_added_connection_joins_the_most_localised_peak_to_the_busiest_unit_nearby():
    edges = np.zeros((6, 6))
    # A hub that all but the last read, and a pair of units that hangs on it.
    edges[1:4, 0] = edges[0, 1:4] = 0.3
    edges[4, 3] = 1e-3
    vectors = np.linalg.eig(pruning.linearised(edges))[1]
    ratios = (np.abs(vectors) ** 4).sum(0) / (np.abs(vectors) ** 2).sum(0) ** 2
    peak = int(np.abs(vectors[:, np.argmax(ratios)]).argmax())
    to, source = lyapunov.next_pair(edges, np.ones(6, dtype=bool))
    assert to == peak
    degrees = (edges != 0).sum(0) + (edges != 0).sum(1)
    free = [unit for unit in range(6) if unit != peak and not edges[peak, unit]]
    assert degrees[source] == max(degrees[free])


def test_time_constants_come_nearer_to_the_spectrum_of_the_parent():
    size, nearer = 16, 0
    for seed in range(5):
        draw = np.random.default_rng(seed)
        weight = 0.3 * draw.standard_normal((size, size)) / 4
        sparse = weight * (draw.random((size, size)) < 0.2)
        tau = 1 + draw.gamma(2, 5, size)
        found = lyapunov.retimed(tau, weight, sparse, generator(0, str(seed), "prune"))
        aim = lyapunov.spectrum(tau, weight)
        before, after = (np.abs(lyapunov.spectrum(t, sparse) - aim).mean() for t in (tau, found))
        assert after <= before
        assert found.min() >= 1
        nearer += after < before
        if after < before:
            np.testing.assert_array_equal(found.argsort(), tau.argsort())
    assert nearer >= 3


def test_the_spectrum_is_that_of_a_linear_map():
    tau, edges = np.array([2.0, 5.0, 9.0]), np.tril(np.ones((3, 3)), -1)
    np.testing.assert_allclose(lyapunov.spectrum(tau, edges), [-1 / 9, -1 / 5, -1 / 2])


def test_the_process_agrees_with_that_of_scikit_learn():
    gaussian = pytest.importorskip("sklearn.gaussian_process")
    draw = np.random.default_rng(0)
    points, candidates = draw.random((9, 2)), draw.random((20, 2))
    values = np.sin(4 * points[:, 0]) + points[:, 1]
    kernel = gaussian.kernels.RBF(0.25, "fixed")
    process = gaussian.GaussianProcessRegressor(kernel, alpha=1e-6, optimizer=None, normalize_y=True)
    mean, deviation = process.fit(points, values).predict(candidates, return_std=True)
    found = posterior(points, values, candidates)
    np.testing.assert_allclose(found[0], mean, atol=1e-6)
    np.testing.assert_allclose(found[1], deviation, atol=2e-3)


def test_the_search_finds_the_bottom_of_a_bowl_better_than_chance():
    low, high = np.array([-2.0, 1.0]), np.array([3.0, 5.0])

    def bowl(point):
        return float((((point - np.array([1.3, 2.2])) / (high - low)) ** 2).sum())

    searched, random = [], []
    for seed in range(8):
        searched.append(bowl(minimise(bowl, low, high, generator(0, str(seed), "search"))))
        draws = np.random.default_rng(seed).random((24, 2))
        random.append(min(bowl(low + (high - low) * draw) for draw in draws))
    assert np.median(searched) < 0.1 * np.median(random)


@pytest.mark.parametrize("method", CHOICES)
@pytest.mark.parametrize("family", HELD, ids=str)
def test_pruned_connections_stay_absent_while_the_others_learn(family, method):
    learner = Pruned(method=method, density=0.5, num_updates=3, batch_size=2, weight_decay=0.1)
    dense = fresh_params(family, 0, IDS)
    for run in (Run(method="native"), Run(method="stacked"))[: 2 if method == "noise" else 1]:
        params = learner.learn(family, TASK, Members(0, IDS), [0, 3], run).params
        for name in family.spec.recurrent():
            first, last = (off_diagonal(params[name][:, snapshot]) for snapshot in (0, 1))
            existing = int((off_diagonal(dense[name][0]) != 0).sum())
            counts = (first != 0).flatten(1).sum(1)
            assert torch.equal(first != 0, last != 0)
            assert not torch.equal(first, last)
            # Chance keeps the share on average: within four standard deviations.
            slack = 0 if method in ("magnitude", "activity") else 4 * 0.5 * existing**0.5
            assert (counts - round(0.5 * existing)).abs().max() <= slack
            if method == "lyapunov_noise":
                # Connections that chance removes beyond the density are added again.
                assert counts.min() >= round(0.5 * existing)
            diagonals = (tensor[name].diagonal(dim1=-2, dim2=-1) for tensor in (dense, {name: params[name][:, 0]}))
            assert torch.equal(*diagonals)
            mask = family.spec.tensors[name].mask
            if mask is not None:
                assert torch.equal(params[mask] != 0, params[name] != 0)


SIZED = [sized_for(example, TASK) for example in ONE_OF_EACH]
PRUNABLE = [family for family in SIZED if Pruned().why_not(family, TASK) is None]


@pytest.mark.parametrize("family", PRUNABLE, ids=lambda family: type(family).__name__)
def test_every_family_that_is_not_refused_keeps_what_is_gone_absent(family):
    learner = Pruned(method="magnitude", density=0.5, num_updates=2, batch_size=2, weight_decay=0.1)
    params = learner.learn(family, TASK, Members(0, IDS), [0, 2], Run(method="native")).params
    for name in family.spec.recurrent():
        first, last = (off_diagonal(params[name][:, snapshot]) != 0 for snapshot in (0, 1))
        assert torch.equal(first, last)
        size = first.shape[-1]
        assert 0 < int(first[0].sum()) <= (size * (size - 1) + 1) // 2


def test_learning_after_pruning_is_that_of_bptt_on_what_is_left():
    # A mask that is declared holds by itself.
    family = HRSNN(hidden_size=8, degree=4, **SIZES)
    settings = {"num_updates": 5, "batch_size": 4}
    first = Pruned(**settings).learn(family, TASK, Members(0, IDS), [0]).params
    given = Members(0, IDS, params={name: tensor[:, 0] for name, tensor in first.items()})
    for run, tolerance in ((Run(method="stacked"), 1e-6), (Run(method="native"), 0)):
        expected = BPTT(**settings).learn(family, TASK, given, [5], run).params
        found = Pruned(**settings).learn(family, TASK, Members(0, IDS), [5], run).params
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=tolerance, atol=tolerance)


def test_one_pruned_network_learns_two_tasks():
    family = HRSNN(hidden_size=8, degree=4, **SIZES)
    learner = Pruned(method="lyapunov_noise", num_updates=2, batch_size=2, net=1)
    nets = {"net": torch.tensor([1.0, 2.0])}
    lorenz, roessler = (
        learner.learn(family, task, Members(0, [f"{name}-0", f"{name}-1"], {}, nets), [0, 2]).params
        for name, task in (("l", TASK), ("r", Roessler(num_steps=8, max_ahead=2, ahead=1)))
    )
    for name, tensor in lorenz.items():
        assert torch.equal(tensor[:, 0], roessler[name][:, 0])
    assert not torch.equal(lorenz["weight_hh"][0, 0], lorenz["weight_hh"][1, 0])
    assert torch.equal(lorenz["mask_hh"][:, 1], roessler["mask_hh"][:, 1])
    assert not torch.equal(lorenz["weight_hh"][:, 1], roessler["weight_hh"][:, 1])


def test_a_model_is_pruned_the_same_whatever_its_neighbours():
    family = Elman(hidden_size=8, **SIZES)
    densities = {"density": torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)}
    members = Members(0, IDS, {}, densities)
    for method in CHOICES:
        learner = Pruned(method=method, num_updates=1, batch_size=2)
        together = learner.learn(family, TASK, members.padded(), [0]).params
        alone = learner.learn(family, TASK, members.part(1, 2).padded(), [0]).params
        for name, tensor in together.items():
            assert torch.equal(tensor[1], alone[name][0])
        counts = (off_diagonal(together["weight_hh.0"][:3, 0]) != 0).flatten(1).sum(1)
        assert counts.tolist() == sorted(counts.tolist())


def test_units_that_are_taken_out_have_no_weights_and_gain_none():
    family = HRSNN(hidden_size=12, degree=6, **SIZES)
    learner = Pruned(method="lyapunov_noise", density=0.3, unit_density=0.5, num_updates=3, batch_size=2)
    params = learner.learn(family, TASK, Members(0, IDS), [0, 3]).params
    for snapshot in (0, 1):
        now = {name: tensor[:, snapshot] for name, tensor in params.items()}
        lost = ~((now["weight_hh"] != 0).any(1) | (now["weight_hh"] != 0).any(2))
        assert (lost.sum(1) >= 6).all()
        for name, dim in (("weight_ih", 1), ("bias", 1), ("weight_ho", 2)):
            tensor = now[name].movedim(dim, 1)
            assert not tensor[lost].any()
            assert tensor[~lost].any()
    x = TASK.sample({}, Streams(0, IDS, "t"), 2, "train").x
    assert torch.isfinite(rollout(family, now, x).outputs).all()


@pytest.mark.parametrize(("share", "left"), [(0.01, 0), (0.1, 1)])
def test_networks_of_which_no_connection_would_be_left_are_refused(share, left):
    learner, family = Pruned(method="lyapunov_noise", unit_density=share, num_updates=1), Elman(hidden_size=8, **SIZES)
    with pytest.raises(ValueError, match=rf"`unit_density` \(={share}\) leaves {left} of 8 units"):
        learner.learn(family, TASK, Members(0, IDS), [0])
    assert Pruned(method="lyapunov_noise", unit_density=0.25).why_not(family, TASK) is None


def test_fixed_reservoirs_are_pruned_too():
    family = EchoState(hidden_size=10, **SIZES)
    params = Pruned(method="magnitude", density=0.2, num_updates=2, batch_size=2).learn(
        family, TASK, Members(0, IDS), [0, 2]
    ).params
    assert (off_diagonal(params["weight_hh"]) != 0).sum((-2, -1)).tolist() == [[18, 18]] * 3


@pytest.mark.parametrize(
    ("family", "message"),
    [
        (GRU(hidden_size=4, **SIZES), "^Pruned cannot train GRU on .*'weight_hh.0' has the rows gate, timescale"),
        (LRU(hidden_size=4, **SIZES), "and this family has none; choose"),
        (SecondOrder(hidden_size=4, **SIZES), "this family recurs through '.*', too; choose"),
        (LowRankSparse(hidden_size=4, rank=2, cell="Elman", **SIZES), "and this family has none|recurs through"),
        (Halved(hidden_size=4, **SIZES), "'a' is computed from; choose"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_families_that_cannot_be_pruned_are_refused_before_they_learn(family, message):
    with pytest.raises(ValueError, match=message):
        Pruned().check(family, TASK)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"density": 0.0}, "`density`"),
        ({"density": 1.5}, "`density`"),
        ({"method": "luck"}, "`method`"),
        ({"unit_density": 0.5}, "is for the method lyapunov_noise"),
        ({"unit_density": 0.0, "method": "lyapunov_noise"}, "`unit_density`"),
        ({"net": -1}, "`net`"),
    ],
)
def test_settings_out_of_range_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        learning.load("Pruned", fields)
