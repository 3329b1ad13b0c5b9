"""The command `zoo-builder bench`: that all methods do the same work, what is counted, and what is printed."""

import importlib
import json
import math

import pytest
import torch

from weightspace import families
from weightspace.rollout.native.engine.records import OPCODES
from zoo_builder.bench import run
from zoo_builder.bench.case import Case, cases, draw, flops, parse_fields
from zoo_builder.bench.elements import MAPS, operations
from zoo_builder.bench.machine import machine, peak
from zoo_builder.bench.methods import Loop, Native, Stacked, Vmap
from zoo_builder.cli import main

SMALL = {"hidden": [6], "models": [3], "steps": [7], "batch": 4, "sizes": (3, 5)}
MOVED = 1e-4
"""Tolerance after updates of 1e-3 each."""


def small(name: str, **fields: int) -> Case:
    (case,) = cases([name], **{**SMALL, "fields": fields})
    return case


def after(kind, case: Case, updates: int = 2) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    method = kind(case, draw(case))
    losses = torch.stack([method.update() for _ in range(updates)])
    return losses, method.params()


@pytest.mark.parametrize("name", sorted(families.available()))
def test_all_methods_make_the_same_updates(name):
    case = small(name)
    losses, params = after(Stacked, case)
    for kind in (Vmap, Native):
        assert kind.why_not(case) is None
        own_losses, own_params = after(kind, case)
        assert torch.allclose(own_losses, losses, rtol=1e-5)
        assert all(torch.allclose(own_params[key], params[key], atol=MOVED) for key in params)
    start = draw(case).params
    assert all((params[key] - start[key]).abs().max() > 1e-3 for key in params)


def test_the_loop_over_cells_makes_the_same_updates():
    losses, params = after(Stacked, small("CPRNN"))
    own_losses, own_params = after(Loop, small("CPRNN"))
    assert torch.allclose(own_losses, losses, rtol=1e-5)
    assert all(torch.allclose(own_params[key], params[key], atol=MOVED) for key in params)


@pytest.mark.parametrize("name", ["Elman", "GRU", "LSTM"])
def test_the_loop_over_modules_makes_the_same_first_update(name):
    # Later ones differ: torch.nn has two biases where the family has their sum.
    losses, params = after(Stacked, small(name), 1)
    own_losses, own_params = after(Loop, small(name), 1)
    assert torch.allclose(own_losses, losses, rtol=1e-5)
    for own, theirs in (
        ("weight_hh.0", "weight_hh_l0"),
        ("weight_ih.0", "weight_ih_l0"),
        ("weight_ho", "readout.weight"),
    ):
        assert torch.allclose(params[own].reshape(own_params[theirs].shape), own_params[theirs], atol=MOVED)


@pytest.mark.parametrize("name", ["CPRNN", "Elman", "GRU", "LSTM"])
def test_jax_makes_the_same_updates(name):
    pytest.importorskip("jax", reason="jax is not installed")
    jax_methods = importlib.import_module("zoo_builder.bench.jax_methods")
    losses, params = after(Stacked, small(name))
    for kind in (jax_methods.VmapScan, jax_methods.MapScan):
        assert kind.why_not(small("LRU")) is not None
        own_losses, own_params = after(kind, small(name))
        assert torch.allclose(own_losses, losses, rtol=1e-5)
        assert all(torch.allclose(own_params[key], params[key], atol=MOVED) for key in params)


def test_many_stacks_are_as_one(monkeypatch):
    losses, params = after(Stacked, small("GRU"))
    monkeypatch.setattr("zoo_builder.bench.methods.STACK", 2)
    own_losses, own_params = after(Stacked, small("GRU"))
    assert torch.allclose(own_losses, losses, rtol=1e-5)
    assert all(torch.allclose(own_params[key], params[key], atol=MOVED) for key in params)


def test_operations_are_those_of_the_matrices():
    h, i, o, sequences = 6, 3, 5, 7 * 4
    assert flops(small("LSTM")) == sequences * (4 * h * i * 4 + 4 * h * h * 6 + o * h * 6)
    assert flops(small("Elman", num_layers=2)) == sequences * (h * i * 4 + 3 * h * h * 6 + o * h * 6)
    r = 2
    expected = r * h * 6 + r * i * 4 + h * r * 6 + h * i * 4 + h * h * 6 + o * h * 6
    assert flops(small("CPRNN", rank=r)) == sequences * expected
    # Nothing that is trained lies behind a reservoir's state.
    assert flops(small("EchoState")) == sequences * (h * i * 2 + h * h * 2 + o * h * 4)


def test_operations_by_element_are_counted_alike_for_every_family():
    h, o, sequences = 6, 5, 7 * 4
    loss = 18 * o
    # Each element: bias, tanh, and back the gradient of tanh and of the bias; of an output its bias, and the bias's.
    elman, weights = small("Elman"), h * 3 + h * h + h + o * h + o
    per_lane = h * (1 + 23 + 3 + 1) + o * (1 + 1) + loss
    # The gradient that the read-out passes on is added to the one that comes from the next step.
    assert operations(elman) == flops(elman) + sequences * (per_lane + h) + 17 * weights
    # Two states, each a product with two scaled addends; back two sums with two products each, and four for lambda.
    lru = small("LRU")
    weights = 3 * h + 2 * h * 3 + 2 * o * h + o
    forward = 2 * h * (2 + 2) + o
    back = o + 2 * h + 4 * 2 * h + 2 * h * (2 + 2)
    assert operations(lru) == flops(lru) + sequences * (forward + back + loss) + 17 * weights


def test_every_map_has_a_number_of_operations():
    others = {"product", "sum_into", "sum_product_into", "sum_crossed_into", "gather", "scatter", "load"}
    assert MAPS.keys() == set(OPCODES) - others


def test_the_peak_of_a_core_is_measured():
    assert peak() > 1e9
    # Packages of torch for CUDA leave out what __version__ has after the plus sign.
    assert machine()["versions"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]


@pytest.mark.parametrize("methods", [["native", "loop"], pytest.param([], marks=pytest.mark.slow)], ids=str)
def test_the_command_measures_every_method(methods, capsys):
    # Each is measured in a process of its own, which takes seconds to start.
    arguments = ["bench", "--family", "GRU", "--hidden", "4", "--models", "2", "--batch", "3", "--steps", "5"]
    arguments += ["--methods", *methods] if methods else []
    assert main([*arguments, "--repeats", "1", "--json"]) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert [row["method"] for row in found["rows"]] == (methods or ["native", "stacked", "loop", "vmap"])
    for row in found["rows"]:
        assert (row["family"], row["hidden"], row["models"], row["batch"], row["steps"]) == ("GRU", 4, 2, 3, 5)
        assert row["ms_per_model_step"] > 0
        assert row["ratio_to_loop"] > 0
        assert 0 < row["share_of_peak"] < row["share_with_elements"] < 1
        assert math.isfinite(row["peak_memory_mb"])
    assert [row["ratio_to_loop"] for row in found["rows"] if row["method"] == "loop"] == [1]
    assert found["missing"] == []
    assert (found["machine"]["threads"], found["machine"]["clock"]) == (1, "cpu")
    assert "native" in run.text(found)
    assert f"{found['machine']['peak_gflops']:.0f} GFLOP/s" in run.text(found)


class Told:
    """In place of a process."""

    def __init__(self, method: str, answer: dict[str, object]) -> None:
        self.method, self.told = method, answer

    def tell(self, order):
        assert order["case"]["models"] == 3

    def answer(self):
        return self.told


def test_methods_that_compute_something_else_are_refused():
    one, other = Told("native", {"loss": 1.6}), Told("loop", {"loss": 1.61})
    with pytest.raises(ValueError, match=r"do not compute the same on LSTM.*'native': 1.6, 'loop': 1.61"):
        run._prepared([one, other], small("LSTM"), [])
    with pytest.raises(ValueError, match="do not compute the same"):
        run._prepared([one, Told("loop", {"loss": math.nan})], small("LSTM"), [])


def test_what_cannot_be_run_is_told_once():
    missing = []
    processes = [Told("native", {"loss": 1.6}), Told("jax_map_scan", {"why_not": "of this"})]
    for _ in range(2):
        assert list(run._prepared(processes, small("LSTM"), missing)) == ["native"]
    assert missing == [{"method": "jax_map_scan", "family": "LSTM", "reason": "of this"}]


def test_rows_are_medians_and_ratios_are_taken_within_rounds():
    case, told = small("LSTM"), {"loss": 1.6, "peak_memory": 3e6}
    times = {"native": [{"cpu": t} for t in (1.0, 2.0, 9.0)], "loop": [{"cpu": t} for t in (4.0, 6.0, 90.0)]}
    native, loop = run._rows(case, {"native": told, "loop": told}, times, [1e6, 1e6, 1e6], "cpu")
    assert native["ms_per_model_step"] == pytest.approx(1000 * 2 / 3)
    assert (native["ratio_to_loop"], loop["ratio_to_loop"]) == (4, 1)
    assert native["share_of_peak"] == pytest.approx(3 * flops(case) / 2 / 1e6)
    assert native["share_with_elements"] == pytest.approx(3 * operations(case) / 2 / 1e6)
    assert native["peak_memory_mb"] == 3
    (alone,) = run._rows(case, {"native": told | {"peak_memory": None}}, {"native": times["native"]}, [], "cpu")
    assert (alone["ratio_to_loop"], alone["share_of_peak"], alone["peak_memory_mb"]) == (None, None, None)


def test_a_case_takes_from_the_fields_what_its_family_has():
    made = cases(["LSTM", "CPRNN"], **{**SMALL, "fields": parse_fields(["rank=7", "num_layers=2"])})
    assert [(one.family, one.fields.get("rank"), one.fields.get("num_layers")) for one in made] == [
        ("LSTM", None, 2),
        ("CPRNN", 7, None),
    ]


BAD_INPUT = [
    (["--family", "LTSM"], "No family is called 'LTSM'"),
    (["--family", "CPRNN", "--fields", "rank={"], "`fields` rank={ is not YAML"),
    (["--hidden", "0"], "`hidden_size` (=0) of LSTM must be at least 1"),
    (["--models", "0"], "`models` (=0) must be at least 1"),
    (["--threads", "0"], "`threads` (=0) must be at least 1"),
    (["--repeats", "0"], "`repeats` (=0) must be at least 1"),
    (["--methods", "nativ"], "No method is called 'nativ'; there are ['native', "),
    (["--fields", "rank=3"], "None of ['LSTM'] has the field 'rank'"),
    (["--fields", "rank"], "`fields` has 'rank'; give NAME=VALUE"),
    (["--jax"], "JAX is not installed, which its rivals need: `pip install jax`"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_INPUT)
def test_bad_input_is_refused_before_anything_is_measured(arguments, message, capsys, monkeypatch):
    monkeypatch.setattr("zoo_builder.bench.run.importlib.util.find_spec", lambda name: None)
    assert main(["bench", *arguments]) == 2
    assert message in capsys.readouterr().err
