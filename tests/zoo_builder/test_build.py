"""What is built: bytes that depend on the recipe alone, a table that says what is in it, errors that lose nothing."""

import copy
import json
import os
import shutil

import pytest
import torch

from tests.zoo_builder.test_relabel import contents, run_here
from weightspace.rollout import Streams, native, rollout
from weightspace.store import open_zoo, verify
from zoo_builder.build import build, repair
from zoo_builder.overview import info
from zoo_builder.planning.estimate import estimate, table
from zoo_builder.planning.plan import make_plan
from zoo_builder.planning.recipe import read_recipe
from zoo_builder.shard import make_shard
from zoo_builder.workers.processes import BuildFailed

# Odd sizes, at which stacked products and vectorised loops are most easily led astray.
RECIPE = {
    "families": [{"class": "Elman", "hidden_size": 3, "nonlinearity": "relu"}, {"class": "GRU", "hidden_size": 5}],
    "tasks": [{"class": "DelayedRecall", "num_steps": 5, "delay": {"integers": [1, 4]}}],
    "learning": {
        "class": "BPTT",
        "num_updates": 5,
        "batch_size": 3,
        "learning_rate": {"choice": [0.01, 0.02, 1e38]},
        "clip": 0,
    },
    "snapshots": [0, 2, 5],
    "models_per_cohort": 12,
    "shard_size": 5,
    "labels": ["Performance"],
    "rollouts": {"sequences": 2},
}
TINY = RECIPE | {"models_per_cohort": 2, "shard_size": 2}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    path = tmp_path_factory.mktemp("built") / "zoo"
    assert build(RECIPE, path, workers=2).built == 6
    return path


def by_model(zoo, step):
    opened = open_zoo(zoo)
    rows = {(r["model_id"], r["step"]): i for i, r in enumerate(opened.table.select(["model_id", "step"]).to_pylist())}
    return {model: opened.stack([row]).params for (model, at), row in rows.items() if at == step}


def test_the_bytes_do_not_depend_on_the_number_of_workers(zoo, tmp_path):
    build(RECIPE, tmp_path / "zoo", engine=run_here)
    assert contents(tmp_path / "zoo") == contents(zoo)
    assert verify(zoo) == []


def test_weights_depend_neither_on_cohort_mates_nor_on_shards_nor_on_order(zoo, tmp_path):
    changed = {**RECIPE, "families": RECIPE["families"][::-1], "models_per_cohort": 17, "shard_size": 7, "labels": []}
    build({**changed, "rollouts": None}, tmp_path / "zoo", engine=run_here)
    few, many = by_model(zoo, 5), by_model(tmp_path / "zoo", 5)
    assert len(few) == 24
    assert len(many) == 34
    for model, params in few.items():
        for name, tensor in params.items():
            assert torch.equal(tensor, many[model][name]), (model, name)


def test_the_seed_changes_every_weight():
    first, second = (make_plan(read_recipe({**RECIPE, "labels": []}, seed)) for seed in (0, 1))
    assert [shard.model_ids for shard in first.shards] == [shard.model_ids for shard in second.shards]
    one, other = (make_shard(plan, plan.shards[0]).params for plan in (first, second))
    assert all((one[name] != other[name]).all() for name in one)


COLUMNS = [
    "model_id",
    "step",
    "family",
    "task",
    "family_config",
    "task_config",
    "learning_config",
    "hidden_size",
    "num_parameters",
    "seed",
    "status",
    "diverged_step",
    "split",
    "split_task",
    "split_size",
    "fold_family",
    "shard",
    "row",
    "generalisation_gap",
    "loss",
    "score",
]


def test_the_table_has_the_promised_columns_and_says_where_each_row_is(zoo):
    opened = open_zoo(zoo)
    table = opened.table
    assert table.schema.names == COLUMNS
    assert table.num_rows == 2 * 12 * 3
    rows = table.to_pylist()
    assert len({(row["model_id"], row["step"]) for row in rows}) == len(rows)
    for number, row in enumerate(rows):
        assert opened.shard_of(number) == row["shard"]
        family = opened.family_of(number)
        assert json.loads(row["family_config"]) == family.config
        assert row["num_parameters"] == family.spec.num_parameters
        assert row["hidden_size"] == family.hidden_size
        assert 1 <= json.loads(row["task_config"])["delay"] <= 4
        assert json.loads(row["learning_config"])["learning_rate"] in (0.01, 0.02, 1e38)
    firsts = [i for i, row in enumerate(rows) if row["row"] == 0]
    assert [rows[i]["shard"] for i in firsts] == list(range(6))


def test_all_snapshots_of_a_model_are_in_one_split(zoo):
    splits = {}
    for row in open_zoo(zoo).table.to_pylist():
        splits.setdefault(row["model_id"], set()).add((row["split"], row["split_task"], row["split_size"]))
    assert all(len(found) == 1 for found in splits.values())


def test_status_says_which_models_are_untrained_and_which_diverged(zoo):
    rows = open_zoo(zoo).table.to_pylist()
    assert {row["status"] for row in rows if row["step"] == 0} == {"untrained"}
    diverged = [row for row in rows if row["diverged_step"] is not None]
    assert diverged
    for row in rows:
        late = row["diverged_step"] is not None and row["step"] >= row["diverged_step"]
        assert (row["status"] == "diverged") == late
        assert json.loads(row["learning_config"])["learning_rate"] == 1e38 or row["status"] != "diverged"
    assert all(tensor.isfinite().all() for stack in open_zoo(zoo).stacks() for tensor in stack.params.values())


def test_labels_that_are_not_finite_are_null(zoo):
    table = open_zoo(zoo).table
    for name in ("score", "loss"):
        values = [v for v in table[name].to_pylist() if v is not None]
        assert values
        assert all(abs(v) < float("inf") for v in values)


def test_stored_rollouts_are_what_the_stored_weights_do_on_held_out_inputs(zoo):
    opened = open_zoo(zoo)
    rows = opened.table.to_pylist()
    for stack in opened.stacks(max_models=5):
        x, outputs = opened.rollouts(stack.rows.tolist())
        own = [rows[row] for row in stack.rows.tolist()]
        again = rollout(stack.family, stack.params, x.transpose(1, 2)).outputs.transpose(1, 2)
        torch.testing.assert_close(outputs, again, rtol=1e-4, atol=1e-4)
        streams = Streams(0, [row["model_id"] for row in own], "rollouts")
        task = next(c for c in make_plan(read_recipe(RECIPE)).cohorts).task
        delays = torch.tensor([json.loads(row["task_config"])["delay"] for row in own], dtype=torch.float64)
        assert torch.equal(x, task.sample({"delay": delays}, streams, 2, "test").x.transpose(1, 2))


def test_the_manifest_says_how_the_zoo_was_made(zoo):
    manifest = open_zoo(zoo).manifest
    assert manifest["recipe"] == read_recipe(RECIPE)
    assert manifest["executor"]["method"] == "native"
    assert manifest["executor"]["compiler"] == native.compiler_version()
    assert [family["class"] for family in manifest["families"]] == ["Elman", "GRU"]
    assert manifest["labels"]["score"]["unit"]
    task = manifest["tasks"]["DelayedRecall"]
    assert (task["output_kind"], task["input_kind"], task["input_range"]) == ("categorical", "values", [-1.0, 1.0])
    text = b"".join(contents(zoo).values())
    assert str(zoo.parent).encode() not in text
    assert os.uname().nodename.encode() not in text


def test_stacks_carry_the_inputs_and_outputs_of_their_task(zoo):
    task = make_plan(read_recipe(RECIPE)).cohorts[0].task
    for stack in open_zoo(zoo).stacks():
        assert stack.io == task.io
        assert stack.io.input_size == stack.family.input_size


def test_a_finished_zoo_is_left_alone(zoo):
    before = {p: p.stat().st_mtime_ns for p in zoo.rglob("*")}
    assert build(RECIPE, zoo).built == 0
    assert {p: p.stat().st_mtime_ns for p in zoo.rglob("*")} == before


def test_another_plan_in_the_same_folder_is_refused_naming_the_fields(zoo, tmp_path):
    changed = copy.deepcopy(RECIPE)
    changed["learning"]["batch_size"] = 4
    with pytest.raises(ValueError, match=r"recipe\.learning\.batch_size was 3, now 4"):
        build(changed, zoo)
    with pytest.raises(ValueError, match=r"recipe\.seed was 0, now 3"):
        build(RECIPE, zoo, seed=3)
    half = tmp_path / "half"
    shutil.copytree(zoo, half)
    manifest = json.loads((half / "zoo.json").read_bytes())
    (half / "zoo.json").unlink()
    with pytest.raises(ValueError, match="belongs to another plan"):
        build(changed, half)
    (half / ".staging").mkdir(exist_ok=True)
    identity = {key: manifest[key] for key in ("recipe", "executor", "generator")}
    identity["executor"] = {**identity["executor"], "torch": "1.0"}
    (half / ".staging/plan.json").write_text(json.dumps(identity))
    with pytest.raises(ValueError, match=r'unfinished.*executor\.torch was "1\.0"'):
        build(RECIPE, half)
    assert verify(zoo) == []


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match="holds other files"):
        build(RECIPE, tmp_path)
    with pytest.raises(ValueError, match="is a file"):
        build(RECIPE, tmp_path / "thesis.tex")


def test_damage_is_repaired_with_the_same_bytes(zoo, tmp_path, monkeypatch):
    monkeypatch.setattr("zoo_builder.build.run_shards", run_here)
    damaged = tmp_path / "zoo"
    shutil.copytree(zoo, damaged)
    data = bytearray((damaged / "shards/00001/params.safetensors").read_bytes())
    data[-1] ^= 1
    (damaged / "shards/00001/params.safetensors").write_bytes(data)
    shutil.rmtree(damaged / "shards/00004")
    (damaged / "models.parquet").write_bytes(b"edited")
    assert len(verify(damaged)) == 3
    assert repair(damaged, workers=1) == []
    assert contents(damaged) == contents(zoo)


def test_a_damaged_manifest_is_made_again_from_the_shards(zoo, tmp_path):
    damaged = tmp_path / "zoo"
    shutil.copytree(zoo, damaged)
    (damaged / "zoo.json").write_bytes(b"{}")
    assert build(RECIPE, damaged).built == 0
    assert contents(damaged) == contents(zoo)


def test_without_a_compiler_torch_builds_and_the_manifest_says_so(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("weightspace.rollout.native.why_not_here", lambda: "no C compiler was found")
    build(TINY, tmp_path / "zoo", engine=run_here)
    assert open_zoo(tmp_path / "zoo").manifest["executor"]["method"] == "torch"
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "run by torch, not natively" in line
    assert "no C compiler was found" in line


def test_a_zoo_is_repaired_under_the_compiler_it_was_built_with(tmp_path, monkeypatch):
    build(TINY, tmp_path / "zoo", engine=run_here)
    monkeypatch.setattr("weightspace.rollout.native.compiler_version", lambda: "another compiler 1.0")
    with pytest.raises(ValueError, match="another compiler"):
        repair(tmp_path / "zoo")


def test_a_shard_that_cannot_be_made_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("zoo_builder.build.ROLLOUTS", dict.fromkeys(("native", "torch"), "no such method"))
    with pytest.raises(BuildFailed, match=r"Shard 0000\d: No rollout method is called 'no such method'"):
        build(RECIPE, tmp_path / "zoo", workers=1)
    assert not (tmp_path / "zoo/zoo.json").exists()


def test_one_shard_can_be_made_without_a_builder():
    plan = make_plan(read_recipe(RECIPE))
    told = []
    content = make_shard(plan, plan.shards[2], progress=told.append)
    assert content.table.num_rows == 2 * 3
    assert sum(told) == 2 * 5


def test_the_estimate_counts_what_is_built(zoo):
    plan = make_plan(read_recipe(RECIPE))
    estimated = estimate(plan, workers=2)
    assert (estimated["models"], estimated["rows"], estimated["shards"]) == (24, 72, 6)
    assert sum(row["cpu_seconds"] for row in estimated["cohorts"]) > 0
    weights = sum(stack.params[name].nbytes for stack in open_zoo(zoo).stacks() for name in stack.params)
    assert weights < estimated["bytes"] < 2 * sum(map(len, contents(zoo).values()))
    assert "24 models, 72 rows in 6 shards" in table(estimated)


def test_the_overview_counts_models(zoo):
    found = info(zoo)
    assert found["models"] == 24
    assert found["counts"]["family"] == {"Elman": 36, "GRU": 36}
    assert sum(found["counts"]["status"].values()) == 72
    assert 0 <= found["labels"]["score"]["low"] <= found["labels"]["score"]["mean"] <= 1
