"""The zoo on disk: what is written is what is read, damage is named, and a crash loses nothing."""

import json
import os
import shutil
import stat

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from weightspace import store
from weightspace.families import available
from weightspace.families.elman import Elman
from weightspace.store import (
    ShardContent,
    clean_staging,
    durable,
    finish,
    good_shards,
    open_zoo,
    verify,
    write_durably,
    write_shard,
)
from weightspace.store.layout import file_entry, pretty, sealed

FAMILY = Elman(input_size=2, hidden_size=3, output_size=1)
HEAD = {
    "plan": "p",
    "generator": {},
    "executor": {"method": "torch", "device": "cpu"},
    "recipe": {"title": "t"},
    "families": [],
    "labels": {},
}


def columns(family, rows, index, name="m"):
    """Every column that a zoo has, of one shard."""
    same = {
        "step": 0,
        "family": type(family).__name__,
        "task": None,
        "family_config": json.dumps(family.config),
        "task_config": None,
        "learning_config": "{}",
        "hidden_size": 3,
        "num_parameters": family.spec.num_parameters,
        "seed": 0,
        "status": "untrained",
        "diverged_step": None,
        "split": "train",
        "split_task": "in",
        "split_size": "in",
        "fold_family": 0,
        "shard": index,
    }
    each = {"model_id": [f"{name}-{index}-{row}" for row in range(rows)], "row": list(range(rows))}
    return {f.name: pa.array(each.get(f.name) or [same[f.name]] * rows, type=f.type) for f in store.SCHEMA}


def content(family=FAMILY, rows=5, seed=0, rollouts=True, index=None):
    generator = torch.Generator().manual_seed(seed)
    models = [family.spec.random_params(generator, torch.float32) for _ in range(rows)]
    params = {name: torch.stack([model[name] for model in models]) for name in family.spec.tensors}
    own = columns(family, rows, seed if index is None else index, f"m{seed}")
    table = pa.table({**own, "label": pa.array([1.0] * rows)})
    ends = {"x": family.input_size, "outputs": family.output_size}
    x = {name: torch.randn(rows, 2, 3, size, generator=generator) for name, size in ends.items()}
    return ShardContent(family=family, params=params, table=table, rollouts=x if rollouts else None)


def write_zoo(path, shards=2):
    path.mkdir(exist_ok=True)
    for index in range(shards):
        write_shard(path, index, content(seed=index), "p")
    finish(path, HEAD, shards, "A test zoo")
    return path


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def zoo(tmp_path):
    return write_zoo(tmp_path / "zoo")


SPECIAL = [0.0, -0.0, float("inf"), float("-inf"), float("nan"), 1e-45, -1.2e-38, 3.4028235e38]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.floats(width=32) | st.sampled_from(SPECIAL), min_size=9, max_size=9), st.integers(1, 4))
def test_every_float_comes_back_bit_for_bit(tmp_path_factory, floats, rows):
    path = tmp_path_factory.mktemp("zoo")
    written = content(rows=rows)
    written.params["weight_hh.0"][:] = torch.tensor(floats).reshape(3, 3)
    write_shard(path, 0, written, "p")
    finish(path, HEAD, 1, "t")
    stack = open_zoo(path).stack(range(rows))
    for name, tensor in written.params.items():
        assert torch.equal(stack.params[name].view(torch.int32), tensor.view(torch.int32))


def test_every_family_comes_back_as_it_was(tmp_path):
    families = [example for kind in available().values() for example in kind.examples()]
    contents_written = [content(family, rows=3, seed=i, rollouts=False) for i, family in enumerate(families)]
    for index, written in enumerate(contents_written):
        write_shard(tmp_path, index, written, "p")
    finish(tmp_path, HEAD, len(families), "t")
    for family, written, stack in zip(families, contents_written, open_zoo(tmp_path).stacks(), strict=True):
        assert stack.family == family
        assert all(torch.equal(stack.params[name], tensor) for name, tensor in written.params.items())
        spec, params = stack.effective
        spec.check(params, stacked=True)


def test_rows_are_found_in_any_order_and_number(zoo):
    opened = open_zoo(zoo)
    whole = torch.cat([content(seed=i).params["weight_hh.0"] for i in range(2)])
    assert torch.equal(opened.stack([3, 0, 3]).params["weight_hh.0"], whole[[3, 0, 3]])
    assert torch.equal(opened.stack(range(6, 9)).params["weight_hh.0"], whole[6:9])
    stacks = list(opened.stacks([9, 1, 4, 7], max_models=1))
    assert [stack.rows.tolist() for stack in stacks] == [[9], [1], [4], [7]]
    assert [stack.rows.tolist() for stack in opened.stacks([9, 7, 1, 4, 8])] == [[9, 7], [1, 4], [8]]
    assert torch.equal(torch.cat([s.params["weight_hh.0"] for s in opened.stacks(max_models=2)]), whole)
    x, outputs = opened.rollouts([6, 5])
    assert torch.equal(x, content(seed=1).rollouts["x"][[1, 0]])
    assert torch.equal(outputs, content(seed=1).rollouts["outputs"][[1, 0]])


def test_a_zoo_is_a_sequence_of_models_that_columns_choose_from(zoo):
    opened = open_zoo(zoo)
    assert len(opened) == 10
    assert repr(opened) == f"Zoo({str(zoo)!r}: {opened.manifest['num_models']} models in 10 rows: 10 Elman)"
    whole = torch.cat([content(seed=i).params["weight_hh.0"] for i in range(2)])
    assert torch.equal(torch.stack([params["weight_hh.0"] for _, params in opened]), whole)
    family, params = opened[-1]
    family.spec.check(params, stacked=False)
    assert torch.equal(params["weight_hh.0"], whole[9])
    with pytest.raises(IndexError):
        opened[10]
    chosen = opened[[7, 2, 9]]
    assert chosen.rows == [7, 2, 9]
    assert chosen.table["row"].to_pylist() == [2, 2, 4]
    assert torch.equal(torch.cat([stack.params["weight_hh.0"] for stack in chosen.stacks()]), whole[[7, 2, 9]])
    assert list(chosen[1:].rows) == [2, 9]
    names = opened.table["model_id"].to_pylist()
    assert opened.filter(model_id=names[3]).rows == [i for i, name in enumerate(names) if name == names[3]]
    assert opened.filter(row=[4, 0], shard=1).rows == [5, 9]
    assert opened.filter(row=lambda row: row > 2).filter(shard=0).rows == [3, 4]
    with pytest.raises(ValueError, match="No column of the zoo is called 'taks'"):
        opened.filter(taks="Copy")


def test_rows_of_two_shards_or_beyond_the_end_are_refused(zoo):
    opened = open_zoo(zoo)
    with pytest.raises(ValueError, match="must be of one shard"):
        opened.stack([4, 5])
    with pytest.raises(ValueError, match="no row 10; the zoo has 10"):
        opened.stack([10])
    with pytest.raises(ValueError, match="at least one row"):
        opened.stack([])


def test_the_table_is_the_shards_tables_one_after_another(zoo):
    parts = [pq.read_table(zoo / "shards" / name / "table.parquet") for name in ("00000", "00001")]
    assert open_zoo(zoo).table.equals(pa.concat_tables(parts))


def test_the_same_content_gives_the_same_bytes_whatever_the_order(tmp_path, zoo):
    other = tmp_path / "other"
    for index in (1, 0):
        write_shard(other, index, content(seed=index), "p")
    finish(other, HEAD, 2, "A test zoo")
    assert contents(other) == contents(zoo)


def test_the_fingerprint_changes_with_any_promised_byte(tmp_path, zoo):
    other = tmp_path / "other"
    for index in range(2):
        changed = content(seed=index)
        changed.params["bias_o"][0] += 1e-7
        write_shard(other, index, changed, "p")
    finish(other, HEAD, 2, "A test zoo")
    assert open_zoo(other).fingerprint != open_zoo(zoo).fingerprint


def test_files_follow_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        zoo = write_zoo(tmp_path / "zoo")
    finally:
        os.umask(old)
    modes = {stat.S_IMODE(p.stat().st_mode) for p in zoo.rglob("*") if p.is_file()}
    assert modes == {0o640}
    assert {stat.S_IMODE(p.stat().st_mode) for p in zoo.rglob("*") if p.is_dir()} == {0o750}


def test_the_folder_opens_with_datasets_offline_also_after_a_rebuild(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    for seed in (3, 4):
        folder = tmp_path / "zoo"
        for index in range(2):
            write_shard(folder, index, content(seed=seed + index, index=index), "p")
        finish(folder, HEAD, 2, 'A "test" zoo: two shards')
        loaded = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))["train"]
        assert loaded.data.table.combine_chunks().to_pylist() == open_zoo(folder).table.to_pylist()
        assert loaded["model_id"][0] == f"m{seed}-0-0"
        shutil.rmtree(folder)


# Damage.

FILES = ("params.safetensors", "rollouts.safetensors", "table.parquet", "shard.json")
ALL_FILES = [*(f"shards/00001/{name}" for name in FILES), "models.parquet", "README.md", "zoo.json"]


@pytest.mark.parametrize("name", ALL_FILES)
def test_one_flipped_bit_is_named(zoo, name):
    data = bytearray((zoo / name).read_bytes())
    data[len(data) // 2] ^= 1
    (zoo / name).write_bytes(data)
    assert [fault.path for fault in verify(zoo)] == [name]


@pytest.mark.parametrize("name", ALL_FILES)
def test_a_truncated_or_missing_file_is_named(zoo, name):
    data = (zoo / name).read_bytes()
    (zoo / name).write_bytes(data[:-1] if name != "zoo.json" else data[:-3])
    assert [fault.path for fault in verify(zoo)] == [name]
    (zoo / name).unlink()
    assert [(fault.path, "missing" in fault.problem or "no zoo.json" in fault.problem) for fault in verify(zoo)] == [
        (name, True)
    ]


def test_missing_swapped_and_extra_shards_are_named(zoo):
    shards = zoo / "shards"
    shutil.copytree(shards / "00000", shards / "00007")
    assert [fault.path for fault in verify(zoo)] == ["shards/00007"]
    shutil.rmtree(shards / "00007")
    shutil.rmtree(shards / "00001")
    assert [(fault.path, fault.problem) for fault in verify(zoo)] == [("shards/00001", "the shard is missing")]
    shutil.copytree(shards / "00000", shards / "00001")
    assert {fault.path for fault in verify(zoo)} == {f"shards/00001/{name}" for name in FILES}


def test_an_intact_zoo_has_no_fault(zoo):
    assert verify(zoo) == []


def test_damage_is_named_when_read_with_the_way_out(zoo):
    params = zoo / "shards/00001/params.safetensors"
    params.write_bytes(params.read_bytes()[:-4])
    opened = open_zoo(zoo)
    with pytest.raises(ValueError, match=r"00001/params.safetensors has \d+ bytes.*zoo-builder verify"):
        opened.stack([5])
    opened.stack([0])
    shutil.rmtree(zoo / "shards/00000")
    with pytest.raises(ValueError, match=r"00000/params.safetensors is missing.*zoo-builder verify"):
        opened.stack([0])


def reseal(zoo, change):
    """Edit zoo.json as somebody who knows the format would."""
    manifest = json.loads((zoo / "zoo.json").read_bytes())
    change(manifest)
    for shard in manifest["shards"]:
        for name, entry in shard["files"].items():
            file = zoo / "shards" / shard["name"] / name
            if file.is_file():
                entry.update(file_entry(file))
    (zoo / "zoo.json").write_bytes(pretty(sealed(manifest)))


def test_a_newer_format_is_refused_with_a_hint(zoo):
    reseal(zoo, lambda m: m.update(format=2))
    with pytest.raises(ValueError, match="format 2, this version reads up to 1; upgrade weightspace"):
        open_zoo(zoo)


@pytest.mark.parametrize("name", ["../../etc", "/etc", "0000", "00000\n", "00000\0"])
def test_a_hostile_shard_name_is_refused(zoo, name):
    reseal(zoo, lambda m: m["shards"][0].update(name=name) if "\0" not in name else m["shards"][0].update(name="0\0"))
    with pytest.raises(ValueError, match="a name has five digits"):
        open_zoo(zoo)


def test_a_link_out_of_the_zoo_is_refused(zoo, tmp_path):
    params = zoo / "shards/00000/params.safetensors"
    params.rename(tmp_path / "elsewhere")
    params.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="is a link out of the zoo"):
        open_zoo(zoo).stack([0])
    assert [fault.problem for fault in verify(zoo)] == ["is a link out of the zoo"]


def test_hostile_tensor_names_and_shapes_that_do_not_fit_are_refused(zoo):
    params = zoo / "shards/00000/params.safetensors"
    tensors = safetensors.torch.load(params.read_bytes())
    params.write_bytes(safetensors.torch.save({**tensors, "../x\x1b[2J": torch.zeros(5)}))
    reseal(zoo, lambda m: None)
    with pytest.raises(ValueError, match=r"a tensor named '\.\./x\\x1b\[2J'"):
        open_zoo(zoo).stack([0])
    params.write_bytes(safetensors.torch.save({**tensors, "bias_o": torch.zeros(4, 1)}))
    reseal(zoo, lambda m: None)
    with pytest.raises(ValueError, match=r"'bias_o' has shape \(4, 1\), expected 5 rows first"):
        open_zoo(zoo).stack([0])
    params.write_bytes(safetensors.torch.save({**tensors, "bias_o": torch.zeros(5, 2)}))
    reseal(zoo, lambda m: None)
    with pytest.raises(ValueError, match="Axis 'output' of 'bias_o' has size 2"):
        open_zoo(zoo).stack([0])


def test_an_unknown_family_is_refused(zoo):
    reseal(zoo, lambda m: m["shards"][0]["family"].update({"class": "Ellman"}))
    with pytest.raises(ValueError, match=r"No family is called 'Ellman'.*Did you mean 'Elman'"):
        open_zoo(zoo)


def test_content_that_does_not_fit_is_not_written(tmp_path):
    wrong = content()
    wrong.params["bias_o"] = torch.zeros(5, 2)
    with pytest.raises(ValueError, match="Axis 'output' of 'bias_o' has size 2"):
        write_shard(tmp_path, 0, wrong, "p")
    short = content()
    short.rollouts["x"] = torch.zeros(4, 2, 3, 1)
    with pytest.raises(ValueError, match="expected 5 rows first"):
        write_shard(tmp_path, 0, short, "p")
    assert contents(tmp_path) == {}


# Crashes.


def test_a_shard_of_another_plan_is_refused(tmp_path, zoo):
    with pytest.raises(ValueError, match="00000 belongs to another plan"):
        good_shards(zoo, range(2), "q")


def test_a_flipped_bit_before_the_end_is_noticed(tmp_path):
    for index in range(2):
        write_shard(tmp_path, index, content(seed=index), "p")
    file = tmp_path / "shards/00001/params.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert good_shards(tmp_path, range(2), "p") == ([0], {1: "params.safetensors is not what was written"})
    with pytest.raises(ValueError, match=r"Shard 00001: params\.safetensors is not what was written"):
        finish(tmp_path, HEAD, 2, "t")


def test_staging_of_dead_writers_goes_and_that_of_live_ones_stays(tmp_path):
    own = tmp_path / ".staging" / durable._writer_name(os.getpid())
    dead = tmp_path / ".staging" / durable._writer_name(os.getpid()).replace(f"-{os.getpid()}-", "-4194999-")
    reused = tmp_path / ".staging" / (durable._writer_name(os.getpid()) + "1")
    elsewhere = tmp_path / ".staging" / "another-machine-1-1"
    for folder in (own, dead, reused, elsewhere):
        folder.mkdir(parents=True)
    clean_staging(tmp_path)
    assert {p.name for p in (tmp_path / ".staging").iterdir()} == {own.name, elsewhere.name}


def test_a_full_disk_is_named_with_the_bytes_needed(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(28, "No space left on device")

    path = write_zoo(tmp_path / "zoo") / "note.txt"
    write_durably(path, b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(store.DiskFull, match=r"note\.txt") as caught:
        write_durably(path, b"x" * 12_345)
    assert "needs 12,345 bytes" in str(caught.value)
    assert path.read_bytes() == b"old"
    with pytest.raises(store.DiskFull, match="shards/00002"):
        write_shard(path.parent, 2, content(seed=2), "p")
    assert verify(path.parent) == []


def test_reading_while_a_shard_is_replaced_gives_the_old_or_the_new(zoo, tmp_path):
    stack = open_zoo(zoo).stack(range(5))
    before = stack.params["weight_hh.0"].clone()
    store.remove_shard(zoo, 0)
    write_shard(zoo, 0, content(seed=0), "p")
    assert torch.equal(stack.params["weight_hh.0"], before)
    assert verify(zoo) == []
