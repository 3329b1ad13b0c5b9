"""What no encoder, machine or batch can do: bad models, sizes, memory and devices, told in one line."""

import math

# Lightning's log handler keeps the stderr of its first import, which must outlive the capture of one test.
import lightning.pytorch
import numpy as np
import pytest
import torch

from tests.weightspace.test_cli import call
from tests.weightspace.test_module import Sums, module_of
from tests.weightspace.zoos import write_zoo
from weightspace.data.augment import MaskEdges
from weightspace.data.datamodule import ZooDataModule
from weightspace.data.memory import free_memory, pairs_of, refuse_beyond
from weightspace.data.sampling import MAX_PAIRS, EpochSampler, OrderedSampler
from weightspace.encoders.message_passing import MessagePassing
from weightspace.encoders.relational_transformer import RelationalTransformer
from weightspace.encoders.sign_equivariant import SignEquivariant
from weightspace.exchange import state_dicts
from weightspace.families.elman import Elman
from weightspace.families.lstm import LSTM
from weightspace.objectives.contrastive import Contrastive
from weightspace.objectives.emulation import Emulation
from weightspace.objectives.reconstruction import Reconstruction
from weightspace.objectives.supervised import Supervised
from weightspace.store import Stack
from weightspace.training.embed import embed, embed_rows, embed_stacks, embed_state_dicts
from weightspace.training.module import EmbeddingModule, fit

OBJECTIVES = {
    "supervised": lambda: Supervised(["trace"]),
    "emulation": lambda: Emulation(width=4),
    "reconstruction": Reconstruction,
    "contrastive": Contrastive,
}
ELMAN = Elman(input_size=1, hidden_size=4, output_size=1)


def stack_of(family, models=1):
    generator = torch.Generator().manual_seed(0)
    drawn = [family.spec.random_params(generator, torch.float32) for _ in range(models)]
    return Stack(family, {name: torch.stack([one[name] for one in drawn]) for name in drawn[0]}, torch.arange(models))


def small_encoder(**options):
    return MessagePassing(embedding_dim=3, edge_dim=2, node_dim=3, product_dim=2, num_layers=1, **options)


# Bad models.


@pytest.mark.parametrize("weight", [math.nan, math.inf, 1e30])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_model_that_is_not_finite_is_left_out_by_name_and_the_others_are_learned_from(
    weight, objective, tmp_path, caplog
):
    bad = ("model_id", "model-0-0002")
    zoo = write_zoo(tmp_path / "zoo", [ELMAN], models=10, spoilt=bad, spoilt_weight=weight)
    data = ZooDataModule(zoo, batch_size=8)
    best = fit(EmbeddingModule(small_encoder(), OBJECTIVES[objective]()), data, tmp_path / "run", max_epochs=1)
    assert all(torch.isfinite(value).all() for value in torch.load(best, weights_only=True)["state_dict"].values())
    assert "2 of 19 rows are left out" in caplog.text
    assert "model-0-0002 at step 0 ('" in caplog.text
    assert not {4, 5} & set(data.rows("train").tolist())


def test_a_model_whose_rollouts_are_not_finite_is_left_out_where_they_are_learned_from(tmp_path, caplog):
    bad = ("model_id", "model-0-0002")
    zoo = write_zoo(tmp_path / "zoo", [ELMAN], models=10, spoilt=bad, spoilt_weight=0.5)
    data = ZooDataModule(zoo, batch_size=8)
    data.serve(with_rollouts=False)
    assert "left out" not in caplog.text
    data.serve(with_rollouts=True)
    assert "outputs of its rollouts" in caplog.text or "x of its rollouts" in caplog.text
    assert not {4, 5} & set(data.rows("train").tolist())


def test_embedding_a_zoo_with_a_model_that_is_not_finite_names_it_first(tmp_path):
    zoo = write_zoo(tmp_path / "zoo", [ELMAN], models=10, spoilt=("model_id", "model-0-0003"))
    best = fit(module_of(Supervised(["trace"])), ZooDataModule(zoo), tmp_path / "run", max_epochs=1)
    with pytest.raises(ValueError, match=r"2 of 20 rows have no embedding, .* model-0-0003 at step 0 \('weight_"):
        embed(best, zoo, tmp_path / "e.safetensors")
    assert not (tmp_path / "e.safetensors").exists()


# Data that lacks something.


def test_a_zoo_without_training_rows_can_be_embedded_and_tested_but_not_learned_from(tmp_path):
    zoo = write_zoo(tmp_path / "zoo", [ELMAN], models=10)
    data = ZooDataModule(zoo)
    data.division.train[:] = False
    assert embed_rows(small_encoder(), data).shape == (20, 3)
    with pytest.raises(ValueError, match=r"has no training rows .* which `fit` needs"):
        fit(module_of(Emulation(width=4)), data, tmp_path / "run")


def test_a_zoo_without_test_rows_is_not_tested(tmp_path):
    data = ZooDataModule(write_zoo(tmp_path / "zoo", [ELMAN], models=10))
    data.division.test[:] = False
    with pytest.raises(ValueError, match=r"has no test rows .* which `test` needs"):
        trainer().test(module_of(Supervised(["trace"])), datamodule=data)


def trainer():
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "max_epochs": 1}
    options |= {"enable_model_summary": False, "use_distributed_sampler": False, "num_sanity_val_steps": 0}
    return lightning.pytorch.Trainer(**options, log_every_n_steps=1)


# Sizes.


def test_models_beyond_what_an_encoder_was_made_for_are_refused_by_name_with_the_way_out():
    deep = Elman(input_size=1, hidden_size=2, output_size=1, num_layers=9)
    wide = Elman(input_size=300, hidden_size=2, output_size=1)
    with pytest.raises(ValueError, match=r"Elman has 9 layers, but this MessagePassing reads 8 .*`max_layers` 9 or"):
        small_encoder()([stack_of(deep)])
    with pytest.raises(ValueError, match=r"Elman has 300 inputs or outputs, .* reads 256 at most; .*`max_ends` 300"):
        embed_stacks(small_encoder(), [stack_of(wide)])
    assert small_encoder(max_layers=9)([stack_of(deep)]).isfinite().all()
    assert small_encoder(max_ends=300)([stack_of(wide)]).isfinite().all()


def test_inputs_that_are_told_apart_are_as_many_as_the_encoder_says():
    torch.manual_seed(0)
    for places in (2, 5, 256):
        encoder, family = small_encoder(max_ends=places), Elman(input_size=places, hidden_size=2, output_size=1)
        stack = stack_of(family)
        params = dict(stack.params)
        weight = params["weight_ih.0"]
        params["weight_ih.0"] = weight[..., [places - 1, *range(1, places - 1), 0]] if places > 1 else weight
        swapped = Stack(family, params, stack.rows)
        assert (encoder([stack]) - encoder([swapped])).abs().max() > 1e-7


def test_training_on_models_beyond_is_refused_before_it_begins(tmp_path):
    families = [ELMAN, Elman(input_size=1, hidden_size=2, output_size=1, num_layers=9)]
    zoo = write_zoo(tmp_path / "zoo", families, models=5, rollouts=False)
    with pytest.raises(ValueError, match="9 layers"):
        fit(EmbeddingModule(small_encoder(), Reconstruction()), ZooDataModule(zoo), tmp_path / "run")


# Memory and devices.


def test_batches_hold_fewer_models_the_larger_these_are():
    rows, shards, cohorts = np.arange(60), np.repeat([0, 1, 2], 20), np.repeat([0, 1, 2], 20)
    large = pairs_of(LSTM(input_size=2, hidden_size=512, output_size=2))
    costs = np.repeat([large, 100, 4 * MAX_PAIRS], 20)
    epoch = EpochSampler(rows, shards, cohorts, costs=costs, batch_size=32, groups_per_batch=4, seed=0)
    ordered = OrderedSampler(rows, shards, costs=costs, batch_size=32, groups_per_batch=4)
    for batches in (list(epoch), list(ordered)):
        groups = [group for batch in batches for group in batch.groups]
        assert sorted(row for group in groups for row in group) == rows.tolist()
        assert all(len(batch.groups) == 1 for batch in batches)
        assert {len(group) for group in groups if group[0] < 20} <= {2, 3}
        assert {len(group) for group in groups if group[0] >= 40} == {1}
        assert max(len(group) for group in groups) == 20
    assert len(epoch) == len(list(epoch))


def test_batches_of_small_models_are_as_they_were_asked_for():
    rows, shards = np.arange(60), np.zeros(60, dtype=int)
    epoch = EpochSampler(rows, shards, shards, costs=np.full(60, 64**2), batch_size=32, groups_per_batch=4, seed=0)
    plain = EpochSampler(rows, shards, shards, batch_size=32, groups_per_batch=4, seed=0)
    assert list(epoch) == list(plain)
    assert max(len(group) for batch in plain for group in batch.groups) == 8


def test_large_models_are_embedded_few_at_a_time_from_zoos_and_from_state_dicts(tmp_path, monkeypatch):
    monkeypatch.setattr("weightspace.data.sampling.MAX_PAIRS", 100)
    seen = []

    class Counting(Sums):
        def forward(self, stacks):
            seen.extend(len(stack) for stack in stacks)
            return super().forward(stacks)

    zoo = write_zoo(tmp_path / "zoo", [ELMAN], models=10, rollouts=False)
    best = fit(EmbeddingModule(Counting(), Supervised(["trace"])), ZooDataModule(zoo), tmp_path / "run", max_epochs=1)
    # Each has 6 nodes, and so 36 pairs of them.
    assert set(seen) <= {1, 2}
    module = EmbeddingModule(Counting(), Supervised(["trace"]))
    monkeypatch.setattr("weightspace.training.embed.load", lambda path: module)
    (tmp_path / "models").mkdir()
    for number in range(5):
        state_dicts.write(tmp_path / "models" / f"{number}.safetensors", torch.nn.RNN(1, 4), torch.nn.Linear(4, 1))
    seen.clear()
    embed_state_dicts(best, tmp_path / "models", tmp_path / "e.safetensors")
    assert seen == [2, 2, 1]


class Huge(Sums):
    """Needs more memory than there is."""

    def forward(self, stacks):
        torch.empty(2**48)
        return super().forward(stacks)


def test_a_lack_of_memory_is_one_line_that_names_the_models_and_what_to_lower(tmp_path):
    zoo = write_zoo(tmp_path / "zoo", [ELMAN], models=10, rollouts=False)
    lines = r"not enough memory for \d+ models at once, .* Elman of 6 nodes .*; lower `batch_size`"
    with pytest.raises(ValueError, match=lines):
        embed_rows(Huge(), ZooDataModule(zoo))
    with pytest.raises(ValueError, match=lines):
        fit(EmbeddingModule(Huge(), Supervised(["trace"])), ZooDataModule(zoo), tmp_path / "run")
    with pytest.raises(ValueError, match=r"not enough memory for 1 model at once, .*use a machine with more"):
        embed_rows(Huge(), ZooDataModule(zoo, batch_size=1))


@pytest.mark.parametrize("encoder", [MessagePassing, RelationalTransformer, SignEquivariant])
def test_the_memory_of_a_large_model_is_told_and_refused_before_it_is_spent(encoder, monkeypatch, caplog):
    reader = encoder()
    family = Elman(input_size=1, hidden_size=30_000, output_size=1)
    stack = Stack(family, {}, torch.tensor([7]))
    needed = reader.bytes_of(family)
    # States of pairs alone take 16 numbers each.
    assert needed > 4 * 16 * 30_002**2
    with pytest.raises(ValueError, match=r"Elman of 30002 nodes \(row 7\) takes about .* GB of .*, and .* are free"):
        refuse_beyond([stack], reader.bytes_of, needed - 1)
    with caplog.at_level("INFO"):
        refuse_beyond([stack], reader.bytes_of, needed)
        refuse_beyond([stack], reader.bytes_of, None)
    (said,) = caplog.messages
    assert "Elman of 30002 nodes takes about" in said
    monkeypatch.setattr("weightspace.training.embed.free_memory", lambda device: 2**20)
    with pytest.raises(ValueError, match=r"0\.0 GB are free; use a machine with more of it, make the encoder narrower"):
        embed_stacks(reader, [stack])


def test_free_memory_is_that_of_the_system():
    free = free_memory(torch.device("cpu"))
    assert free is None or 2**20 < free < 2**50


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--batch_size", 0), "`batch_size` (=0)"),
        (("--batch_size", -3), "`batch_size` (=-3)"),
        (("--device", "tpu9"), "There is no device 'tpu9' here"),
        (("--device", "cuda"), "There is no device 'cuda' here"),
        (("--device", "meta"), "There is no device 'meta' here"),
    ],
)
def test_what_embed_cannot_do_is_one_line(options, message, tmp_path, capsys):
    if "cuda" in options and torch.cuda.is_available():
        pytest.skip("CUDA is there, so asking for it is no mistake")
    zoo = write_zoo(tmp_path / "zoo", [ELMAN], models=10, rollouts=False)
    best = fit(EmbeddingModule(small_encoder(), Supervised(["trace"])), ZooDataModule(zoo), tmp_path, max_epochs=1)
    (tmp_path / "models").mkdir()
    state_dicts.write(tmp_path / "models" / "a.safetensors", torch.nn.RNN(1, 4), torch.nn.Linear(4, 1))
    for source in (("--zoo", zoo), ("--state_dicts", tmp_path / "models")):
        assert call("embed", "--checkpoint", best, *source, "--out", tmp_path / "e", *options) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


# Components made in Python.


def test_targets_may_be_names_fields_or_targets_and_nothing_else(tmp_path):
    zoo = write_zoo(tmp_path / "zoo", [ELMAN], models=10, rollouts=False)
    objective = Supervised(targets=["trace", {"name": "score", "low": 0.0}])
    assert [target.name for target in objective.targets] == ["trace", "score"]
    assert fit(module_of(objective), ZooDataModule(zoo), tmp_path / "run", max_epochs=1).exists()
    for targets in ("score", [], [3], [{"low": 1}], [{"name": "score", "lo": 1}], [{"name": 3}], [None]):
        with pytest.raises(ValueError, match=r"target|name"):
            Supervised(targets=targets)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: MessagePassing(num_layers=0), "num_layers"),
        (lambda: MessagePassing(edge_dim=-1), "edge_dim"),
        (lambda: MessagePassing(num_layers=2**63), "num_layers"),
        (lambda: Emulation(sequences_per_model=0), "sequences_per_model"),
        (lambda: Emulation(width=0), "width"),
        (lambda: Supervised(["score"], head_size=-1), "head_size"),
        (lambda: Supervised(["score"], residual_weight=math.nan), "residual_weight"),
        (lambda: Reconstruction(width=0), "width"),
        (lambda: Contrastive([MaskEdges()], width=0), "width"),
        (lambda: module_of(learning_rate=math.nan), "learning_rate"),
        (lambda: module_of(warmup=2.0), "warmup"),
        (lambda: module_of(schedule="linear"), "schedule"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(make, name):
    with pytest.raises(ValueError, match=f"`{name}`"):
        make()
