"""Zoos and embeddings too small or too odd to be probed: numbers with a meaning, null with a reason, or one line."""

import json
import re
from types import SimpleNamespace

import pyarrow as pa
import pytest
import safetensors.torch
import torch

from probes import benchmark, bootstrap, fitting, scoring
from probes.boosting import Fit
from probes.cli import main
from probes.probe import Design
from tests.weightspace import zoos
from weightspace.store import open_zoo

BOOSTING = Design.boosting


def _by_ridge(design, y, values):
    """A task that ridge regression has done already."""
    fit = design.ridge(y[:, None], values)
    return SimpleNamespace(x=design.x, fit=lambda: Fit(fit.predicted[:, 0], fit.error[0]))


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """Fewer resamples, and no boosted trees, which take seconds and are tried on two models on their own below."""
    monkeypatch.setattr(Design, "boosting", lambda self, y, values, y_val=None: _by_ridge(self, y, values))
    monkeypatch.setattr(scoring, "NUM_RESAMPLES", 40)
    monkeypatch.setattr(fitting, "NUM_PERMUTATIONS", 4)
    monkeypatch.setattr(bootstrap, "NUM_KENDALL_RESAMPLES", 20)


def write(path, monkeypatch, pattern=("train",) * 6 + ("test",) * 4, models=20, families=zoos.FAMILIES[:1], **columns):
    """A zoo whose models are in the splits of a pattern, with columns made from their earlier values and splits."""
    made = zoos._table

    def changed(*arguments):
        table = made(*arguments)
        splits = [pattern[int(name.split("-")[2]) % len(pattern)] for name in table["model_id"].to_pylist()]
        fixed = {"split": splits, "status": ["ok"] * table.num_rows}
        for name, make in {**fixed, **columns}.items():
            values = make(table[name].to_pylist(), splits) if callable(make) else make
            table = table.set_column(table.column_names.index(name), name, pa.array(values))
        return table

    monkeypatch.setattr(zoos, "_table", changed)
    return zoos.write_zoo(path, families, models=models, steps=(100,), rollouts=False)


def ask(zoo, out, *options):
    assert main(["run", "--zoo", str(zoo), "--out", str(out), *options]) == 0
    page = (out / "report.html").read_text()
    assert not re.search(r">\s*-?(nan|inf|None)\b", re.sub("base64,[^\"]*", "", page))
    return json.loads((out / "probes.json").read_text(), parse_constant=lambda name: pytest.fail(name))["rows"]


def same_on(split):
    return lambda values, splits: [0.5 if split in (own, "all") else value for value, own in
                                   zip(values, splits, strict=True)]  # fmt: skip


UNDEFINED = [
    ({"score": same_on("all")}, {"r2_within_cell", "r2", "kendall_tau"}, "the label does not vary"),
    ({"score": same_on("test")}, {"r2", "kendall_tau"}, "the label does not vary on the test rows"),
    ({"score": same_on("train")}, {"kendall_tau"}, "the prediction is the same on all test rows"),
    ({"hidden_size": list(range(20))}, {"r2_within_cell"}, "training has seen the cell of no test row"),
    ({"score": lambda values, splits: [1e-310 * i for i in range(20)]}, {"r2", "r2_within_cell"}, "does not vary"),
]


@pytest.mark.parametrize(("columns", "metrics", "reason"), UNDEFINED, ids=[reason for _, _, reason in UNDEFINED])
def test_a_statistic_that_is_not_defined_is_null_with_its_reason(columns, metrics, reason, tmp_path, monkeypatch):
    zoo = write(tmp_path / "zoo", monkeypatch, **columns)
    rows = ask(zoo, tmp_path / "p", "--targets", "score")
    undefined = [row for row in rows if row["value"] is None]
    assert {row["metric"] for row in undefined} >= metrics
    assert all(reason in row["reason"] for row in undefined if row["metric"] in metrics)
    assert all((row["low"] is None) == ("reason" in row) for row in rows)
    assert reason in (tmp_path / "p" / "report.html").read_text()


@pytest.mark.parametrize("pattern", [("train",) * 8 + ("test",) * 2, ("train",) * 2 + ("test",) * 2], ids=len)
def test_two_test_rows_are_enough_and_two_training_rows_too(pattern, tmp_path, monkeypatch):
    if len(pattern) == 4:
        monkeypatch.setattr(Design, "boosting", BOOSTING)
    zoo = write(tmp_path / "zoo", monkeypatch, pattern, models=len(pattern))
    rows = ask(zoo, tmp_path / "p", "--targets", "score")
    assert {row["num_test"] for row in rows} == {2}
    assert all(row["value"] is not None or row["reason"] for row in rows)


def test_two_test_rows_whose_labels_are_tied_have_no_order(tmp_path, monkeypatch):
    zoo = write(tmp_path / "zoo", monkeypatch, ("train",) * 8 + ("test",) * 2, models=10, score=same_on("test"))
    rows = ask(zoo, tmp_path / "p", "--targets", "score")
    assert {row["value"] for row in rows if row["metric"] == "kendall_tau"} == {None}


def ones(value, kind=None):
    return lambda values, splits: pa.array([value] * len(values), kind)


NOTHING = [
    ({"pattern": ("train",) * 9 + ("test",), "models": 10}, "score on in_distribution: 1 test model(s) with a usable"),
    ({"pattern": ("train", *("test",) * 9), "models": 10}, "score on in_distribution: 1 train model(s)"),
    ({"pattern": ("val",)}, "0 train model(s)"),
    ({"models": 1}, "1 train model(s)"),
    ({"score": ones(float("nan"))}, "0 train model(s)"),
    ({"score": ones(float("inf"))}, "0 train model(s)"),
    ({"score": ones(1.7e308)}, "0 train model(s)"),
    ({"score": ones(None, pa.float64())}, "the zoo has no label with a value, and neither family nor task varies."),
    ({"status": ones("diverged")}, "0 train model(s)"),
    ({"score": ones("good")}, "The column 'score' of the zoo's table holds string, expected numbers."),
]


@pytest.mark.parametrize(("changes", "message"), NOTHING, ids=[str(n) for n in range(len(NOTHING))])
def test_a_zoo_that_cannot_be_probed_says_why_in_one_line(changes, message, tmp_path, monkeypatch, capsys):
    zoo = write(tmp_path / "zoo", monkeypatch, **changes)
    assert main(["run", "--zoo", str(zoo), "--out", str(tmp_path / "p")]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("probes: ")
    assert message in last


@pytest.mark.parametrize(
    "columns",
    [
        {"task_config": ones('{"a": 1' + "0" * 400 + "}")},
        {"num_parameters": ones(0)},
        {"task": ones(None, pa.string())},
        {"score": lambda values, splits: [2**62 + i * 10**15 for i in range(len(values))]},
        {"score": lambda values, splits: [i % 2 == 0 for i in range(len(values))]},
    ],
    ids=["large", "no parameters", "no task", "large integers", "truths"],
)
def test_odd_records_and_labels_are_probed_all_the_same(columns, tmp_path, monkeypatch):
    zoo = write(tmp_path / "zoo", monkeypatch, **columns)
    assert all(row["value"] is not None for row in ask(zoo, tmp_path / "p", "--targets", "score"))


RECORD = {"encoder": "E", "objective": "O", "learned_with": "labels", "name": "e", "split": "in_distribution"}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        return write(tmp_path_factory.mktemp("strangers") / "zoo", patch, models=10)


STRANGERS = [
    ({"values": torch.ones(10, 3, dtype=torch.int64)}, "holds embeddings of dtype I64, expected one of ('F16', "),
    ({"values": torch.ones(10, 3, dtype=torch.complex64)}, "holds embeddings of dtype C64"),
    ({"values": torch.ones(10, 3).to(torch.float8_e4m3fn)}, "holds embeddings of dtype F8_E4M3"),
    ({"values": torch.ones(10)}, "holds embeddings (10,), but the zoo has 10 rows"),
    ({"values": torch.ones(())}, "holds embeddings (), but the zoo has 10 rows"),
    ({"values": torch.ones(10, 0)}, "holds embeddings (10, 0), but the zoo has 10 rows"),
    ({"values": torch.ones(11, 3)}, "holds embeddings (11, 3), but the zoo has 10 rows"),
    ({"values": torch.full((10, 3), torch.nan)}, "not finite in float32 in 10 row(s), the first being row 0"),
    ({"values": torch.full((10, 3), 1e300, dtype=torch.float64)}, "not finite in float32 in 10 row(s)"),
    ({"text": None}, "is not a file of `weightspace embed`: it lacks 'weightspace'."),
    ({"text": "[" * 99_999}, "is not a file of `weightspace embed`: "),
    ({"text": "{"}, "is not a file of `weightspace embed`: "),
    ({"text": "3"}, "is not a file of `weightspace embed`: "),
    ({"key": "embeddings"}, "is not a file of `weightspace embed`: "),
    ({"zoo": None}, "embeds the zoo None, but this zoo is"),
    ({"zoo": ["a" * 10_000]}, "embeds the zoo ['aaaaaaaaaa, but this zoo is"),
    ({"learned_with": ["x" * 10_000]}, "says learned_with "),
    ({"name": "n" * 10_000}, "says learned_with 'labels' and name 'nnn"),
    ({"name": "a\n\x1b[2J"}, "which are not understood"),
    ({"split": {}}, "is not a file of `weightspace embed`: "),
    ({"fold": 10**30, "split": "new_family"}, "but this zoo has no such fold"),
    ({"fold": "0"}, "is not a file of `weightspace embed`: "),
]


@pytest.mark.parametrize(("changes", "message"), STRANGERS, ids=[message[:50] for _, message in STRANGERS])
def test_embeddings_of_strangers_that_cannot_be_used_end_in_one_line(zoo, changes, message, tmp_path, capsys):
    changes = dict(changes)
    values, key = changes.pop("values", torch.ones(10, 3)), changes.pop("key", "embedding")
    text = changes.pop("text", json.dumps({**RECORD, "zoo": open_zoo(zoo).fingerprint, **changes}))
    path = tmp_path / "e.safetensors"
    path.write_bytes(safetensors.torch.save({key: values}, None if text is None else {"weightspace": text}))
    assert main(["run", "--zoo", str(zoo), "--embeddings", str(path), "--out", str(tmp_path / "p")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
    assert str(path) in line
    assert len(line) < 600
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_embeddings_of_any_float_are_read_and_constant_ones_know_nothing(zoo, dtype, tmp_path):
    path = tmp_path / "e.safetensors"
    text = json.dumps({**RECORD, "zoo": open_zoo(zoo).fingerprint})
    path.write_bytes(safetensors.torch.save({"embedding": torch.ones(10, 3, dtype=dtype)}, {"weightspace": text}))
    rows = ask(zoo, tmp_path / "p", "--embeddings", str(path), "--targets", "score", "--splits", "in_distribution")
    (tau,) = [row for row in rows if row["features"] == "embedding:e" and row["metric"] == "kendall_tau"]
    assert (tau["value"], tau["reason"]) == (None, "the prediction is the same on all test rows")
    differences = [row for row in rows if row["features"] == "embedding:e - statistics" and row["metric"] == "r2"]
    assert all(row["value"] is not None for row in differences)


def test_a_benchmark_that_could_probe_nothing_trains_nothing(tmp_path, monkeypatch):
    zoo = write(tmp_path / "zoo", monkeypatch, ("train",) * 7 + ("val",) * 2 + ("test",), models=10)
    with pytest.raises(ValueError, match=r"No target can be probed: score on in_distribution: 1 test model\(s\)"):
        benchmark.benchmark(zoo, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_budget_that_is_none_is_refused_before_training(zoo, tmp_path):
    for minutes in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"`cpu_minutes` \(=.*\) must be above 0"):
            benchmark.benchmark(zoo, tmp_path / "b", cpu_minutes=minutes)
    assert not (tmp_path / "b").exists()
