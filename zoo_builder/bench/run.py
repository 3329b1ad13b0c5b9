"""Runs of a benchmark: methods measured side by side, round by round, and their table."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import logging
import os
import statistics
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from tqdm import tqdm

from weightspace import child
from weightspace.components import plugins
from weightspace.components.discovery import refuse_unknown_name
from zoo_builder.bench.case import Case, flops
from zoo_builder.bench.elements import operations
from zoo_builder.bench.machine import machine, peak

logger = logging.getLogger(__name__)

METHODS = {
    "native": ("zoo_builder.bench.methods", "Native"),
    "stacked": ("zoo_builder.bench.methods", "Stacked"),
    "loop": ("zoo_builder.bench.methods", "Loop"),
    "vmap": ("zoo_builder.bench.methods", "Vmap"),
    "jax_vmap_scan": ("zoo_builder.bench.jax_methods", "VmapScan"),
    "jax_map_scan": ("zoo_builder.bench.jax_methods", "MapScan"),
}
"""Module and class of each method."""
JAX = ("jax_vmap_scan", "jax_map_scan")
TORCH = tuple(name for name in METHODS if name not in JAX)
Clock = Literal["cpu", "wall"]
QUIET = 0.5
"""Load average above which figures are not to be trusted."""
AGREEMENT = 1e-4
"""Greatest difference of the first loss between two methods, over the loss."""
Times = list[dict[str, float]]


def bench(
    cases: Sequence[Case],
    methods: Sequence[str] = TORCH,
    *,
    threads: int = 1,
    repeats: int = 7,
    clock: Clock | None = None,
) -> dict[str, Any]:
    """`rows`, one per case and method, `machine`, `settings`, and `missing`: what could not be run, with the reason.

    In every round each method does its updates, one method after another, and the peak is measured; times are medians
    over rounds, ratios medians of those within a round, so a slow minute does not fall on one method alone. CPU time
    is counted with one thread, wall time with more, unless `clock` says. `share_of_peak` is in parts of what `threads`
    cores could do, of matrices alone; `share_with_elements` counts all other operations, too. `peak_memory_mb` is what
    updates need above what lies there between them (params, moments, inputs; for `loop`, which keeps them, gradients)
    and above the gradients of the models of one stack.
    """
    if not methods:
        raise ValueError(f"`methods` is empty; name at least one of {list(METHODS)}.")
    for method in methods:
        refuse_unknown_name("method", method, METHODS)
    for name, number in (("threads", threads), ("repeats", repeats)):
        if number < 1:
            raise ValueError(f"`{name}` (={number}) must be at least 1.")
    if set(methods) & set(JAX) and importlib.util.find_spec("jax") is None:
        raise ValueError("JAX is not installed, which its rivals need: `pip install jax`, or leave out `--jax`.")
    clock = clock or ("cpu" if threads == 1 else "wall")
    here = machine() | {"threads": threads, "clock": clock}
    if here["load_average"] > QUIET:
        logger.warning("The load average is %.2f: other work spoils these figures.", here["load_average"])
    rows: list[dict[str, Any]] = []
    missing: list[dict[str, str]] = []
    peaks: list[float] = []
    with _processes(methods, threads) as processes, tqdm(total=len(cases) * (repeats + 1), unit="round") as bar:
        for case in cases:
            bar.set_description(case.title)
            prepared = _prepared(processes, case, missing)
            bar.update()
            rounds, round_peaks = _rounds(processes, list(prepared), repeats, clock, bar)
            peaks += round_peaks
            rows += _rows(case, prepared, rounds, [threads * one for one in round_peaks], clock)
    here["peak_gflops"] = statistics.median(peaks) / 1e9 if peaks else None
    return {"rows": rows, "machine": here, "settings": {"repeats": repeats}, "missing": missing}


class _Process:
    """A process that trains in one way, see `zoo_builder.bench.worker`."""

    def __init__(self, method: str, threads: int) -> None:
        self.method = method
        self.process = subprocess.Popen(
            child.command("zoo_builder.bench.worker"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env=_environment(method, threads),
        )
        if method in JAX and hasattr(os, "sched_setaffinity"):
            # XLA takes as many threads as there are cores to run on.
            cores = sorted(os.sched_getaffinity(0))[:threads]
            os.sched_setaffinity(self.process.pid, cores)
        self.tell({"method": method, "threads": threads, "allow_import": list(plugins.allowed())})

    def tell(self, order: Mapping[str, Any]) -> None:
        assert self.process.stdin is not None
        # A process that has died is noticed by its silence.
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(order) + "\n")

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            status = self.process.wait()
            raise ValueError(f"The process of `{self.method}` ended with status {status}; see above.")
        message: dict[str, Any] = json.loads(line)
        if "error" in message:
            raise ValueError(f"`{self.method}` failed: {message['error']}")
        return message

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def _environment(method: str, threads: int) -> dict[str, str]:
    variables = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    if method in JAX:
        variables["JAX_PLATFORMS"] = "cpu"
        if threads == 1:
            variables["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    # Builds ask MKL for the same bits everywhere, which may cost speed; the other methods do not.
    return {name: value for name, value in os.environ.items() if name != "MKL_CBWR"} | variables


@contextlib.contextmanager
def _processes(methods: Sequence[str], threads: int) -> Iterator[list[_Process]]:
    processes: list[_Process] = []
    try:
        processes += [_Process(method, threads) for method in methods]
        for process in processes:
            process.answer()
        yield processes
    finally:
        for process in processes:
            process.close()


def _prepared(processes: Sequence[_Process], case: Case, missing: list[dict[str, str]]) -> dict[str, dict[str, Any]]:
    """Answer of each method that can train the case: its first loss and peak memory."""
    prepared = {}
    for process in processes:
        process.tell({"case": dataclasses.asdict(case)})
        answer = process.answer()
        if "why_not" not in answer:
            prepared[process.method] = answer
            continue
        entry = {"method": process.method, "family": case.family, "reason": answer["why_not"]}
        if entry not in missing:
            logger.warning("%s has no row `%s`: %s.", case.family, process.method, answer["why_not"])
            missing.append(entry)
    losses = {method: answer["loss"] for method, answer in prepared.items()}
    first = next(iter(losses.values()), 0.0)
    # Negated, so that a NaN agrees with no loss.
    if not all(abs(loss - first) <= AGREEMENT * abs(first) for loss in losses.values()):
        raise ValueError(f"The methods do not compute the same on {case.title}: their first losses are {losses}.")
    return prepared


def _rounds(
    processes: Sequence[_Process], methods: Sequence[str], repeats: int, clock: Clock, bar: Any
) -> tuple[dict[str, Times], list[float]]:
    """Seconds of one update by method and round, and the peak of one core (operations a second) by round."""
    times: dict[str, Times] = {method: [] for method in methods}
    peaks = []
    for _ in range(repeats):
        speed = peak(time.thread_time if clock == "cpu" else time.perf_counter)
        peaks += [] if speed is None else [speed]
        for process in processes:
            if process.method in times:
                process.tell({"time": True})
                times[process.method].append(process.answer())
        bar.update()
    return times, peaks


def _rows(
    case: Case, prepared: Mapping[str, dict[str, Any]], rounds: Mapping[str, Times], peaks: list[float], clock: Clock
) -> list[dict[str, Any]]:
    of_matrices, of_all = flops(case), operations(case)
    rows = []
    for method, answer in prepared.items():
        seconds = [times[clock] for times in rounds[method]]
        loops = [times[clock] for times in rounds.get("loop", [])]
        ratios = [loop / second for loop, second in zip(loops, seconds, strict=False)]
        shares = [of_matrices * case.models / second / most for second, most in zip(seconds, peaks, strict=False)]
        share = statistics.median(shares) if shares else None
        memory = answer["peak_memory"]
        rows.append(
            {
                "method": method,
                "family": case.family,
                "hidden": case.fields["hidden_size"],
                "models": case.models,
                "batch": case.batch,
                "steps": case.steps,
                "ms_per_model_step": 1000 * statistics.median(seconds) / case.models,
                "ratio_to_loop": statistics.median(ratios) if ratios else None,
                "share_of_peak": share,
                "share_with_elements": None if share is None or of_all is None else share * of_all / of_matrices,
                "peak_memory_mb": None if memory is None else memory / 1e6,
            }
        )
    return rows


def text(result: Mapping[str, Any]) -> str:
    """Result of `bench` as a table."""
    here = result["machine"]
    top = here["peak_gflops"]
    limit = "peak unknown, for want of a C compiler" if top is None else f"peak {top:.0f} GFLOP/s a core"
    lines = [
        f"{here['processor']}, {here['cores']} cores, {' '.join(here['features'])}; torch {here['versions']['torch']}",
        f"{here['threads']} thread(s), {here['clock']} time, {limit}; load average {here['load_average']} at the start",
        "",
        f"{'family':10} {'hidden':>6} {'models':>6} {'batch':>5} {'steps':>5}  {'method':14}"
        f"{'ms/model-step':>14} {'x loop':>8} {'of peak':>8} {'with el.':>8} {'memory MB':>10}",
    ]
    for row in result["rows"]:
        ratio, memory = row["ratio_to_loop"], row["peak_memory_mb"]
        shares = [_percent(row[name]) for name in ("share_of_peak", "share_with_elements")]
        lines.append(
            f"{row['family']:10} {row['hidden']:6} {row['models']:6} {row['batch']:5} {row['steps']:5}  "
            f"{row['method']:14}{row['ms_per_model_step']:14.4f} {'-' if ratio is None else f'{ratio:.2f}':>8} "
            f"{shares[0]:>8} {shares[1]:>8} {'-' if memory is None else f'{memory:.1f}':>10}"
        )
    lines += [f"{entry['family']}: no `{entry['method']}`, as {entry['reason']}" for entry in result["missing"]]
    return "\n".join(lines)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
