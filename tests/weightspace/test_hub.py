"""Zoos as Hugging Face datasets: the same bits, never stale ones, there whole or not at all."""

import functools
import inspect
import itertools
import json
import os
import shutil

import datasets
import huggingface_hub
import pyarrow.parquet as pq
import pytest
import torch
from huggingface_hub import errors

from tests.weightspace.zoos import FAMILIES, write_zoo
from weightspace import store
from weightspace.cli import main
from weightspace.exchange import flat, hub
from weightspace.store import open_zoo


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    path = tmp_path_factory.mktemp("hub") / "zoo"
    return write_zoo(path, models=6, shards_per_family=2, rollouts=False, spoilt=("status", "diverged"))


@pytest.fixture(scope="module")
def exported(zoo):
    return hub.export(zoo, zoo.parent / "exported")


@pytest.fixture
def load(tmp_path):
    def load_offline(folder, *config):
        assert datasets.config.HF_HUB_OFFLINE
        return datasets.load_dataset(str(folder), *config, split="train", cache_dir=str(tmp_path / "cache"))

    return load_offline


def bits(params):
    return {name: tensor.view(torch.int32).tolist() for name, tensor in params.items()}


def assert_holds(rows, zoo):
    """Every row of the configuration `weights` is, bit for bit, that of the zoo."""
    zoo = open_zoo(zoo)
    assert rows["model_id"] == zoo.table["model_id"].to_pylist()[: len(rows)]
    assert rows["step"] == zoo.table["step"].to_pylist()[: len(rows)]
    for number in range(len(rows)):
        stack = zoo.stack([number])
        family, params = hub.model_of(rows[number])
        assert family == stack.family
        assert bits(params) == bits({name: tensor[0] for name, tensor in stack.params.items()})


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_weights_and_table_come_back_bit_for_bit_those_of_diverged_models_too(zoo, load, tmp_path):
    folder = hub.export(zoo, tmp_path / "dataset")
    rows, table = load(folder, "weights"), open_zoo(zoo).table
    assert len(rows) == table.num_rows
    diverged = [i for i, status in enumerate(table["status"].to_pylist()) if status == "diverged"]
    assert all(torch.tensor(rows[i]["weights"]).isnan().any() for i in diverged)
    assert len(diverged) == 6
    assert_holds(rows, zoo)
    assert_holds(rows.with_format("numpy"), zoo)
    assert load(folder, "models").to_list() == table.to_pylist()
    assert load(folder).num_rows == table.num_rows
    assert None in table["decay"].to_pylist()


def test_an_export_of_a_zoo_built_anew_is_never_mistaken_for_the_old_one(zoo, load, tmp_path):
    folder = hub.export(zoo, tmp_path / "dataset")
    assert_holds(load(folder, "weights"), zoo)
    assert load(folder, "models").to_list() == open_zoo(zoo).table.to_pylist()
    # The same models, steps and sizes, so that nothing but the content tells them apart.
    anew = write_zoo(tmp_path / "anew", models=6, shards_per_family=2, rollouts=False, seed=9)
    assert hub.export(anew, tmp_path / "dataset") == folder
    assert_holds(load(folder, "weights"), anew)
    assert load(folder, "models").to_list() == open_zoo(anew).table.to_pylist()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_one_bit_in_a_file_of_the_same_size_is_noticed(zoo, load, tmp_path, monkeypatch):
    folder = hub.export(zoo, tmp_path / "dataset")
    assert_holds(load(folder, "weights"), zoo)
    (before,) = (path.stat().st_size for path in (folder / "weights").iterdir())
    stack = store.Zoo.stack

    def nudged(self, rows):
        read = stack(self, rows)
        read.params["weight_hh.0"].view(torch.int32)[0, ..., 0, 0] ^= 1
        return read

    monkeypatch.setattr(store.Zoo, "stack", nudged)
    hub.export(zoo, folder)
    (after,) = (path.stat().st_size for path in (folder / "weights").iterdir())
    assert after == before
    assert_holds(load(folder, "weights").select([0]), zoo)


def test_the_table_of_a_zoo_built_anew_in_its_folder_is_never_mistaken_for_the_old_one(load, tmp_path):
    for seed in (0, 9):
        shutil.rmtree(tmp_path / "zoo", ignore_errors=True)
        zoo = write_zoo(tmp_path / "zoo", models=5, rollouts=False, seed=seed)
        assert load(zoo).to_list() == open_zoo(zoo).table.to_pylist()


def test_the_same_zoo_gives_the_same_bytes_and_its_record_says_which(zoo, tmp_path):
    first, second = (files(hub.export(zoo, tmp_path / name)) for name in ("a", "deeper/b"))
    assert first == second
    assert set(first) == {"README.md", "models.parquet", "export.json", "weights/train-00000-of-00001.parquet"}
    record = json.loads(first["export.json"])
    assert record["zoo"]["digest"] == open_zoo(zoo).fingerprint
    assert record["files"] == {name: store.file_entry(tmp_path / "a" / name) for name in first if name != "export.json"}
    assert files(hub.export(zoo, tmp_path / "a", license="cc-by-4.0")) != first


def test_files_and_row_groups_are_bounded_and_no_more_than_a_group_is_read_at_a_time(zoo, load, tmp_path, monkeypatch):
    monkeypatch.setattr(flat, "ROWS_PER_GROUP", 10)
    monkeypatch.setattr(flat, "BYTES_PER_GROUP", 900)
    monkeypatch.setattr(flat, "BYTES_PER_FILE", 6000)
    read, stack = [], store.Zoo.stack
    monkeypatch.setattr(store.Zoo, "stack", lambda self, rows: read.append(len(rows)) or stack(self, rows))
    folder = hub.export(zoo, tmp_path / "dataset")
    assert sum(read) == open_zoo(zoo).num_rows
    parts = sorted((folder / "weights").iterdir())
    assert [part.name for part in parts] == [f"train-{i:05d}-of-{len(parts):05d}.parquet" for i in range(len(parts))]
    groups = [pq.ParquetFile(part).metadata.row_group(i).num_rows for part in parts
              for i in range(pq.ParquetFile(part).metadata.num_row_groups)]  # fmt: skip
    assert len(parts) > 2
    # Elman networks of 4 units have 29 weights, GRUs have 99: seven and two of them make 900 bytes.
    assert (groups[0], groups[-2]) == (7, 2)
    assert max(read) <= 7
    monkeypatch.undo()
    assert_holds(load(folder, "weights"), zoo)


def test_row_groups_take_in_several_small_shards(zoo, tmp_path):
    folder = hub.export(zoo, tmp_path / "dataset")
    assert pq.ParquetFile(folder / "weights" / "train-00000-of-00001.parquet").metadata.num_row_groups == 1


def test_a_failure_leaves_the_earlier_export_and_nothing_else(zoo, tmp_path, monkeypatch):
    folder = hub.export(zoo, tmp_path / "dataset")
    before = files(tmp_path)
    anew = write_zoo(tmp_path.parent / f"{tmp_path.name}-anew", models=5, rollouts=False, seed=9)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hub, "_card", full)
    with pytest.raises(OSError, match="No space left"):
        hub.export(anew, folder)
    with pytest.raises(OSError, match="No space left"):
        hub.export(anew, tmp_path / "other")
    assert files(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["dataset"]


def test_whichever_rename_or_flush_fails_the_folder_is_the_earlier_export_or_the_new_one(zoo, tmp_path, monkeypatch):
    earlier = files(hub.export(zoo, tmp_path / "dataset"))
    anew = write_zoo(tmp_path.parent / f"{tmp_path.name}-anew", models=5, rollouts=False, seed=9)
    new = files(hub.export(anew, tmp_path.parent / f"{tmp_path.name}-new"))
    calls = {"rename": os.rename, "fsync": os.fsync}
    for place in itertools.count():
        left = [place]

        def failing(name, *args, left=left):
            left[0] -= 1
            if left[0] == -1:
                raise KeyboardInterrupt
            return calls[name](*args)

        with monkeypatch.context() as patch:
            for name in calls:
                patch.setattr(os, name, functools.partial(failing, name))
            try:
                hub.export(anew, tmp_path / "dataset")
            except KeyboardInterrupt:
                found = files(tmp_path / "dataset")
                assert found in (earlier, new)
                assert [path.name for path in tmp_path.iterdir()] == ["dataset"]
                continue
        break
    assert found == new
    assert place > 8


def test_a_damaged_zoo_is_not_exported(zoo, tmp_path):
    damaged = tmp_path / "damaged"
    shutil.copytree(zoo, damaged)
    params = damaged / "shards" / "00001" / "params.safetensors"
    data = bytearray(params.read_bytes())
    data[-1] ^= 1
    params.write_bytes(data)
    with pytest.raises(ValueError, match=r"damaged and was not exported: shards/00001/params.safetensors has sha256"):
        hub.export(damaged, tmp_path / "dataset")
    assert not (tmp_path / "dataset").exists()


def test_what_would_be_written_over_and_what_is_no_licence_is_refused(zoo, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="mine holds other files, not an earlier export"):
        hub.export(zoo, tmp_path / "mine")
    with pytest.raises(ValueError, match="zoo holds other files"):
        hub.export(zoo, zoo)
    with pytest.raises(ValueError, match=r"`license` \(='free: yes'\) must be an identifier"):
        hub.export(zoo, tmp_path / "dataset", license="free: yes")
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years of work"


def test_every_column_that_a_builder_writes_has_a_meaning():
    assert list(store.COLUMNS) == store.SCHEMA.names
    assert all(meaning.endswith(".") for _, meaning in store.COLUMNS.values())


def test_the_card_says_what_is_in_it(zoo, tmp_path):
    text = (hub.export(zoo, tmp_path / "dataset", license="cc-by-4.0") / "README.md").read_text()
    data = huggingface_hub.DatasetCard(text).data
    assert data.license == "cc-by-4.0"
    assert [config["config_name"] for config in data.configs] == ["models", "weights"]
    assert len({config["version"] for config in data.configs}) == 2
    assert "| `split` | test | 6 | 12 |" in text
    assert "| `step` | int64 | updates | Updates of training before this snapshot" in text
    assert "| `weight_hh.0` | gate (3), hidden.0 (4), hidden.0 (4) |" in text
    assert open_zoo(zoo).fingerprint in text


ROW = {"family": "Elman", "family_config": json.dumps(FAMILIES[0].config)}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"model_id": "m"}, r"lacks \['family', 'family_config', 'names', 'shapes', 'weights'\]; load .* 'weights'"),
        (
            {**ROW, "names": ["bias.0"], "shapes": [[4]], "weights": [1.0] * 3},
            r"1 names, shapes \[\(4,\)\] and 3 weights",
        ),
        ({**ROW, "names": ["bias.0"], "shapes": [[-2, -2]], "weights": [1.0] * 4}, "do not fit together"),
        ({**ROW, "family_config": "{", "names": [], "shapes": [], "weights": []}, r"`family_config` is not JSON: '\{'"),
        ({**ROW, "family_config": "7", "names": [], "shapes": [], "weights": []}, "expected the fields of a family"),
        (
            {
                **ROW,
                "family_config": '{"num_layers": 1000000000}',
                "names": ["b"],
                "shapes": [[4]],
                "weights": [1.0] * 4,
            },
            r"`num_layers` \(=1000000000\) of `family_config` is more than the 4 weights",
        ),
        ({**ROW, "names": ["bias.0"], "shapes": [[4]], "weights": [1.0] * 4}, r"missing \['bias_o', "),
        ({**ROW, "names": ["b", "b"], "shapes": [[2], [2]], "weights": [1.0] * 4}, r"repeats one of \['b'\]"),
        ({**ROW, "names": None, "shapes": [[4]], "weights": [1.0] * 4}, "must be lists of text, of sizes and of num"),
        ({**ROW, "names": ["b"], "shapes": [[1.5]], "weights": [1.0]}, "must be lists of text, of sizes and of num"),
        ({**ROW, "names": ["b"], "shapes": [None], "weights": [1.0]}, "must be lists of text, of sizes and of num"),
        ({**ROW, "names": ["b"], "shapes": [[1]], "weights": 1.0}, "must be lists of text, of sizes and of num"),
        ({**ROW, "names": ["b"], "shapes": [[1]], "weights": [{}]}, "must be lists of text, of sizes and of num"),
        ({**ROW, "family": "Elmann", "names": ["b"], "shapes": [[9]], "weights": [1.0] * 9}, "Did you mean 'Elman'"),
    ],
)
def test_rows_that_make_no_model_are_refused(row, message):
    with pytest.raises(ValueError, match=message):
        hub.model_of(row)


REAL = huggingface_hub.HfApi


class FakeHub:
    """Stands for huggingface_hub.HfApi: takes what that takes, and remembers what it was asked to do."""

    def __init__(self):
        self.calls = []

    def create_repo(self, repo, **options):
        inspect.signature(REAL.create_repo).bind(self, repo, **options)
        self.calls.append(("create_repo", repo, options))
        return f"https://huggingface.co/datasets/{repo}"

    def upload_folder(self, **options):
        inspect.signature(REAL.upload_folder).bind(self, **options)
        self.calls.append(("upload_folder", sorted(files(options["folder_path"])), options))


def test_pushing_uploads_the_folder_and_removes_weights_of_earlier_uploads(zoo, tmp_path, monkeypatch, capsys):
    fake = FakeHub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: fake)
    folder = tmp_path / "dataset"
    arguments = ["export", "--zoo", str(zoo), "--out", str(folder), "--push", "me/zoo", "--private", "true"]
    assert main(arguments) == 0
    assert capsys.readouterr().out.split() == [str(folder), "https://huggingface.co/datasets/me/zoo"]
    (made, repo, options), (uploaded, names, upload) = fake.calls
    assert (made, repo, uploaded) == ("create_repo", "me/zoo", "upload_folder")
    assert options == {"repo_type": "dataset", "private": True, "exist_ok": True}
    assert names == sorted(files(folder))
    assert (upload["repo_id"], upload["repo_type"]) == ("me/zoo", "dataset")
    assert sorted(upload["allow_patterns"]) == sorted(files(folder))
    earlier = [f"{name}/train-*-of-*.parquet" for name in ("weights", "rollouts")]
    assert upload["delete_patterns"] == [*earlier, "tasks.safetensors"]
    assert upload["commit_message"] == f"Zoo {open_zoo(zoo).fingerprint[:12]}"


def answer(status):
    response = type("Answer", (), {"status_code": status, "headers": {}, "request": None})()
    error = errors.HfHubHTTPError.__new__(errors.HfHubHTTPError)
    error.args, error.response = (f"{status} Client Error.\n\nfor url: https://huggingface.co/api",), response
    return error


def no_network():
    # As the client's own transport raises it: no OSError.
    return type("ConnectError", (errors.HTTPError,), {})("[Errno -2] Name or service not known")


FAILURES = [
    (no_network(), "[Errno -2] Name or service not known. Make sure that the Hub can be reached"),
    (errors.LocalTokenNotFoundError("Token is required"), "Token is required. Log in by `hf auth login`"),
    (errors.OfflineModeIsEnabled("Cannot reach it: offline mode"), "offline mode. Make sure that the Hub can be"),
    (answer(401), "401 Client Error. Log in by `hf auth login` with a token that may write there"),
    (answer(403), "403 Client Error. Log in by `hf auth login`"),
    (answer(404), "404 Client Error. Make sure that OWNER is you or an organisation of yours"),
    (answer(500), "500 Client Error. Make sure that the Hub can be reached"),
    (RuntimeError("Data processing error: reset"), "Data processing error: reset. Make sure"),
]


@pytest.mark.parametrize("at", ["create_repo", "upload_folder"])
@pytest.mark.parametrize(("failure", "message"), FAILURES, ids=[message[:24] for _, message in FAILURES])
def test_a_failed_upload_says_so_in_one_line_with_the_way_out(exported, monkeypatch, at, failure, message):
    def fail(*arguments, **options):
        raise failure

    fake = FakeHub()
    monkeypatch.setattr(fake, at, fail)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: fake)
    with pytest.raises(ValueError, match="is written, but not uploaded to me/zoo: ") as caught:
        hub.push(exported, "me/zoo")
    assert message in str(caught.value)
    assert str(caught.value).endswith("and run the same command again.")
    assert len(str(caught.value).splitlines()) == 1


def test_the_real_client_without_a_network_ends_with_status_2_and_one_line(zoo, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    folder = tmp_path / "dataset"
    with monkeypatch.context() as patch:
        # Nothing listens there, so nothing is sent.
        patch.setattr(huggingface_hub, "HfApi", lambda: REAL(endpoint="http://127.0.0.1:1", token="none"))
        assert main(["export", "--zoo", str(zoo), "--out", str(folder), "--push", "me/zoo"]) == 2
    error = capsys.readouterr().err
    assert f"{folder} is written, but not uploaded to me/zoo: " in error
    assert len(error.strip().splitlines()) == 1
    assert (folder / "export.json").is_file()


@pytest.mark.parametrize("name", ["zoo", "me/zoo/x", "me//zoo", "-me/zoo", "me/zoo.git", "https://hf.co/me/zoo", ""])
def test_a_wrong_name_of_a_repository_is_refused_before_anything_is_written(zoo, tmp_path, capsys, name):
    assert main(["export", "--zoo", str(zoo), "--out", str(tmp_path / "dataset"), f"--push={name}"]) == 2
    assert "is no name of a repository; expected OWNER/NAME" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["[]", "{", "{}", '{"zoo": 3}', '{"zoo": {"digest": 3}, "files": {}}', "[" * 9999,
                                  '{"zoo": {"digest": "a"}, "files": {"*": {"bytes": 1, "sha256": ""}}}'])  # fmt: skip
def test_a_record_that_is_not_one_is_refused(exported, tmp_path, text):
    folder = shutil.copytree(exported, tmp_path / "dataset")
    (folder / "export.json").write_text(text)
    with pytest.raises(ValueError, match=r"export.json is not what `weightspace export` writes"):
        hub.push(folder, "me/zoo")


def test_only_exports_are_pushed(zoo):
    with pytest.raises(ValueError, match="not an export; make one with `weightspace export`"):
        hub.push(zoo, "me/zoo")


def test_bad_input_ends_with_status_2_and_one_line(tmp_path, capsys):
    assert main(["export", "--zoo", str(tmp_path), "--out", str(tmp_path / "dataset")]) == 2
    assert "has no zoo.json" in capsys.readouterr().err
