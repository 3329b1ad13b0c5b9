"""Training: scales, schedule, checkpoints, resuming bit for bit, and budgets."""

import os
import signal
import time
from dataclasses import replace

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import nn

from tests.weightspace.zoos import write_zoo
from weightspace.data.datamodule import ZooDataModule
from weightspace.encoders import Encoder
from weightspace.encoders.message_passing import MessagePassing
from weightspace.families.elman import Elman
from weightspace.objectives.emulation import Emulation
from weightspace.objectives.supervised import Supervised
from weightspace.training.budget import StopAfter
from weightspace.training.embed import load
from weightspace.training.module import EmbeddingModule, fit

ELMAN = Elman(input_size=1, hidden_size=4, output_size=1)


class Sums(Encoder):
    """Reads the sorted diagonal of an Elman network; with dropout, so that training draws random numbers."""

    def __init__(self, embedding_dim: int = 8, dropout: float = 0.0) -> None:
        super().__init__(embedding_dim)
        self.layers = nn.Sequential(nn.Linear(4, 16), nn.SiLU(), nn.Dropout(dropout), nn.Linear(16, embedding_dim))
        self.register_buffer("scale", torch.ones(()))

    def fit_standardisation(self, stacks):
        """Root mean square of the diagonal."""
        self.scale.copy_(torch.cat([self._read(stack) for stack in stacks]).square().mean().sqrt())

    def forward(self, stacks):
        """Embeddings (models, embedding_dim)."""
        return self.layers(torch.cat([self._read(stack) for stack in stacks]) / self.scale)

    def _read(self, stack):
        return stack.params["weight_hh.0"].diagonal(dim1=1, dim2=2).sort(dim=1).values


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    return write_zoo(tmp_path_factory.mktemp("module") / "zoo", [ELMAN], models=60, shards_per_family=2)


def module_of(objective=None, dropout=0.0, **options):
    torch.manual_seed(0)
    options = {"learning_rate": 1e-2, **options}
    return EmbeddingModule(Sums(dropout=dropout), objective or Supervised(["trace", "score"]), **options)


def data_of(zoo):
    return ZooDataModule(zoo, batch_size=24, groups_per_batch=2)


def states(checkpoint):
    return torch.load(checkpoint, weights_only=True)["state_dict"]


class StopAtEpoch(pl.Callback):
    """Ends training after an epoch as an interruption would, with the schedule of the whole run."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_epoch_end(self, trainer, pl_module):
        trainer.should_stop = trainer.current_epoch + 1 >= self.epoch


def test_training_learns_the_label_and_its_residual(zoo, tmp_path):
    module = module_of(Supervised(["trace"]))
    best = fit(module, data_of(zoo), tmp_path, max_epochs=60)
    last_line = (tmp_path / "metrics.csv").read_text().splitlines()
    names = last_line[0].split(",")
    column = names.index("val/r2.trace")
    assert max(float(line.split(",")[column] or "-inf") for line in last_line[1:]) > 0.9
    assert best.name == "best.ckpt"
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}


def test_scales_are_learned_once_and_travel_in_the_checkpoint(zoo, tmp_path):
    module = module_of()
    best = fit(module, data_of(zoo), tmp_path / "a", max_epochs=1)
    state = states(best)
    assert state["encoder.scale"] != 1.0
    assert state["fitted"]
    loaded = load(best)
    loaded.encoder.scale.fill_(7.0)
    fit(loaded, data_of(zoo), tmp_path / "b", max_epochs=1)
    assert loaded.encoder.scale == 7.0


def test_a_checkpoint_is_plain_and_rebuilds_nested_components_with_their_own_settings(zoo, tmp_path):
    module = module_of(Emulation(width=12, sequences_per_model=2), weight_decay=0.03)
    best = fit(module, data_of(zoo), tmp_path, max_epochs=1)
    content = torch.load(best, weights_only=True)
    said = content["weightspace"]
    assert (said["encoder"], said["objective"], said["learned_with"]) == ("Sums", "Emulation", "no_labels")
    assert said["zoo"] == data_of(zoo).zoo.fingerprint
    loaded = load(best)
    assert loaded.objective.construction["init_args"]["width"] == 12
    assert loaded.weight_decay == 0.03
    assert all(torch.equal(a, content["state_dict"][name]) for name, a in loaded.state_dict().items())


def test_a_resumed_run_goes_on_bit_for_bit_even_with_dropout(zoo, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    fit(module_of(dropout=0.3), data_of(zoo), whole, max_epochs=4)
    fit(module_of(dropout=0.3), data_of(zoo), broken, max_epochs=4, callbacks=[StopAtEpoch(2)])
    torch.manual_seed(99)
    fit(module_of(dropout=0.3), data_of(zoo), broken, max_epochs=4, resume=True)
    expected, found = (states(run / "checkpoints" / "last.ckpt") for run in (whole, broken))
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert (broken / "metrics-1.csv").exists()


def test_other_seeds_train_other_encoders_and_the_same_seed_the_same(zoo, tmp_path):
    ends = []
    for number, seed in enumerate((0, 0, 1)):
        data = ZooDataModule(zoo, batch_size=24, groups_per_batch=2, seed=seed)
        fit(module_of(seed=seed), data, tmp_path / str(number), max_epochs=1)
        ends.append(states(tmp_path / str(number) / "checkpoints" / "last.ckpt")["encoder.layers.0.weight"])
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])


def test_the_learning_rate_warms_up_peaks_and_ends_near_zero(zoo, tmp_path):
    rates = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    fit(module_of(warmup=0.2), data_of(zoo), tmp_path, max_epochs=10, callbacks=[Watch()])
    peak = max(range(len(rates)), key=rates.__getitem__)
    assert rates[peak] == pytest.approx(1e-2, rel=0.05)
    assert abs(peak / len(rates) - 0.2) < 0.05
    assert rates[-1] < 1e-4
    assert rates[:peak] == sorted(rates[:peak])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)


def test_biases_and_norms_are_not_decayed(zoo):
    module = module_of(weight_decay=0.5)
    module._trainer = pl.Trainer(logger=False, enable_checkpointing=False, max_epochs=1, enable_progress_bar=False)
    module._factor = lambda step: 1.0
    groups = module.configure_optimizers()["optimizer"].param_groups
    assert {p.dim() > 1 for p in groups[0]["params"]} == {True}
    assert {p.dim() for p in groups[1]["params"]} == {1}
    assert (groups[0]["weight_decay"], groups[1]["weight_decay"]) == (0.5, 0.0)


def test_a_budget_of_cpu_time_ends_training_with_a_checkpoint_and_its_schedule(zoo, tmp_path):
    start = time.process_time()
    module = module_of()
    best = fit(module, data_of(zoo), tmp_path, max_epochs=100_000, cpu_minutes=1.5 / 60)
    assert time.process_time() - start < 6
    assert best.exists()
    assert module._factor(0) < 0.01
    with pytest.raises(ValueError, match="must be above 0"):
        StopAfter(0)


def test_an_interruption_is_a_keyboard_interrupt_and_leaves_the_last_epoch(zoo, tmp_path):
    class Interrupt(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        fit(module_of(), data_of(zoo), tmp_path, max_epochs=5, callbacks=[Interrupt()])
    assert signal.getsignal(signal.SIGINT) == before
    assert (tmp_path / "checkpoints" / "last.ckpt").exists()


def test_message_passing_trains_with_both_objectives_on_mixed_families(tmp_path):
    zoo = write_zoo(tmp_path / "zoo", models=10)
    for objective in (Supervised(["score"]), Emulation(width=8)):
        encoder = MessagePassing(embedding_dim=4, edge_dim=4, node_dim=4, product_dim=2, num_layers=1)
        best = fit(EmbeddingModule(encoder, objective), data_of(zoo), tmp_path / objective.learned_with, max_epochs=1)
        assert all(torch.isfinite(value).all() for value in states(best).values())


def test_a_data_module_of_another_kind_is_refused(zoo, tmp_path):
    class Other(pl.LightningDataModule):
        def train_dataloader(self):
            return [0]

        val_dataloader = train_dataloader

    with pytest.raises(ValueError, match="trains on a ZooDataModule, but the trainer got Other"):
        fit(module_of(), Other(), tmp_path)


def test_batches_that_were_sharded_a_second_time_are_refused(zoo, tmp_path):
    class Resharded(ZooDataModule):
        def train_dataloader(self):
            loader = super().train_dataloader()
            return torch.utils.data.DataLoader(loader.dataset, sampler=list(loader.sampler), batch_size=None)

    with pytest.raises(ValueError, match="use_distributed_sampler=False"):
        fit(module_of(), Resharded(zoo), tmp_path)


def test_a_zoo_without_validation_rows_is_refused(zoo, tmp_path):
    data = data_of(zoo)
    data.division = replace(data.division, val=np.zeros_like(data.division.val))
    with pytest.raises(ValueError, match="has no validation rows"):
        fit(module_of(), data, tmp_path)
