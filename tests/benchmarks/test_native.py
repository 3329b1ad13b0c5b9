"""Targets of native training beside its rivals: `pytest -m benchmark -n 0 -s tests/benchmarks/test_native.py`.

They hold on a machine that does nothing else; with other work beside them they mean nothing.
"""

import importlib.util
import statistics

import pytest

from zoo_builder.bench.case import cases
from zoo_builder.bench.run import JAX, bench, text

pytestmark = pytest.mark.benchmark
TO_LOOP = {
    "LSTM": {16: 7, 32: 4, 64: 2.2},
    "GRU": {16: 30, 32: 17, 64: 8},
    "Elman": {16: 25, 32: 17, 64: 9},
    "CPRNN": {16: 30, 32: 20, 64: 12},
}
"""How many times as fast as a loop over torch.nn (over the cell in Python for CPRNN), by hidden units."""
OF_PEAK = {32: 0.50, 64: 0.60}
TO_JAX = {"jax_vmap_scan": 8, "jax_map_scan": 3.5}
"""How many times as fast as JAX, at 32 hidden units."""
TO_GRU = 1.3
"""Largest cost of an operation, those element by element counted, in parts of its cost for a GRU of as many units."""
SIZES = {"hidden": [32], "models": [64], "steps": [50]}


def measured(names, methods, *, threads=1, clock=None, repeats=7, **sizes):
    fields = {"rank": 16} if "CPRNN" in names else {}
    own = cases(names, **{**SIZES, **sizes}, fields=fields)
    found = bench(own, methods, threads=threads, clock=clock, repeats=repeats)
    print("\n" + text(found))
    return found["rows"]


@pytest.fixture(scope="module", params=sorted(TO_LOOP))
def beside_loop(request):
    """Rows of native training of one family, by hidden units, beside the loop."""
    rows = measured([request.param], ["native", "loop"], hidden=[16, 32, 64])
    return request.param, {row["hidden"]: row for row in rows if row["method"] == "native"}


def test_native_training_is_faster_than_the_loop(beside_loop):
    name, rows = beside_loop
    found = {hidden: rows[hidden]["ratio_to_loop"] for hidden in TO_LOOP[name]}
    assert {hidden: ratio for hidden, ratio in found.items() if ratio < TO_LOOP[name][hidden]} == {}


def test_native_training_does_half_of_what_the_core_can(beside_loop):
    _, rows = beside_loop
    found = {hidden: rows[hidden]["share_of_peak"] for hidden in OF_PEAK}
    assert {hidden: share for hidden, share in found.items() if share < OF_PEAK[hidden]} == {}


@pytest.mark.parametrize("hidden", [32, 64])
@pytest.mark.parametrize("name", ["Leaky", "LIF", "LRU"])
def test_an_operation_costs_little_more_than_that_of_a_gru(name, hidden):
    # In turns, because what the machine gives changes from one minute to the next.
    ratios = []
    for _ in range(7):
        rows = {row["family"]: row for row in measured(["GRU", name], ["native"], hidden=[hidden], repeats=2)}
        ratios.append(rows["GRU"]["share_with_elements"] / rows[name]["share_with_elements"])
    print("cost over that of a GRU:", ratios)
    assert statistics.median(ratios) <= TO_GRU


@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="jax is not installed")
@pytest.mark.parametrize("name", sorted(TO_LOOP))
def test_native_training_is_faster_than_jax(name):
    rows = {row["method"]: row for row in measured([name], ["native", *JAX])}
    native = rows["native"]["share_of_peak"]
    found = {method: native / rows[method]["share_of_peak"] for method in TO_JAX}
    assert {method: ratio for method, ratio in found.items() if ratio < TO_JAX[method]} == {}


def test_two_threads_do_nearly_twice_as_much():
    # In turns, because what the machine gives changes from one minute to the next.
    ratios = []
    for _ in range(5):
        (one,) = measured(["LSTM"], ["native"], threads=1, clock="wall", repeats=3)
        (two,) = measured(["LSTM"], ["native"], threads=2, clock="wall", repeats=3)
        ratios.append(one["ms_per_model_step"] / two["ms_per_model_step"])
    print("one thread over two:", ratios)
    assert statistics.median(ratios) >= 1.85


def test_time_and_memory_do_not_grow_with_the_number_of_models():
    rows = {row["models"]: row for row in measured(["LSTM"], ["native"], models=[1, 16, 64, 256, 1024, 4096])}
    # In parts of the peak of the same minute.
    shares = [row["share_of_peak"] for models, row in rows.items() if models >= 16]
    assert max(shares) / min(shares) <= 1.15
    # One stack at a time: what a fourth of a stack takes more or less is far below this.
    assert rows[4096]["peak_memory_mb"] <= rows[64]["peak_memory_mb"] + 16


def test_time_grows_with_the_length_of_sequences():
    rows = {row["steps"]: row for row in measured(["LSTM"], ["native"], steps=[25, 50, 100, 200])}
    # Twice the steps take at most twice the time, and what does not depend on them is less than half at 25.
    for steps in (25, 50, 100):
        assert 1.5 <= rows[2 * steps]["ms_per_model_step"] / rows[steps]["ms_per_model_step"] <= 2.3


def test_the_share_of_peak_grows_with_the_number_of_units():
    rows = {row["hidden"]: row for row in measured(["LSTM"], ["native"], hidden=[16, 32, 64, 128])}
    assert rows[16]["share_of_peak"] < rows[32]["share_of_peak"] < rows[64]["share_of_peak"]
