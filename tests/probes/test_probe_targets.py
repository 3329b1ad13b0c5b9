"""Targets, cells, and the rows that take part."""

import json

import numpy as np
import pyarrow as pa
import pytest

from probes.problem import NotEnoughError, Question, pose, read_rows, shuffled_order
from probes.targets import Target, default_targets, named_target
from weightspace.store import Division, divide


def make_table(models: int = 60, steps: tuple[int, ...] = (0, 100), seed: int = 0, **columns) -> pa.Table:
    """A zoo's table of two families, two sizes and two tasks; `columns` (rows) are added or replace."""
    generator = np.random.default_rng(seed)
    model = np.repeat(np.arange(models), len(steps))
    family, size, task = (generator.integers(2, size=models)[model] for _ in range(3))
    found = {
        "model_id": [f"model-{m:03d}" for m in model],
        "step": np.tile(steps, models),
        "family": np.array(["Elman", "GRU"])[family].tolist(),
        "family_config": [json.dumps({"hidden_size": int(8 + 8 * s)}) for s in size],
        "task": np.array(["Copy", "Recall"])[task].tolist(),
        "hidden_size": 8 + 8 * size,
        "status": ["ok"] * len(model),
        "split": np.array(["train", "train", "train", "val", "test"])[model % 5].tolist(),
        "split_task": ["in"] * len(model),
        "split_size": ["in"] * len(model),
        "fold_family": [0] * len(model),
    }
    return pa.table(found | columns)


def in_distribution(rows) -> Division:
    return divide(rows.table, "in_distribution")


def test_cells_keep_families_sizes_tasks_and_steps_apart_and_task_sizes_together():
    table = make_table(models=40)
    rows = read_rows(table)
    key = list(zip(*(table.column(n).to_pylist() for n in ("family", "hidden_size", "task", "step")), strict=True))
    for a in range(len(key)):
        for b in range(a):
            assert (rows.cell[a] == rows.cell[b]) == (key[a] == key[b])
            assert (rows.stratum[a] == rows.stratum[b]) == (key[a][:3] == key[b][:3])
    config = [json.dumps({"input_size": i % 3, "hidden_size": 8}) for i in range(80)]
    fixed = {"family": ["GRU"] * 80, "hidden_size": [8] * 80, "task": ["Copy"] * 80, "family_config": config}
    assert len(set(read_rows(make_table(models=40, **fixed)).cell.tolist())) == 2


def test_residuals_are_labels_minus_the_training_mean_of_their_cell():
    generator = np.random.default_rng(0)
    table = make_table(label=generator.normal(size=120))
    rows = read_rows(table)
    problem = pose(rows, named_target(table, "label"), in_distribution(rows))
    label = table.column("label").to_numpy()
    for row in problem.test:
        same = [r for r in problem.train if rows.cell[r] == rows.cell[row]]
        assert problem.seen[row] == bool(same)
        if same:
            assert problem.residual[row] == pytest.approx(label[row] - label[same].mean(), abs=1e-12)
    assert Question((problem,)).truth("r2").tolist() == label[problem.test].tolist()


def test_rows_that_do_not_count_are_left_out_and_counted():
    label = np.arange(120, dtype=float)
    label[[2, 4]] = np.nan
    label[6] = np.inf
    status = ["diverged" if row == 1 else "untrained" if row % 2 == 0 else "ok" for row in range(120)]
    table = make_table(label=pa.array(label, from_pandas=True), status=status)
    rows = read_rows(table)
    target = Target(name="label", trained_only=True, transform="clip", low=0, high=60)
    problem = pose(rows, target, in_distribution(rows))
    # Of the 60 rows of step 0, 12 are of the split val, and 3 are named before for another reason, one of them of val.
    assert problem.excluded["diverged"] == 1
    assert problem.excluded["missing"] == 2
    assert problem.excluded["not_finite"] == 0
    assert problem.excluded["step_0"] == 48 - 2
    kept = [*problem.train, *problem.test]
    assert len(kept) == 48 - 1
    assert problem.excluded["clipped_share"] == pytest.approx(np.mean(label[kept] > 60))
    assert problem.y[problem.test].max() == 60


def test_test_rows_in_unseen_cells_are_marked():
    # The last model is a test model, and the only one of its size.
    table = make_table(hidden_size=[8] * 118 + [64] * 2, label=np.arange(120.0))
    rows = read_rows(table)
    problem = pose(rows, named_target(table, "label"), in_distribution(rows))
    assert problem.excluded["test_rows_in_unseen_cells"] >= 2
    assert not problem.seen[[118, 119]].any()
    assert problem.residual[[118, 119]].tolist() == [0, 0]


def test_transforms_say_which_target_they_do_not_fit():
    assert Target(name="a", transform="log").apply(np.array([1.0, np.e])) == pytest.approx([0, 1])
    with pytest.raises(ValueError, match=r"Target 'a': 'log' needs positive labels, but 1 of 2"):
        Target(name="a", transform="log").apply(np.array([1.0, 0.0]))
    with pytest.raises(ValueError, match="no transform 'root'"):
        Target(name="a", transform="root")
    with pytest.raises(ValueError, match="low must be below high"):
        Target(name="a", transform="clip", low=1, high=0)


def test_default_targets_are_the_headlines_or_else_the_labels():
    table = make_table(score=np.zeros(120), memory_decay_rate=np.zeros(120), extra=np.zeros(120))
    assert [t.name for t in default_targets(table, ["extra"])] == ["memory_decay_rate", "score", "family", "task"]
    decay, score = default_targets(table)[:2]
    assert (decay.transform, decay.low, decay.high) == ("clip", -0.5, 1.5)
    assert score.trained_only
    nothing = pa.nulls(120, pa.float64())
    planted = make_table(memory_mode=np.zeros(120), score=nothing, family=["Elman"] * 120)
    assert [t.name for t in default_targets(planted, ["memory_mode", "score"])] == ["memory_mode", "task"]


def test_a_named_target_must_be_a_column():
    with pytest.raises(ValueError, match="No column of the zoo is called 'wisdom'"):
        named_target(make_table(), "wisdom")
    assert named_target(make_table(), "status").kind == "classification"


def test_too_few_models_or_classes_are_refused():
    table = make_table(models=6, label=np.zeros(12))
    rows = read_rows(table)
    with pytest.raises(NotEnoughError, match="1 test model"):
        pose(rows, named_target(table, "label"), in_distribution(rows))
    table = make_table(kind=["a"] * 120)
    rows = read_rows(table)
    with pytest.raises(NotEnoughError, match="only one class"):
        pose(rows, named_target(table, "kind"), in_distribution(rows))


def test_damaged_tables_are_refused():
    with pytest.raises(ValueError, match="lacks the columns task"):
        read_rows(make_table().drop_columns(["task"]))
    with pytest.raises(ValueError, match=r"repeats a \(model_id, step\)"):
        read_rows(make_table(step=[0] * 120))
    with pytest.raises(ValueError, match="no rows"):
        read_rows(make_table().slice(0, 0))


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("within_cell", [False, True])
def test_shuffling_moves_whole_models_and_within_cells_keeps_each_cell(within_cell, gaps):
    steps = (0, 100, 200)
    label = np.arange(180.0)
    if gaps:
        label[np.random.default_rng(1).random(180) < 0.1] = np.nan
    table = make_table(steps=steps, label=pa.array(label, from_pandas=True))
    rows = read_rows(table)
    problem = pose(rows, named_target(table, "label"), in_distribution(rows))
    order = shuffled_order(problem, within_cell, np.random.default_rng(0))
    assert sorted(order) == list(range(len(problem.train)))
    model = rows.model[problem.train]
    if within_cell:
        assert (rows.cell[problem.train][order] == rows.cell[problem.train]).all()
    if not gaps:
        for one in np.unique(model):
            assert len(set(model[order][model == one])) == 1
    assert np.mean(model[order] == model) < 0.2


def test_labels_too_large_for_boosted_trees_are_left_out_unless_they_are_clipped():
    label = np.arange(120.0)
    label[:4] = 1e45
    rows = read_rows(make_table(label=label))
    plain, clipped = Target(name="label"), Target(name="label", transform="clip", low=0, high=60)
    problem = pose(rows, clipped, in_distribution(rows))
    counted = sum(row < 4 for row in [*problem.train, *problem.test])
    assert pose(rows, plain, in_distribution(rows)).excluded["not_finite"] == counted > 0
    assert (problem.excluded["not_finite"], problem.y.max()) == (0, 60)
