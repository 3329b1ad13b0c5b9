"""Zoos whose bytes are as promised but hold something else: refused in one line, by what reads, verifies and builds."""

import json
import re
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch

import zoo_builder.cli
from tests.weightspace.test_store import FAMILY, HEAD, columns, content, reseal, write_zoo
from weightspace.store import documents, finish, good_shards, open_zoo, verify, write_shard
from weightspace.store.layout import file_entry, pretty, sealed
from zoo_builder.overview import info

LABEL = {"unit": "", "definition": ""}
PARAMS, ROLLOUTS = "shards/00001/params.safetensors", "shards/00001/rollouts.safetensors"


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    return write_zoo(tmp_path_factory.mktemp("intact") / "zoo")


@pytest.fixture
def zoo(intact, tmp_path):
    return shutil.copytree(intact, tmp_path / "zoo")


def renewed(zoo, change=lambda manifest: None):
    """Make every promise that of what is there, as somebody would who knows the format."""
    for folder in (zoo / "shards").iterdir():
        said = json.loads((folder / "shard.json").read_bytes())
        said["files"] = {name: file_entry(folder / name) for name in said["files"]}
        (folder / "shard.json").write_text(json.dumps(said))
    head = {name: file_entry(zoo / name) for name in ("models.parquet", "README.md")}

    def both(manifest):
        for name, entry in head.items():
            manifest["files"][name].update(entry)
        change(manifest)

    reseal(zoo, both)


def change_tensors(path, change):
    tensors = safetensors.torch.load(path.read_bytes())
    change(tensors)
    path.write_bytes(safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()}))


def used(zoo):
    """Everything that a reader may ask for."""
    opened = open_zoo(zoo)
    table = opened.table
    for row in range(opened.num_rows):
        opened.stack([row])
        opened.rollouts([row])
    for index in range(2):
        opened.shard(index)
    return table


def refused(zoo, message, capsys):
    """Every command and reader says what is wrong, in one line."""
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        used(zoo)
    assert "\n" not in str(caught.value)
    problems = [fault.problem for fault in verify(zoo)]
    assert any(message in problem for problem in problems), problems
    assert zoo_builder.cli.main(["verify", str(zoo)]) == 1
    assert zoo_builder.cli.main(["info", str(zoo)]) in (0, 2)
    assert zoo_builder.cli.main(["label", str(zoo), "--labels", "Performance"]) == 2
    assert "Traceback" not in capsys.readouterr().err


DTYPES = [torch.float64, torch.float16, torch.bfloat16, torch.int32, torch.int64, torch.bool, torch.uint8]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_weights_and_rollouts_of_another_dtype_are_refused(zoo, dtype, capsys):
    change_tensors(zoo / PARAMS, lambda t: t.update(bias_o=t["bias_o"].to(dtype)))
    renewed(zoo)
    refused(zoo, "'bias_o' is ", capsys)
    change_tensors(zoo / PARAMS, lambda t: t.update(bias_o=t["bias_o"].float()))
    change_tensors(zoo / ROLLOUTS, lambda t: t.update(x=t["x"].to(dtype)))
    renewed(zoo)
    refused(zoo, "'x' is ", capsys)


ROLLOUT_CHANGES = [
    (lambda t: t.update(x=t["x"][..., :1]), "'x' has shape (5, 2, 3, 1), expected (rows, sequences, time, 2)"),
    (lambda t: t.update(x=t["x"].flatten(1)), "'x' has shape (5, 12), expected (rows, sequences, time, 2)"),
    (lambda t: t.update(x=t["x"][:, :, :2]), "'outputs' has shape (5, 2, 3, 1), expected (rows, sequences, time, 1)"),
    (lambda t: t.update(outputs=torch.zeros(5, 2, 3, 7)), "'outputs' has shape (5, 2, 3, 7)"),
    (lambda t: t.update(outputs=torch.zeros(4, 2, 3, 1)), "'outputs' has shape (4, 2, 3, 1), expected 5 rows first"),
    (lambda t: t.pop("x"), "tensors ['outputs'], expected x and outputs"),
    (lambda t: t.update(y=t["x"] + 1), "tensors ['outputs', 'x', 'y'], expected x and outputs"),
]


@pytest.mark.parametrize(("change", "message"), ROLLOUT_CHANGES, ids=[message for _, message in ROLLOUT_CHANGES])
def test_rollouts_of_another_shape_are_refused(zoo, change, message, capsys):
    change_tensors(zoo / ROLLOUTS, change)
    renewed(zoo)
    refused(zoo, message, capsys)


def test_weights_that_are_not_finite_are_named_but_read(zoo):
    change_tensors(zoo / PARAMS, lambda t: t["weight_hh.0"][2].fill_(torch.nan))
    change_tensors(zoo / PARAMS, lambda t: t["bias_o"][4].fill_(torch.inf))
    renewed(zoo)
    (fault,) = verify(zoo)
    assert fault.path == PARAMS
    assert fault.problem == "holds weights that are not finite in 2 rows, first those of 'm1-1-2' in row 7"
    opened = open_zoo(zoo)
    assert opened.not_finite() == [7, 9]
    assert opened.not_finite([9, 8, 0]) == [9]
    assert opened.stack([8, 7]).finite.tolist() == [True, False]


COLUMN_CHANGES = [
    ("split", None, "has no column 'split', which every zoo has"),
    ("split", pa.array([1] * 10), "holds int64 in the column 'split', expected string"),
    ("split", pa.array([["train"]] * 10), "holds list<"),
    ("split", pa.array(["train"] * 9 + ["rest"]), "has 'rest' as 'split', expected one of train, val, test"),
    ("split", pa.array(["train"] * 9 + [None]), "has no 'split' in 1 rows"),
    ("status", pa.array(["fine"] * 10), "has 'fine' as 'status'"),
    ("split_task", pa.array(["\x1b[2J"] * 10), "as 'split_task', expected one of in, out"),
    ("step", pa.array([0.5] * 10), "holds double in the column 'step', expected int64"),
    ("task", pa.array([0] * 10), "holds int64 in the column 'task', expected string"),
    ("fold_family", pa.nulls(10, pa.int64()), "has no 'fold_family' in"),
    ("family", pa.array(["GRU"] * 10), "that they are GRU {"),
    ("family_config", pa.array(["{}"] * 10), "that they are Elman {}, expected Elman {"),
    ("family_config", pa.array(["[" * 100_000] * 10), "has a 'family_config' that is not JSON"),
    ("learning_config", pa.array(["[1]"] * 10), "has a 'learning_config' that holds JSON of type list"),
    ("learning_config", pa.array(["{"] * 10), "has a 'learning_config' that is not JSON"),
    ("task_config", pa.array(['{"a":' * 200 + "1" + "}" * 200] * 10), "has a 'task_config' that is JSON nested more"),
    ("shard", pa.array([0] * 10), "says `shard` 0 in row"),
    ("row", pa.array(list(range(10))), "says `row` 5 in row"),
    ("label", pa.array(["good"] * 10), "holds string in the column 'label', expected numbers"),
    ("label", pa.array([[1.0]] * 10), "in the column 'label', expected numbers"),
    ("label", pa.array([True] * 10), "holds bool in the column 'label', expected numbers"),
    ("label", pa.array([1.0] * 9 + [np.inf]), "has values of the label 'label' that are not finite"),
    ("label", None, "has no column 'label', which zoo.json says is a label"),
    ("other", pa.array([{"a": 1}] * 10), "in the column 'other', expected numbers or text"),
]


@pytest.mark.parametrize(("name", "cells", "message"), COLUMN_CHANGES, ids=[row[2] for row in COLUMN_CHANGES])
def test_a_column_of_another_type_or_with_strange_cells_is_refused(zoo, name, cells, message, capsys):
    table = pq.read_table(zoo / "models.parquet")
    if name in table.column_names:
        table = table.drop_columns([name])
    if cells is not None:
        table = table.append_column(name, cells)
    for path, part in ((zoo / f"shards/0000{i}/table.parquet", table.slice(5 * i, 5)) for i in range(2)):
        pq.write_table(part, path)
    pq.write_table(table, zoo / "models.parquet")
    renewed(zoo, lambda m: m.update(labels={"label": LABEL}))
    refused(zoo, message, capsys)


def test_a_table_that_is_not_its_shards_tables_is_named(zoo):
    table = pq.read_table(zoo / "models.parquet")
    pq.write_table(table.set_column(table.column_names.index("split"), "split", [["val"] * 10]), zoo / "models.parquet")
    renewed(zoo)
    faults = {(fault.path, fault.problem) for fault in verify(zoo)}
    assert faults == {("models.parquet", f"does not hold the rows of shard 0000{i} as they are there") for i in (0, 1)}


MANIFESTS = [
    (lambda m: m.update(num_models="many"), "has no int of `num_models`"),
    (lambda m: m.update(num_models=True), "has no int of `num_models`"),
    (lambda m: m.update(num_models=9), "models, "),
    (lambda m: m.update(executor=["torch"]), "has no dict of `executor`"),
    (lambda m: m.update(executor={"method": 3, "device": "cpu"}), "does not say the `method` of its `executor`"),
    (lambda m: m.update(executor={"method": "torch"}), "does not say the `device` of its `executor`"),
    (lambda m: m.update(generator=None), "has no dict of `generator`"),
    (lambda m: m.update(plan=1), "has no str of `plan`"),
    (lambda m: m.update(families={}), "has no list of `families`"),
    (lambda m: m.update(families=["Elman"]), "does not say the class of one of its `families`"),
    (lambda m: m.update(tasks=[]), "has no dict of `tasks`"),
    (lambda m: m.update(tasks={"Copy": "hard"}), "does not say the `output_kind` of the task 'Copy'"),
    (
        lambda m: m.update(tasks={"Copy": {"output_kind": "categorical", "classes_per_head": 0.5}}),
        "says of 'Copy' that a head has 0.5 classes, expected 2 or more",
    ),
    (
        lambda m: m.update(tasks={"Copy": {"output_kind": "categorical", "input_kind": "text"}}),
        "says `input_kind` 'text' of the task 'Copy', expected one of one_hot, values",
    ),
    (
        lambda m: m.update(
            tasks={"Copy": {"output_kind": "categorical", "input_kind": "values", "input_range": [1.0, 0.0]}}
        ),
        "says `input_range` [1.0, 0.0] of the task 'Copy', expected two numbers, low and high",
    ),
    (lambda m: m["recipe"].update(title=["t"]), "has ['t'] as the title of its `recipe`"),
    (lambda m: m.update(labels={"label": {**LABEL, "measured_with": 1}}), "what the label 'label'"),
    (lambda m: m["shards"].reverse(), "does not have its shards in their order"),
    (lambda m: m["shards"][1].update(name="00007"), "has the shards 00000, 00007, expected all from 00000 on"),
    (lambda m: m["shards"][1].update(rows=4), " rows, zoo.json says "),
    (lambda m: m["shards"][1].update(rows=0), "says that shard 00001 has 0 rows"),
    (lambda m: m["shards"][0]["family"]["config"].update(nonlinearity="relu"), "expected Elman {"),
]


@pytest.mark.parametrize(("change", "message"), MANIFESTS, ids=[message for _, message in MANIFESTS])
def test_odd_values_in_the_manifest_are_refused(zoo, change, message, capsys):
    renewed(zoo, change)
    refused(zoo, message, capsys)


ODD = [None, True, 10**30, "x", [1], {"a": 1}]


def paths(value, before=()):
    """The place of every value inside a document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*before, key)
        yield from paths(inner, (*before, key))


def put(document, path, value):
    *outer, last = path
    for key in outer:
        document = document[key]
    document[last] = value


def test_an_odd_value_anywhere_in_the_manifest_is_read_as_before_or_refused_in_one_line(zoo):
    task = {"output_kind": "categorical", "input_kind": "one_hot", "input_range": [0.0, 1.0], "classes_per_head": 2}
    renewed(zoo, lambda m: m.update(tasks={"Copy": task}, labels={"label": LABEL}))
    whole = (zoo / "zoo.json").read_bytes()
    refusals = 0
    manifest = json.loads(whole)
    for path in paths({**manifest, "digest": {}, "shards": manifest["shards"][:1]}):
        for odd in ODD:
            manifest = json.loads(whole)
            put(manifest, path, odd)
            (zoo / "zoo.json").write_bytes(pretty(sealed(manifest)))
            try:
                opened = open_zoo(zoo)
                info(zoo)
                opened.rollouts([opened.stack([0]).rows[0]])
            except ValueError as error:
                refusals += 1
                (message,) = str(error).splitlines()
    assert refusals > 150
    assert message


@pytest.mark.parametrize("depth", [100, 900, 100_000])
def test_json_nested_deeper_than_ours_is_refused(depth, tmp_path):
    with pytest.raises(ValueError, match=r"is not JSON|nested more than 64 deep"):
        documents.parse('{"a":' * depth + "1" + "}" * depth)
    assert documents.parse('{"a":' * 20 + "1" + "}" * 20)


# What a shard says of itself.


def damage_shard(zoo, change):
    said = json.loads((zoo / "shards/00001/shard.json").read_bytes())
    # What a change returns is put in the place of all; dict.pop returns what it took out.
    changed = change(said)
    said = changed if isinstance(changed, tuple) else said
    (zoo / "shards/00001/shard.json").write_text(json.dumps(said))


OWN = [
    (lambda s: s.update(rows=4), "table.parquet has 5 rows, zoo.json says 4"),
    (lambda s: s.update(rows="5"), "says that shard 00001 has '5' rows"),
    (lambda s: s.pop("rows"), "shard.json does not say its 'rows'"),
    (lambda s: s["family"].update({"class": "GRU"}), "GRU"),
    (lambda s: s["family"]["config"].update(nonlinearity="relu"), "says of models of shard 00001 that they are Elman"),
    (lambda s: s["family"]["config"].update(hidden_size=2), "says of models of shard 00001 that they are Elman"),
    (lambda s: s.update(family="Elman"), "does not say of which family"),
    (lambda s: s["files"].pop("params.safetensors"), "names as files of shard 00001"),
    (lambda s: s["files"].update({"../../x": {"bytes": 1, "sha256": ""}}), "names as files of shard 00001"),
    (lambda s: s.update(files=[]), "has other entries than the JSON of a shard"),
    (lambda s: s.update(format=2), "has other entries than the JSON of a shard"),
    (lambda s: s.update(extra=1), "has other entries than the JSON of a shard"),
    (lambda s: ("x",), "holds JSON of type list"),
]


@pytest.mark.parametrize(("change", "message"), OWN, ids=[message for _, message in OWN])
def test_what_a_shard_says_of_itself_is_checked_before_a_zoo_is_finished(zoo, change, message):
    damage_shard(zoo, change)
    good, bad = good_shards(zoo, range(2), "p")
    assert good == [0]
    assert message in bad[1]
    with pytest.raises(ValueError, match=r"^Shard 00001: .*Run the same build again"):
        finish(zoo, HEAD, 2, "A test zoo")


@pytest.mark.parametrize(("change", "message"), OWN, ids=[message for _, message in OWN])
def test_what_a_shard_says_of_itself_is_verified_though_its_bytes_are_as_promised(zoo, change, message):
    damage_shard(zoo, change)
    reseal(zoo, lambda m: None)
    assert [fault.path for fault in verify(zoo)] == ["shards/00001/shard.json"]


def test_a_shard_copied_over_another_is_noticed(tmp_path):
    for index in range(2):
        write_shard(tmp_path, index, content(seed=index), "p")
    shutil.rmtree(tmp_path / "shards/00001")
    shutil.copytree(tmp_path / "shards/00000", tmp_path / "shards/00001")
    good, bad = good_shards(tmp_path, range(2), "p")
    assert good == [0]
    assert bad == {1: "table.parquet says `shard` 0 in row 0, expected 1"}
    with pytest.raises(ValueError, match=r"Shard 00001: table\.parquet says `shard` 0"):
        finish(tmp_path, HEAD, 2, "A test zoo")


def test_what_could_not_be_read_back_is_not_written(tmp_path):
    double = content()
    double.params["bias_o"] = double.params["bias_o"].double()
    with pytest.raises(ValueError, match="'bias_o' is float64, expected float32"):
        write_shard(tmp_path, 0, double, "p")
    with pytest.raises(ValueError, match="The table of shard 00001 says `shard` 0"):
        write_shard(tmp_path, 1, content(), "p")
    table = pa.table({name: cells for name, cells in columns(FAMILY, 5, 0).items() if name != "split"})
    with pytest.raises(ValueError, match="has no column 'split'"):
        write_shard(tmp_path, 0, type(double)(family=FAMILY, params=content().params, table=table), "p")
    assert not (tmp_path / "shards").exists()
