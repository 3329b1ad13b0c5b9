"""Matching: its loss against a loop, cells that are kept apart, and that it can be learned."""

import math

import pytest
import torch
import torch.nn.functional as F

from tests.weightspace.test_objectives import Given, batch_of, rollouts
from tests.weightspace.zoos import FAMILIES, write_zoo
from weightspace.data.batch import Training
from weightspace.data.datamodule import ZooDataModule
from weightspace.encoders.message_passing import MessagePassing
from weightspace.objectives.matching import Matching
from weightspace.store import cell_codes


def matching(**options):
    torch.manual_seed(0)
    objective = Matching(**{"max_input_size": 3, "max_output_size": 4, "width": 8, **options})
    objective.build(3)
    return objective


def test_the_loss_is_cross_entropy_within_cells_in_both_directions():
    objective = matching(temperature=0.5).eval()
    torch.manual_seed(1)
    e, (x, outputs) = torch.randn(5, 3), rollouts(5, 2, 3)
    cells = torch.tensor([4, 7, 4, 4, 9])
    loss, metrics = objective(Given(3), batch_of(e, rollouts=[(x, outputs)], cells=cells))
    a = F.normalize(objective.of_weights(e), dim=-1)
    layers = objective.read
    read = layers["input"](F.pad(x[:, :4], (0, 1))) + layers["output"](F.pad(torch.asinh(outputs[:, :4]), (0, 1)))
    states = torch.stack([objective.reader(own)[0].mean((0, 1)) for own in read])
    b = F.normalize(objective.of_behaviour(states), dim=-1)
    losses = []
    # The others are alone in their cells.
    for i in (0, 2, 3):
        for similarity in (a @ b.T / 0.5, b @ a.T / 0.5):
            losses.append(-(similarity[i, i] - torch.logsumexp(similarity[i, [0, 2, 3]], 0)).item())
    assert loss.item() == pytest.approx(sum(losses) / 6, rel=1e-5)
    assert metrics["found"][1] == 3


def test_models_alone_in_their_cells_teach_nothing():
    e = torch.randn(3, 3, requires_grad=True)
    loss, metrics = matching()(Given(3), batch_of(e, rollouts=[rollouts(3, 2, 3)], cells=torch.arange(3)))
    assert (loss.item(), metrics) == (0.0, {})
    loss.backward()


def test_batches_bring_the_cells_of_the_table(tmp_path):
    data = ZooDataModule(write_zoo(tmp_path / "zoo", FAMILIES[::2], 10), batch_size=16, groups_per_batch=2)
    data.serve(with_rollouts=True)
    codes = torch.from_numpy(cell_codes(data.zoo.table))
    objective = matching(max_input_size=2).eval()
    encoder = MessagePassing(embedding_dim=3, edge_dim=4, node_dim=4, product_dim=2, num_layers=1)
    for batch in data.val_dataloader():
        assert torch.equal(batch.cells, codes[batch.rows])
        # Few models of one cell in a batch: by chance the log of their number.
        loss, metrics = objective(encoder, batch)
        counts = (batch.cells[:, None] == batch.cells[None]).sum(1)
        assert loss.item() == pytest.approx(counts[counts > 1].log().mean().item(), abs=0.7)
        assert metrics["info_nce"][1] == (counts > 1).sum()


def test_pairs_are_told_by_what_the_embedding_says_of_the_outputs():
    objective = matching(width=16, max_output_size=1)
    torch.manual_seed(1)
    e = torch.randn(24, 3)
    x = torch.randn(24, 6, 5, 1)
    batch = batch_of(e, rollouts=[(x, x * e[:, :1, None, None])], cells=torch.arange(24) % 3)
    optimizer = torch.optim.Adam(objective.parameters(), lr=0.02)
    for _ in range(120):
        optimizer.zero_grad()
        loss, metrics = objective(Given(3), batch)
        loss.backward()
        optimizer.step()
    # By chance log 8 nats, and one in eight.
    assert loss.item() < 0.6 * math.log(8)
    assert metrics["found"][0].item() > 0.4


def test_what_cannot_be_read_is_refused():
    empty = torch.empty(0, 0)
    with pytest.raises(ValueError, match=r"Axis 'output' of the zoo has size 9, .* `max_output_size` \(=4\)"):
        matching().fit_scales(Training(targets=empty, cell_means=empty, input_size=1, output_size=9))
    with pytest.raises(ValueError, match="has no rollouts, which Matching reads"):
        matching()(Given(3), batch_of(torch.zeros(1, 3)))
    with pytest.raises(ValueError, match=r"`temperature` \(=0\) must be above 0"):
        matching(temperature=0)
