"""Contrastive learning against closed forms, and that its views teach what an invariant encoder can see."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from tests.weightspace.zoos import write_zoo
from weightspace import families
from weightspace.data.augment import GroupMoves, MaskEdges, WeightNoise
from weightspace.data.batch import Batch
from weightspace.data.datamodule import ZooDataModule
from weightspace.encoders import Encoder
from weightspace.encoders.message_passing import MessagePassing
from weightspace.families.elman import Elman
from weightspace.objectives.contrastive import Contrastive, info_nce, spread_of
from weightspace.store import Stack
from weightspace.training.embed import load
from weightspace.training.module import EmbeddingModule, fit

ELMAN = Elman(input_size=1, hidden_size=4, output_size=1)


class Constant(Encoder):
    """Embeds every model alike."""

    def forward(self, stacks):
        """Ones (models, embedding_dim)."""
        return torch.ones(sum(len(stack) for stack in stacks), self.embedding_dim)

    def fit_standardisation(self, stacks):
        """Nothing to learn."""


def stack_of(family, models=6, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    drawn = [family.spec.random_params(generator, dtype) for _ in range(models)]
    return Stack(family, {k: torch.stack([one[k] for one in drawn]) for k in drawn[0]}, torch.arange(models))


def batch_of(*stacks, **fields):
    count = sum(len(stack) for stack in stacks)
    nothing = torch.empty(count, 0)
    return Batch(stacks=list(stacks), rows=torch.arange(count), targets=nothing, cell_means=nothing, **fields)


def contrastive(*views, **options):
    torch.manual_seed(0)
    objective = Contrastive(views, **{"neighbours": False, "width": 8, **options})
    objective.build(6)
    return objective


def small_encoder():
    torch.manual_seed(1)
    return MessagePassing(embedding_dim=6, edge_dim=4, node_dim=8, num_layers=2)


@pytest.mark.parametrize("stacks", [None, [0, 0, 1, 1, 1]], ids=["batch", "stack"])
def test_the_loss_is_the_written_out_formula_and_snapshots_of_one_model_are_no_negatives(stacks):
    projected = torch.randn(10, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    models = [0, 1, 2, 2, 3]
    losses, found = info_nce(projected, torch.tensor(models), None if stacks is None else torch.tensor(stacks))
    p = projected.numpy()
    for a in range(10):
        right = math.exp(p[a] @ p[(a + 5) % 10])
        wrong = [math.exp(p[a] @ p[b]) for b in range(10) if models[a % 5] != models[b % 5]
                 and (stacks is None or stacks[a % 5] == stacks[b % 5])]  # fmt: skip
        assert losses[a].item() == pytest.approx(-math.log(right / (right + sum(wrong))))
        assert found[a].item() == (right > max(wrong, default=0.0))


def test_views_that_cannot_be_told_apart_cost_the_logarithm_of_their_number():
    loss, metrics = contrastive(MaskEdges())(Constant(6), batch_of(stack_of(ELMAN, 9)))
    # Each view has one right and 2 * 8 wrong candidates, all equally near.
    assert metrics["info_nce"][0].item() == pytest.approx(math.log(17), rel=1e-5)
    assert loss.item() == pytest.approx(math.log(17) - 0.1 * math.log(1e-4), rel=1e-5)
    assert metrics["spread"][0].item() == pytest.approx(0.0, abs=1e-6)


def test_spread_is_the_share_of_squared_length_around_the_mean():
    rng = np.random.default_rng(0)
    e = rng.normal(1.0, 2.0, (50, 4))
    expected = e.var(0).sum() / (e**2).sum(1).mean()
    assert spread_of(torch.from_numpy(e)).item() == pytest.approx(expected)


@pytest.mark.parametrize("family", [f for k in families.available().values() for f in k.examples()], ids=str)
def test_the_loss_does_not_see_the_group_of_its_encoder(family):
    stack, near = (stack_of(family, seed=seed, dtype=torch.float64) for seed in (0, 1))
    moves = GroupMoves(permutations=True, gauges=False)
    objective, encoder = contrastive(neighbours=True, temperature=0.01).double(), small_encoder().double().eval()
    encoder.fit_standardisation([stack])

    def loss(*pair):
        return objective(encoder, batch_of(pair[0], neighbours=[pair[1]]))[0].item()

    moved = abs(loss(moves(stack), moves(near)) - loss(stack, near))
    reordered = Stack(family, {k: v.flip(0) for k, v in near.params.items()}, near.rows)
    broken = abs(loss(stack, reordered) - loss(stack, near))
    assert moved < 1e-6 * broken


def test_views_are_drawn_by_the_key_of_the_batch_and_differ():
    objective, encoder, stack = contrastive(MaskEdges(0.3), WeightNoise(0.1)), small_encoder(), stack_of(ELMAN)

    def loss(key):
        return objective(encoder, batch_of(stack, key=key))[0].item()

    assert loss(2**63 - 5) == loss(2**63 - 5)
    assert len({loss(key) for key in range(4)}) == 4
    one, two = (objective._changed([stack], key)[0].params["weight_hh.0"] for key in (0, 1))
    assert not torch.equal(one, two)


def test_moves_that_the_encoder_cannot_see_are_refused_and_others_are_not():
    batch = batch_of(stack_of(ELMAN))
    with pytest.raises(ValueError, match=r"MessagePassing is invariant to \['permutation'\]"):
        contrastive(GroupMoves(permutations=True))(small_encoder(), batch)
    # Message passing sees signs, and an encoder without symmetry sees everything.
    for objective, encoder in (
        (contrastive(GroupMoves()), small_encoder()),
        (contrastive(GroupMoves(permutations=True)), Constant(6)),
    ):
        assert torch.isfinite(objective(encoder, batch)[0])


def test_what_cannot_be_learned_from_is_refused():
    with pytest.raises(ValueError, match="both views are the same"):
        Contrastive(neighbours=False)
    with pytest.raises(ValueError, match="must be 'batch' or 'stack'"):
        Contrastive(negatives="all")
    with pytest.raises(ValueError, match="must be above 0"):
        Contrastive(temperature=0.0)
    with pytest.raises(ValueError, match="no neighbouring snapshots"):
        contrastive(neighbours=True)(small_encoder(), batch_of(stack_of(ELMAN)))


def test_training_lowers_the_loss_without_collapse_and_the_checkpoint_reloads(tmp_path):
    zoo = write_zoo(tmp_path / "zoo", [ELMAN], models=40, rollouts=False)
    data = ZooDataModule(zoo, batch_size=24, groups_per_batch=2)
    views = [MaskEdges(0.1), WeightNoise(0.05)]
    module = EmbeddingModule(small_encoder(), Contrastive(views, neighbours=False, width=8), learning_rate=1e-2)
    best = fit(module, data, tmp_path / "run", max_epochs=12)
    head, *lines = (line.split(",") for line in (tmp_path / "run" / "metrics.csv").read_text().splitlines())
    column = {name: [float(line[head.index(name)]) for line in lines if line[head.index(name)]] for name in head}
    assert column["val/info_nce"][-1] < 0.8 * column["val/info_nce"][0]
    assert column["val/found"][-1] > 0.6
    assert column["val/spread"][-1] > 0.1
    again = load(best)
    assert [view.construction for view in again.objective.views] == [view.construction for view in views]
    stack = stack_of(ELMAN)
    torch.testing.assert_close(again.encoder.eval()([stack]), load(best).encoder.eval()([stack]))
    assert torch.load(best, weights_only=True)["weightspace"]["learned_with"] == "no_labels"
    assert isinstance(again.objective.head, nn.Sequential)


def test_neighbours_are_learned_from_through_the_data_module(tmp_path):
    zoo = write_zoo(tmp_path / "zoo", [ELMAN], models=20, rollouts=False)
    data = ZooDataModule(zoo, batch_size=8, groups_per_batch=2)
    best = fit(EmbeddingModule(small_encoder(), Contrastive(width=8)), data, tmp_path / "run", max_epochs=1)
    assert best.exists()
