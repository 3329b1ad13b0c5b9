"""No held-out row reaches an encoder: divisions, training on spoilt zoos, and what checkpoints say and refuse."""

import json
import math

import lightning.pytorch as pl
import numpy as np
import pyarrow as pa
import pytest
import safetensors
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from tests.weightspace.zoos import write_zoo
from weightspace.data.augment import GroupMoves
from weightspace.data.datamodule import ZooDataModule
from weightspace.encoders.message_passing import MessagePassing
from weightspace.objectives.contrastive import Contrastive
from weightspace.objectives.emulation import Emulation
from weightspace.objectives.reconstruction import Reconstruction
from weightspace.objectives.supervised import Supervised
from weightspace.store import SPLITS, divide, divisions, folds, open_zoo, recorded_split
from weightspace.training.checkpoints import CHECKPOINTS
from weightspace.training.embed import embed, load
from weightspace.training.module import EmbeddingModule, fit
from weightspace.training.trainer import quiet

# Every division of the zoos here, with the column and value of the rows that it holds out.
HELD_OUT = [
    ("in_distribution", None, "split", "test"),
    ("new_task", None, "split_task", "out"),
    ("new_size", None, "split_size", "out"),
    ("new_family", 0, "fold_family", 0),
    ("new_family", 1, "fold_family", 1),
]


def small_zoo(path, **options):
    return write_zoo(path, models=20, held_out=True, **options)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    return small_zoo(tmp_path_factory.mktemp("splits") / "zoo")


def module_of(objective=None):
    torch.manual_seed(0)
    encoder = MessagePassing(embedding_dim=4, edge_dim=4, node_dim=4, product_dim=2, num_layers=1)
    return EmbeddingModule(encoder, objective or Supervised(["trace", "score"]), learning_rate=1e-2)


def learned(zoo, run, split, fold, objective=None):
    """What training leaves: the state of the encoder and the objective, scales included, and each epoch's losses."""
    data = ZooDataModule(zoo, batch_size=32, groups_per_batch=3, split=split, fold=fold)
    best = fit(module_of(objective), data, run, max_epochs=1)
    return torch.load(best, weights_only=True)["state_dict"], (run / "metrics.csv").read_bytes()


def same(one, other):
    return one[1] == other[1] and all(torch.equal(a, other[0][name]) for name, a in one[0].items())


@pytest.mark.parametrize(("split", "fold", "column", "value"), HELD_OUT)
def test_spoilt_held_out_rows_leave_training_the_same_bit_for_bit(split, fold, column, value, zoo, tmp_path):
    expected = learned(zoo, tmp_path / "a", split, fold)
    assert all(torch.isfinite(tensor).all() for tensor in expected[0].values())
    spoilt = small_zoo(tmp_path / "zoo", spoilt=(column, value))
    assert same(learned(spoilt, tmp_path / "b", split, fold), expected)
    # Had any of them been seen, this would show: rows that are learned from and are held out elsewhere.
    elsewhere = ("split_size" if column == "split_task" else "split_task", "out")
    changed = small_zoo(tmp_path / "other", spoilt=elsewhere, spoilt_weight=0.5)
    assert not same(learned(changed, tmp_path / "c", split, fold), expected)


@pytest.mark.parametrize(
    ("objective", "options"),
    [(Emulation, {"width": 4}), (Reconstruction, {}), (Contrastive, {"views": [GroupMoves()]})],
)
def test_objectives_without_labels_see_no_held_out_row_either(objective, options, zoo, tmp_path):
    spoilt = small_zoo(tmp_path / "zoo", spoilt=("fold_family", 1))
    ends = []
    for number, path in enumerate((zoo, spoilt)):
        torch.manual_seed(1)
        ends.append(learned(path, tmp_path / str(number), "new_family", 1, objective(**options)))
    assert same(*ends)
    assert all(torch.isfinite(tensor).all() for tensor in ends[0][0].values())


@pytest.mark.parametrize(("split", "fold", "column", "value"), HELD_OUT)
def test_all_held_out_rows_are_tested_and_none_is_fitted_or_chosen_by(split, fold, column, value, zoo):
    table = open_zoo(zoo).table
    division = divide(table, split, fold)
    held_out = np.array(table.column(column).to_pylist()) == value
    told = np.array(table.column("split").to_pylist())
    assert (division.test == held_out).all()
    assert (division.train == ((told == "train") & ~held_out)).all()
    assert (division.val == ((told == "val") & ~held_out)).all()
    models = np.array(table.column("model_id").to_pylist())
    parts = [set(models[mask]) for mask in (division.train, division.val, division.test)]
    assert not any(parts[a] & parts[b] for a, b in ((0, 1), (0, 2), (1, 2)))
    data = ZooDataModule(zoo, split=split, fold=fold)
    data.serve()
    for part, loader in (("train", data.train_dataloader()), ("val", data.val_dataloader())):
        rows = [row for batch in loader for row in batch.rows.tolist()]
        assert not held_out[rows].any()
        assert (told[rows] == part).all()
    # A diverged row of the held-out ones is not judged.
    tested = {row for batch in data.test_dataloader() for row in batch.rows.tolist()}
    status = np.array(table.column("status").to_pylist())
    assert tested == set(np.flatnonzero(held_out & (status != "diverged")))


def test_each_declared_split_is_a_division_and_each_fold_is_held_out_once(zoo):
    table = open_zoo(zoo).table
    assert [(one.split, one.fold) for split in SPLITS for one in divisions(table, split)] == [
        (split, fold) for split, fold, *_ in HELD_OUT
    ]
    assert (sum(one.test.astype(int) for one in divisions(table, "new_family")) == 1).all()
    assert folds(table, "new_size") == [None]
    names = {one.models for split in SPLITS for one in divisions(table, split)}
    assert len(names) == len(HELD_OUT)


@pytest.mark.parametrize(
    ("split", "fold", "message"),
    [
        ("new_tasks", None, "No split is called 'new_tasks'; there are .*Did you mean 'new_task'"),
        ("new_task", 1, "new_task has no folds, but fold 1 was asked for"),
        ("new_family", None, r"has the folds \[0, 1\], and none was chosen"),
        ("new_family", 5, r"has the folds \[0, 1\], and 5 is not one of them"),
    ],
)
def test_splits_that_are_not_there_are_refused(split, fold, message, zoo):
    with pytest.raises(ValueError, match=message):
        ZooDataModule(zoo, split=split, fold=fold)


def test_zoos_that_hold_nothing_out_say_how_to_build_one_that_does(tmp_path):
    table = open_zoo(write_zoo(tmp_path / "zoo", models=5, rollouts=False)).table
    for split, way_out in (("new_task", "task_share"), ("new_size", "largest_size")):
        with pytest.raises(ValueError, match=f"No model is held out for the split {split}.*{way_out}"):
            divide(table, split)
    with pytest.raises(ValueError, match="No model is left to train on for the split new_family, fold 0"):
        divide(table, "new_family", 0)
    bare = table.set_column(table.column_names.index("split"), "split", [["test"] * table.num_rows])
    assert divide(bare, "in_distribution").test.all()


def test_tables_that_part_a_models_snapshots_or_do_not_say_are_refused(zoo):
    table = open_zoo(zoo).table
    place = table.column_names.index("split_task")
    values = table.column("split_task").to_pylist()
    parted = table.set_column(place, "split_task", [[*("out" if v == "in" else "in" for v in values[:1]), *values[1:]]])
    with pytest.raises(ValueError, match=r"Snapshots of the model 'model-0-0000' are on different sides"):
        divide(parted, "new_task")
    with pytest.raises(ValueError, match="lacks the column 'split_task'"):
        divide(table.drop_columns(["split_task"]), "new_task")
    with pytest.raises(ValueError, match="null in 1 rows"):
        divide(table.set_column(place, "split_task", pa.array([None, *values[1:]])), "new_task")


@pytest.fixture(scope="module")
def trained(zoo, tmp_path_factory):
    run = tmp_path_factory.mktemp("trained")
    return fit(module_of(), ZooDataModule(zoo, split="new_family", fold=1), run, max_epochs=1)


def record_of(path):
    with safetensors.safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["weightspace"])


def test_checkpoints_and_embeddings_say_which_split_and_fold_they_were_made_for(trained, zoo, tmp_path, caplog):
    assert load(trained).trained_for == ("new_family", 1)
    said = record_of(embed(trained, zoo, tmp_path / "e.safetensors"))
    assert (said["split"], said["fold"]) == ("new_family", 1)
    # Labels were added: another fingerprint, the same models divided in the same way.
    labelled = small_zoo(tmp_path / "labelled", spoilt=("step", 0), spoilt_weight=0.5)
    assert open_zoo(labelled).fingerprint != open_zoo(zoo).fingerprint
    assert recorded_split(record_of(embed(trained, labelled, tmp_path / "e.safetensors"))) == ("new_family", 1)
    assert "another zoo" not in caplog.text
    other = write_zoo(tmp_path / "other", models=5, held_out=True)
    assert recorded_split(record_of(embed(trained, other, tmp_path / "e.safetensors"))) == ("in_distribution", None)
    assert "trained on another zoo" in caplog.text


def test_an_encoder_neither_goes_on_with_nor_is_judged_by_rows_of_another_split(trained, zoo, tmp_path):
    data = ZooDataModule(zoo, split="new_task")
    way_out = r"trained for new_family, fold 1, but .* `--data.split new_family --data.fold 1`"
    with pytest.raises(ValueError, match=way_out):
        fit(load(trained), data, tmp_path, max_epochs=1)
    with quiet():
        shown = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = pl.Trainer(callbacks=[ModelCheckpoint(**CHECKPOINTS)], default_root_dir=tmp_path, **shown)
        for module, checkpoint in ((load(trained), None), (module_of(), trained)):
            for judge in (trainer.validate, trainer.test):
                with pytest.raises(ValueError, match="whose held-out rows it may have seen"):
                    judge(module, data, ckpt_path=checkpoint, verbose=False, weights_only=True)
            assert trainer.predict(module, data, ckpt_path=checkpoint, weights_only=True)
        own = ZooDataModule(zoo, split="new_family", fold=1)
        (found,) = trainer.test(module_of(), own, ckpt_path=trained, verbose=False, weights_only=True)
    assert math.isfinite(found["test/loss"])


def test_records_older_than_splits_and_damaged_ones():
    assert recorded_split({}) == ("in_distribution", None)
    for record in ({"split": "new"}, {"split": "new_family"}, {"split": "new_task", "fold": 2}, {"fold": "1"}):
        with pytest.raises(ValueError, match="not understood"):
            recorded_split(record)
