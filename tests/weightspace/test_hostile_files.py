"""Zoos and checkpoints from strangers: refused with the reason, and nothing in them is run."""

import ast
import json
import os
import re
import struct
from pathlib import Path

# Lightning's log handler keeps the stderr of its first import, which must outlive the capture of one test.
import lightning.pytorch  # noqa: F401
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

import probes.cli
import zoo_builder.cli
from tests.weightspace.test_cli import CONFIG, call
from tests.weightspace.test_store import HEAD, content, reseal
from tests.weightspace.zoos import write_zoo as write_labelled_zoo
from weightspace.components import plugins
from weightspace.store import finish, open_zoo, verify, write_shard
from weightspace.terminal import printable

ROOT = Path(__file__).parents[2]


@pytest.fixture
def zoo(tmp_path):
    path = tmp_path / "zoo"
    path.mkdir()
    for index in range(2):
        write_shard(path, index, content(seed=index), "p")
    finish(path, HEAD, 2, "A test zoo")
    return path


@pytest.fixture(autouse=True)
def nothing_allowed_yet(monkeypatch):
    """Allowances of a command last as long as its process: taken back here, because other tests share it."""
    monkeypatch.setattr(plugins, "_allowed", {})


def first(**fields):
    return lambda manifest: manifest["shards"][0].update(fields)


def config(**fields):
    return lambda manifest: manifest["shards"][0]["family"]["config"].update(fields)


ENTRY = {"bytes": 1, "sha256": "0" * 64}
MANIFESTS = [
    (lambda m: m.update(shards={}), "has no list of `shards`"),
    (lambda m: m.pop("files"), "has no dict of `files`"),
    (lambda m: m.update(recipe="x"), "has no dict of `recipe`"),
    (lambda m: m.update(labels={"score": "good"}), "does not say what the label 'score' is"),
    (lambda m: m.update(labels={"\x1b[2J": {"unit": "", "definition": ""}}), "what the label '\\x1b[2J' is"),
    (lambda m: m["files"].update({"../../etc/passwd": ENTRY}), "names as files of the zoo ['../../etc/passwd'"),
    (lambda m: m["files"]["README.md"].update(bytes="1"), "does not say the bytes and the sha256 of README.md"),
    (lambda m: m["shards"][0]["files"].update({"../../x": ENTRY}), "names as files of shard 00000 ['../../x'"),
    (lambda m: m["shards"][0]["files"].pop("table.parquet"), "names as files of shard 00000"),
    (lambda m: m["shards"].append(dict(m["shards"][0])), "names the shard 00000 twice"),
    (first(rows=-5), "says that shard 00000 has -5 rows"),
    (first(rows="5"), "says that shard 00000 has '5' rows"),
    (first(rows=True), "says that shard 00000 has True rows"),
    (first(rows=10**15), "for which its params.safetensors has no room"),
    (first(family="GRU"), "does not say of which family"),
    (first(family={"class": "GRU"}), "does not say at which sizes"),
    (config(hidden_size=10**9), "says `hidden_size` (=1000000000) of shard 00000, for which"),
    (config(num_layers=10**6), "says `num_layers` (=1000000) of shard 00000, for which"),
    (config(hidden_size="__import__('os')"), "of Elman must be of type int"),
    (config(nonlinearity="eval"), "of Elman must be one of ['tanh', 'relu']"),
    (config(device="cuda"), "Elman has no option 'device'"),
    (lambda m: m["shards"][0]["family"].update({"class": "os.system"}), "No family is called 'os.system'"),
    (lambda m: m.update(format=True), "has format True, expected 1"),
    (lambda m: m.update(format="2"), "has format '2', expected 1"),
]


@pytest.mark.parametrize(("change", "message"), MANIFESTS, ids=[message for _, message in MANIFESTS])
def test_a_manifest_that_no_writer_writes_is_refused_with_what_is_wrong(zoo, change, message):
    reseal(zoo, change)
    with pytest.raises(ValueError, match=re.escape(message)):
        open_zoo(zoo)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 200_000,
        '{"a":' * 200_000,
        "{" + " " * 10,
        "9" * 10_000,
        '{"format": 1e999}',
        '{"format": NaN}',
        '"\\ud800"',
    ],
)
def test_a_manifest_that_is_hard_to_read_is_refused_in_one_line(zoo, text, capsys):
    (zoo / "zoo.json").write_text(text)
    with pytest.raises(ValueError, match=r"zoo\.json"):
        open_zoo(zoo)
    assert zoo_builder.cli.main(["verify", str(zoo)]) == 1
    assert "'zoo.json'" in capsys.readouterr().out


def header(length, text):
    return struct.pack("<Q", length) + text


BOMBS = [
    header(2**63 - 1, b"{}"),
    header(200 * 2**20, b"{}"),
    header(2, b"{}") + b"x" * 64,
    header(8, b"[" * 8),
    header(100_000, b"[" * 100_000),
    b"",
    b"\x80\x04cos\nsystem\n",
    b'{"a"',
]


@pytest.mark.parametrize("data", BOMBS, ids=lambda data: repr(data[:16]))
def test_weights_with_a_header_that_lies_are_refused(zoo, data):
    (zoo / "shards/00000/params.safetensors").write_bytes(data.ljust(64, b" "))
    reseal(zoo, lambda m: None)
    with pytest.raises(ValueError, match=r"params\.safetensors cannot be read"):
        open_zoo(zoo).stack([0])


def test_a_table_of_more_rows_than_promised_or_with_strange_columns_is_refused_before_it_is_read(zoo, monkeypatch):
    path = zoo / "models.parquet"
    # A few hundred bytes that would be gigabytes.
    many = pa.table({"model_id": pa.DictionaryArray.from_arrays(pa.array([0] * 10**6, pa.int32()), ["m"])})
    strange = pa.table({"model_id": ["m"] * 10, "\x1b]0;evil\x07": [0] * 10})
    monkeypatch.setattr(pq, "read_table", lambda *a, **k: pytest.fail("the table was read"))
    for table, message in ((many, "has 1000000 rows, zoo.json says 10"), (strange, r"a column '\\x1b\]0;evil\\x07'")):
        pq.write_table(table, path)
        reseal(zoo, lambda m: m["files"]["models.parquet"].update(bytes=path.stat().st_size))
        with pytest.raises(ValueError, match=message):
            open_zoo(zoo).table  # noqa: B018 - reading is what fails
    path.write_bytes(b"PAR1" + b"\0" * 60)
    reseal(zoo, lambda m: m["files"]["models.parquet"].update(bytes=64))
    with pytest.raises(ValueError, match="cannot be read"):
        open_zoo(zoo).table  # noqa: B018


@pytest.mark.parametrize("part", ["shards", "shards/00000", "shards/00000/params.safetensors", "models.parquet"])
def test_links_out_of_the_zoo_are_refused_wherever_they_are(zoo, tmp_path, part):
    (zoo / part).rename(tmp_path / "elsewhere")
    (zoo / part).symlink_to(tmp_path / "elsewhere")
    faults = verify(zoo)
    assert faults
    assert {fault.problem for fault in faults} == {"is a link out of the zoo"}
    with pytest.raises(ValueError, match="is a link out of the zoo"):
        open_zoo(zoo).table if part == "models.parquet" else open_zoo(zoo).stack([0])


def test_a_builder_does_not_write_through_a_link(zoo, tmp_path, capsys):
    (tmp_path / "elsewhere").mkdir()
    (zoo / ".staging").symlink_to(tmp_path / "elsewhere")
    assert zoo_builder.cli.main(["label", str(zoo), "--labels", "Performance"]) == 2
    assert ".staging is a link, which is refused" in capsys.readouterr().err
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_planted_journal_cannot_lead_a_labelling_out_of_the_zoo(zoo, tmp_path, capsys):
    manifest = json.loads((zoo / "zoo.json").read_bytes())
    manifest["shards"][0]["name"] = "../../elsewhere"
    (zoo / "zoo.json").unlink()
    (zoo / ".staging").mkdir()
    (tmp_path / "elsewhere").mkdir()
    for journal, message in ((manifest, "was edited"), ("x", "was edited"), (None, "not what a stopped labelling")):
        entry = {"labels": ["Performance"], "manifest": journal} if journal else {"manifest": manifest}
        (zoo / ".staging/labelling.json").write_text(json.dumps(entry))
        assert zoo_builder.cli.main(["label", str(zoo), "--labels", "Performance"]) == 2
        assert message in capsys.readouterr().err
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_what_a_stranger_wrote_is_shown_and_not_obeyed_by_the_terminal(tmp_path, capsys):
    path = write_labelled_zoo(tmp_path / "zoo", models=4, rollouts=False)
    evil = "\x1b]0;owned\x07\x1b[2J\u202e"
    reseal(path, lambda m: m.update(recipe={"title": evil}))
    assert zoo_builder.cli.main(["info", str(path)]) == 0
    assert zoo_builder.cli.main(["info", str(path), "--json"]) == 0
    (path / "shards" / evil).write_text("")
    assert zoo_builder.cli.main(["verify", str(path)]) == 1
    reseal(path, lambda m: m["shards"][0]["family"].update({"class": evil}))
    assert zoo_builder.cli.main(["info", str(path)]) == 2
    assert probes.cli.main(["run", "--zoo", str(path), "--out", str(tmp_path / "out")]) == 2
    assert call("embed", "--checkpoint", path / evil, "--zoo", path, "--out", "e") == 2
    printed = capsys.readouterr()
    assert "\\x1b]0;owned" in printed.out
    assert "\\x1b]0;owned" in printed.err
    assert not set("\x1b\x07\u202e") & set(printed.out + printed.err)
    assert printable("a\tb\nc é 中") == "a\tb\nc é 中"


# Code.


class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_a_pickle_in_the_place_of_any_file_is_refused_and_not_run(zoo, tmp_path, capsys):
    torch.save(Evil(tmp_path / "ran"), tmp_path / "evil.pt")
    evil = (tmp_path / "evil.pt").read_bytes()
    for name in ("params.pt", "shards/00000/params.pt", "shards/00000/__init__.py"):
        (zoo / name).write_bytes(evil)
    for name in ("params.safetensors", "rollouts.safetensors", "table.parquet"):
        (zoo / "shards/00000" / name).write_bytes(evil)
    (zoo / "models.parquet").write_bytes(evil)
    reseal(zoo, lambda m: m["files"]["models.parquet"].update(bytes=len(evil)))
    opened = open_zoo(zoo)
    for read in (
        lambda: opened.table,
        lambda: opened.stack([0]),
        lambda: opened.rollouts([0]),
        lambda: opened.shard_table(0),
        lambda: list(opened.stacks()),
    ):
        with pytest.raises(ValueError, match="cannot be read"):
            read()
    assert {fault.path for fault in verify(zoo)} >= {"shards/00000/params.pt", "shards/00000/__init__.py"}
    for command in (["info", str(zoo)], ["label", str(zoo), "--labels", "Performance"]):
        assert zoo_builder.cli.main(command) == 2
    assert probes.cli.main(["run", "--zoo", str(zoo), "--embeddings", str(tmp_path / "evil.pt"), "--out", "x"]) == 2
    assert call("embed", "--checkpoint", tmp_path / "evil.pt", "--zoo", zoo, "--out", "e") == 2
    assert "Traceback" not in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A config and a checkpoint that are as they should be."""
    folder = tmp_path_factory.mktemp("trained")
    zoo = write_labelled_zoo(folder / "zoo", models=10, rollouts=False)
    (folder / "config.yaml").write_text(yaml.safe_dump({**CONFIG, "data": {"zoo": str(zoo), "batch_size": 16}}))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert call("fit", "--config", "config.yaml") == 0
    return folder


def run_marker(marker):
    return {"class_path": "os.mkdir", "init_args": {"path": str(marker)}}


CHECKPOINTS = [
    lambda h, m: h.update(encoder=run_marker(m)),
    lambda h, m: h.update(objective=run_marker(m)),
    lambda h, m: h["encoder"]["init_args"].update(embedding_dim=run_marker(m)),
    lambda h, m: h["objective"]["init_args"].update(targets=[run_marker(m)]),
    lambda h, m: h.update({"_class_path": "os.mkdir", "path": str(m)}),
    lambda h, m: h.update({"_instantiator": "os.mkdir", "path": str(m)}),
    lambda h, m: h.update(encoder={"class_path": "weightspace.quickstart.os.mkdir", "init_args": {"path": str(m)}}),
    lambda h, m: h.update(encoder={"class_path": "torch.nn.modules.os.mkdir", "init_args": {"path": str(m)}}),
    lambda h, m: h.update(
        encoder={"class_path": "weightspace.store.durable.write_durably", "init_args": {"path": str(m), "data": "x"}}
    ),
]


@pytest.mark.parametrize("change", CHECKPOINTS)
def test_nothing_that_a_checkpoint_names_is_run(trained, tmp_path, monkeypatch, capsys, change):
    monkeypatch.chdir(tmp_path)
    content = torch.load(trained / "runs/version_0/checkpoints/best.ckpt", weights_only=True)
    change(content["hyper_parameters"], tmp_path / "ran")
    torch.save(content, "evil.ckpt")
    assert call("embed", "--checkpoint", "evil.ckpt", "--zoo", trained / "zoo", "--out", "e") == 2
    # A key that `fit` does not know may be left aside; what counts is that it is not run.
    assert call("predict", "--config", trained / "config.yaml", "--ckpt_path", "evil.ckpt") in (0, 2)
    assert "Traceback" not in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()


OPTIONS = [
    ["--trainer.callbacks", "[{class_path: LambdaCallback, init_args: {on_fit_start: foreign.run}}]"],
    ["--trainer.callbacks", "[{class_path: LambdaCallback, init_args: {on_fit_start: os.getcwd}}]"],
    ["--trainer.callbacks", "[{class_path: lightning.pytorch.callbacks.lambda_function.Callback.foreign}]"],
    ["--trainer.strategy", "foreign.Thing"],
    ["--data.augment", "[{class_path: foreign.Thing}]"],
    ["--config", "evil.yaml"],
    ["--print_config", "--model.encoder", "foreign.Thing"],
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: options[-1])
def test_no_option_imports_or_runs_what_the_user_did_not_allow(trained, tmp_path, monkeypatch, capsys, options):
    monkeypatch.chdir(tmp_path)
    marker = f"from pathlib import Path\nPath({str(tmp_path / 'imported')!r}).touch()\n"
    (tmp_path / "foreign.py").write_text(marker + "def run(*a): pass\nclass Thing: pass\n")
    (tmp_path / "evil.yaml").write_text("seed_everything: !!python/object/apply:foreign.run []")
    monkeypatch.syspath_prepend(tmp_path)
    assert call("fit", "--config", trained / "config.yaml", *options) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert not (tmp_path / "imported").exists()


@pytest.mark.parametrize(
    "text", ["!!python/object/apply:os.mkdir [{}]", "families: !!python/name:os.system", "&a [*a, *a"]
)
def test_a_recipe_is_plain_yaml(tmp_path, capsys, text):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text.format(tmp_path / "ran"))
    assert zoo_builder.cli.main(["build", "--config", str(recipe), "--out", str(tmp_path / "zoo")]) == 2
    assert "is not YAML" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()


MODULES = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "tarfile", "zipfile"}
CALLS = re.compile(r"eval|exec|__import__|os\.(system|popen)|.*\.(read_pickle|unsafe_load|full_load|unpack_archive)")


def test_no_code_of_ours_can_unpickle_or_evaluate():
    for path in (path for room in ("weightspace", "zoo_builder", "probes") for path in (ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not MODULES & {name.partition(".")[0] for name in names}, path
            if isinstance(node, ast.Call):
                refuse_unsafe(path, ast.unparse(node.func), node)


def refuse_unsafe(path, called, node):
    given = {word.arg: ast.unparse(word.value) for word in node.keywords}
    assert not CALLS.fullmatch(called), (path, called)
    assert {given.get("allow_pickle", "False"), given.get("shell", "False")} == {"False"}, path
    if called == "torch.load" or called.endswith(".load_from_checkpoint"):
        assert given["weights_only"] == "True", path
    if called == "yaml.load":
        assert ast.unparse(node.args[1]) == "Loader", path
        assert "class Loader(yaml.SafeLoader)" in path.read_text(), path
