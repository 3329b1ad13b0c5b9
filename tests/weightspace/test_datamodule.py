"""What a training batch holds, and what never reaches training."""

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from tests.weightspace.zoos import write_zoo
from weightspace.data.augment import GroupMoves
from weightspace.data.datamodule import ZooDataModule
from weightspace.data.targets import Target
from weightspace.store import open_zoo

NORMAL = {"output_kind": "categorical", "input_kind": "values", "input_range": [-3, 3]}
TASKS = {"DelayedRecall": NORMAL, "TiledDigits": NORMAL}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_zoo(tmp_path_factory.mktemp("data") / "zoo", models=20, shards_per_family=2, tasks=TASKS)


def served(path, *targets, with_rollouts=False, **options):
    data = ZooDataModule(path, batch_size=24, groups_per_batch=3, **options)
    data.serve([Target(name=name) for name in targets], with_rollouts)
    return data


def rows_of(loader):
    return [row for batch in loader for row in batch.rows.tolist()]


def test_each_split_is_served_once_and_diverged_rows_are_left_out(path):
    data = served(path)
    table = data.zoo.table
    split = np.array(table.column("split").to_pylist())
    diverged = np.array(table.column("status").to_pylist()) == "diverged"
    loaders = {"train": data.train_dataloader(), "val": data.val_dataloader(), "test": data.test_dataloader()}
    for name, loader in loaders.items():
        assert sorted(rows_of(loader)) == np.flatnonzero((split == name) & ~diverged).tolist()
    assert rows_of(data.predict_dataloader()) == list(range(table.num_rows))
    assert diverged.any()


def test_batches_hold_the_zoos_weights_labels_and_rollouts_in_the_order_of_their_rows(path):
    data = served(path, "score", "trace", with_rollouts=True)
    zoo = open_zoo(path)
    trace = zoo.table.column("trace").to_numpy()
    batch = next(iter(data.train_dataloader()))
    assert len(batch) == sum(len(stack) for stack in batch.stacks)
    assert batch.rows.tolist() == [row for stack in batch.stacks for row in stack.rows.tolist()]
    for stack, (x, outputs), kind in zip(batch.stacks, batch.rollouts, batch.output_kinds, strict=True):
        rows = stack.rows.tolist()
        stored, expected = zoo.stack(rows), zoo.rollouts(rows)
        assert stack.family == stored.family
        assert stack.io == stored.io == stack.to("cpu").io
        assert (stack.io.input_kind, stack.io.input_range, stack.io.output_kind) == ("values", (-3.0, 3.0), kind)
        assert all(torch.equal(stack.params[name], stored.params[name]) for name in stored.params)
        assert torch.equal(x, expected[0])
        assert torch.equal(outputs, expected[1])
        assert kind == "categorical"
    bounded = np.clip(trace, *np.quantile(trace[data.rows("train")], [0.005, 0.995]))
    np.testing.assert_allclose(batch.targets[:, 1], bounded[batch.rows], rtol=1e-6)


@pytest.mark.parametrize("cache_mb", [0, 512])
def test_every_stack_of_a_batch_says_what_its_tasks_inputs_and_outputs_are(path, cache_mb):
    (batch, *_) = served(path, cache_mb=cache_mb).train_dataloader()
    assert len({stack.family.input_size for stack in batch.stacks}) > 1
    for stack in batch.stacks:
        assert (stack.io.input_kind, stack.io.input_range, stack.io.classes_per_head) == ("values", (-3.0, 3.0), None)
        assert (stack.io.input_size, stack.io.output_kind) == (stack.family.input_size, "categorical")


def test_stacks_do_not_say_what_inputs_are_where_the_manifest_does_not_or_models_are_of_several_tasks(tmp_path):
    older = {name: {"output_kind": "categorical"} for name in TASKS}
    zoos = [
        write_zoo(tmp_path / "older", models=5, rollouts=False, tasks=older),
        write_zoo(tmp_path / "none", models=5, rollouts=False),
        write_zoo(tmp_path / "others", models=5, rollouts=False, tasks={"Copy": TASKS["TiledDigits"]}),
        write_zoo(tmp_path / "several", models=5, rollouts=False, tasks=TASKS, held_out=True),
    ]
    assert [stack.io for zoo in zoos for stack in open_zoo(zoo).stacks()] == [None] * 12


def test_a_cache_that_is_full_changes_nothing_but_speed(path):
    for cache_mb in (0, 512):
        loaded = list(served(path, "score", with_rollouts=True, cache_mb=cache_mb).train_dataloader())
        if cache_mb == 0:
            expected = loaded
    for one, other in zip(loaded, expected, strict=True):
        assert torch.equal(one.rows, other.rows)
        for a, b in zip(one.stacks, other.stacks, strict=True):
            assert all(torch.equal(a.params[name], b.params[name]) for name in a.params)


def test_the_cache_keeps_no_more_than_its_bound(path):
    data = served(path)
    source = data.train_dataloader().dataset
    one = sum(t.nbytes for t in source.zoo.stack(source.zoo.table.column("row").to_pylist()[:40]).params.values())
    data.cache_bytes = int(2.5 * one)
    data.serve()
    source = data.train_dataloader().dataset
    for request in data.train_dataloader().sampler:
        source[request]
    assert 0 < len(source._cache._kept) < 6


def test_only_training_batches_are_augmented_and_by_the_key_of_the_batch(path):
    plain, moved = served(path), served(path, augment=[GroupMoves()])
    pairs = list(zip(plain.train_dataloader(), moved.train_dataloader(), strict=True))
    changed = [
        not torch.equal(a.params["weight_ho"], b.params["weight_ho"])
        for one, other in pairs
        for a, b in zip(one.stacks, other.stacks, strict=True)
    ]
    assert all(changed)
    again = list(moved.train_dataloader())
    for (_, one), other in zip(pairs, again, strict=True):
        assert torch.equal(one.stacks[0].params["weight_ho"], other.stacks[0].params["weight_ho"])
    evaluated = zip(plain.val_dataloader(), moved.val_dataloader(), strict=True)
    assert all(torch.equal(a.stacks[0].params["weight_ho"], b.stacks[0].params["weight_ho"]) for a, b in evaluated)


def test_prediction_through_a_trainer_covers_every_row_once(path, tmp_path):
    class Counting(pl.LightningModule):
        def predict_step(self, batch, batch_idx):
            return batch.rows

    from weightspace.training.trainer import quiet

    data = served(path)
    with quiet():
        trainer = pl.Trainer(logger=False, enable_progress_bar=False, default_root_dir=tmp_path)
        found = torch.cat(trainer.predict(Counting(), datamodule=data))
    assert found.tolist() == list(range(data.zoo.table.num_rows))


def test_a_batch_moves_to_a_device_whole(path):
    batch = next(iter(served(path, "score", with_rollouts=True).train_dataloader())).to("meta")
    tensors = [batch.rows, batch.targets, batch.cell_means, batch.stacks[0].params["weight_ho"], *batch.rollouts[0]]
    assert {tensor.device.type for tensor in tensors} == {"meta"}


def test_labels_and_scales_know_nothing_of_held_out_rows(path, tmp_path):
    data = served(path, "decay")
    training = data.training()
    assert len(training.targets) == len(data.rows("train"))
    stacked = torch.cat([stack.rows for stack in data.training_stacks()])
    assert stacked.tolist() == data.rows("train").tolist()
    assert (training.input_size, training.output_size) == (2, 3)


def test_unusable_zoos_and_options_are_refused(path, tmp_path):
    with pytest.raises(ValueError, match="Did you mean 'ok'"):
        ZooDataModule(path, statuses=["OK", "okay"])
    with pytest.raises(ValueError, match="not a folder"):
        ZooDataModule(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no training rows"):
        ZooDataModule(path, statuses=[]).rows_for("fit")
    with pytest.raises(ValueError, match="call `serve"):
        ZooDataModule(path).train_dataloader()
    bare = write_zoo(tmp_path / "bare", models=5, rollouts=False)
    with pytest.raises(ValueError, match="built without `rollouts`"):
        next(iter(served(bare, with_rollouts=True).train_dataloader()))


def test_neighbours_are_other_snapshots_of_the_same_models_in_the_order_of_the_rows(path):
    data = ZooDataModule(path, batch_size=24, groups_per_batch=3)
    data.serve(with_neighbours=True)
    table = data.zoo.table
    names, status = (np.array(table.column(name).to_pylist()) for name in ("model_id", "status"))
    others = 0
    for batch in data.train_dataloader():
        rows = torch.cat([stack.rows for stack in batch.neighbours])
        assert (names[rows] == names[batch.rows]).all()
        assert (status[rows] != "diverged").all()
        assert (
            (batch.models[:, None] == batch.models).numpy() == (names[batch.rows][:, None] == names[batch.rows])
        ).all()
        # Of a model whose second snapshot diverged, only the first is left.
        alone = np.isin(names[batch.rows], names[status == "diverged"])
        assert ((rows == batch.rows).numpy() == alone).all()
        others += int((~alone).sum())
        for stack, near in zip(batch.stacks, batch.neighbours, strict=True):
            assert stack.family == near.family
            stored = data.zoo.stack(near.rows.tolist()).params
            assert all(torch.equal(near.params[name], stored[name]) for name in stored)
    assert others > 0


def test_zoos_with_one_snapshot_have_no_neighbours(tmp_path):
    data = ZooDataModule(write_zoo(tmp_path / "zoo", models=5, steps=(0,), rollouts=False))
    with pytest.raises(ValueError, match="No model of the zoo has two snapshots"):
        data.serve(with_neighbours=True)
