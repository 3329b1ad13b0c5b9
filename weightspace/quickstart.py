"""The whole pipeline in one call: build a zoo, learn embeddings with and without labels, probe them, report."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from weightspace import child
from weightspace.recipes import recipe

log = logging.getLogger(__name__)

EMBEDDINGS = {"supervised": "embeddings.safetensors", "state_geometry": "embeddings_no_labels.safetensors"}
SPLITS = ("in_distribution",)
"""Splits of the report: its encoders are trained for no other, and each more would take a minute of baselines alone."""
LOG, FINISHED = "fit.log", "finished"
CHECKPOINT = Path("checkpoints", "best.ckpt")
SMOKE_TEST = "This is a smoke test (--size tiny): every part runs, but the figures say nothing about the methods."
SECONDS_BETWEEN_REPORTS = 20


def quickstart(out: str | Path = "quickstart", size: Literal["tiny", "default"] = "default") -> dict[str, Any]:
    """Build, fit, embed, probe and report under `out`; a stage that is already there is not done again.

    Leaves `zoo/`, `run/supervised/`, `run/state_geometry/`, `embeddings.safetensors` (learned with labels),
    `embeddings_no_labels.safetensors` and `probes/`. Returns the paths by name, the rows of probes.json, and a notice,
    which is empty but for size tiny.
    """
    if size not in ("tiny", "default"):
        raise ValueError(f"`size` (={size!r}) must be 'tiny' or 'default'.")
    notice = SMOKE_TEST if size == "tiny" else ""
    if notice:
        log.info(notice)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    suffix = "-tiny" if size == "tiny" else ""
    zoo = _build(out / "zoo", recipe(f"zoo/quickstart{suffix}.yaml"))
    _fit({name: recipe(f"encoder/{name}{suffix}.yaml") for name in EMBEDDINGS}, out / "run", zoo)
    embeddings = [_embed(out / "run" / name, zoo, out / file, name) for name, file in EMBEDDINGS.items()]
    checkpoints = [out / "run" / name / CHECKPOINT for name in EMBEDDINGS]
    rows = _probe(zoo, embeddings, checkpoints, out / "probes", notice)
    paths = {"zoo": zoo, "run": out / "run", "embeddings": embeddings[0], "embeddings_no_labels": embeddings[1]}
    paths |= {"probes": out / "probes" / "probes.json", "report": out / "probes" / "report.html"}
    return {"notice": notice, "paths": {name: str(path) for name, path in paths.items()}, "rows": rows}


def summary(result: Mapping[str, Any]) -> Iterator[str]:
    """Lines of the final summary: the paths, the notice where there is one and, last, the answer."""
    from probes.answer import answer_lines

    yield from (f"{name:22} {path}" for name, path in result["paths"].items())
    yield ""
    if result["notice"]:
        yield result["notice"]
        yield ""
    yield from answer_lines(result["rows"])


def _build(zoo: Path, config: Path) -> Path:
    from zoo_builder.build import build

    log.info("Stage 1 of 4: build the zoo %s", zoo)
    build(config, zoo)
    return zoo


def _fit(configs: dict[str, Path], runs: Path, zoo: Path) -> None:
    """Train the encoders in parallel, one process and thread each; an interrupted run resumes from its last epoch."""
    unfinished = {name: config for name, config in configs.items() if not (runs / name / FINISHED).exists()}
    log.info("Stage 2 of 4: fit %s", " and ".join(unfinished) or "nothing, both encoders are there")
    processes = {name: _start(config, runs, zoo, name) for name, config in unfinished.items()}
    try:
        _watch(processes, runs)
    finally:
        for process in processes.values():
            process.terminate()
            assert process.stdin is not None
            process.stdin.close()
    for name in unfinished:
        (runs / name / FINISHED).touch()


def _start(config: Path, runs: Path, zoo: Path, name: str) -> subprocess.Popen[bytes]:
    run = runs / name
    run.mkdir(parents=True, exist_ok=True)
    options = ["--config", str(config), "--data.zoo", str(zoo), "--trainer.default_root_dir", str(run)]
    last = run / "checkpoints" / "last.ckpt"
    if last.exists():
        options += ["--ckpt_path", str(last)]
    command = child.command("weightspace.watched", *options)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with (run / LOG).open("ab") as messages:
        return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=messages, stderr=messages)


def _watch(processes: dict[str, subprocess.Popen[bytes]], runs: Path) -> None:
    """Wait for all processes and log their epochs now and then; raise with the end of the log of one that fails."""
    last_report, open_processes = time.monotonic(), dict(processes)
    while open_processes:
        time.sleep(0.2)
        for name, process in list(open_processes.items()):
            if process.poll() is None:
                continue
            del open_processes[name]
            if process.returncode:
                raise ValueError(f"Training {name} failed; {runs / name / LOG} ends with:\n{_tail(runs / name / LOG)}")
        if time.monotonic() - last_report > SECONDS_BETWEEN_REPORTS:
            last_report = time.monotonic()
            log.info("%s", "; ".join(f"{name}: epoch {_epoch(runs / name / LOG)}" for name in open_processes))


def _tail(path: Path) -> str:
    lines = path.read_text(errors="replace").replace("\r", "\n").splitlines()
    return "\n".join(lines[-8:])


def _epoch(path: Path) -> str:
    epochs = re.findall(r"Epoch (\d+)", path.read_text(errors="replace"))
    return epochs[-1] if epochs else "-"


def _embed(run: Path, zoo: Path, out: Path, name: str) -> Path:
    from weightspace.training.embed import embed

    log.info("Stage 3 of 4: embed every model with %s", name)
    if not out.exists():
        embed(run / CHECKPOINT, zoo, out, name=name)
    return out


def _probe(
    zoo: Path, embeddings: Sequence[Path], checkpoints: Sequence[Path], out: Path, notice: str
) -> list[dict[str, Any]]:
    from probes.encoder_runs import frozen
    from probes.report import run

    log.info("Stage 4 of 4: probe and report")
    encoders = [frozen(checkpoint) for checkpoint in checkpoints]
    return run(zoo, embeddings, out, splits=SPLITS, encoders=encoders, notice=notice)

