"""Building a zoo: from a recipe to a finished folder, or on from where an earlier build was stopped."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import weightspace
from weightspace import store
from weightspace.rollout import Method
from zoo_builder.engine import run_shards
from zoo_builder.plan import Plan, make_plan
from zoo_builder.recipe import read_recipe
from zoo_builder.shard import label_columns
from zoo_builder.worker import ENVIRONMENT

logger = logging.getLogger(__name__)

# What `--method` names -> how cohorts are rolled out.
ROLLOUTS: dict[str, Method] = {"torch": "stacked"}
PLAN = "plan.json"


@dataclass(frozen=True)
class Built:
    """A finished zoo, and how many of its shards this build made."""

    path: Path
    models: int
    rows: int
    shards: int
    built: int
    fingerprint: str


def build(
    recipe: str | Path | Mapping[str, Any],
    out: str | Path,
    *,
    seed: int | None = None,
    workers: int | None = None,
    device: str = "cpu",
    method: str = "torch",
) -> Built:
    """Build the zoo of a recipe (YAML file or mapping) in folder `out`, or finish it; `workers` None is one per core.

    The bytes depend on the recipe, the seed, the method, the device class and the versions, not on the workers.
    """
    plan = make_plan(read_recipe(recipe, seed))
    out = Path(out)
    identity = build_identity(plan, device, method)
    _refuse_other_files(out)
    out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        finished = _finished(out, identity)
        if finished is not None:
            logger.info("%s is finished already, nothing to do.", out)
            # A build may have died just before it tidied up.
            shutil.rmtree(out / store.STAGING, ignore_errors=True)
            return _built(out, plan, finished, 0)
        _remember(out, identity)
        missing = _missing_shards(out, plan, identity)
        _make(out, plan, identity, missing, workers)
        manifest = store.finish(out, manifest_head(plan, identity), len(plan.shards), plan.recipe["title"])
    return _built(out, plan, manifest, len(missing))


def repair(out: str | Path, workers: int | None = None) -> list[store.Fault]:
    """Make the damaged shards and files of a finished zoo again; returns the faults that remain.

    Needs an intact zoo.json, the same versions and the same class of machine: the bytes must come out as promised.
    """
    out = Path(out)
    manifest = store.open_zoo(out).manifest
    plan = make_plan(manifest["recipe"])
    identity = {key: manifest[key] for key in ("recipe", "executor", "generator")}
    here = build_identity(plan, manifest["executor"]["device"], manifest["executor"]["method"])
    refuse_differences(identity, here, f"{out} cannot be repaired here")
    with locked(out):
        damaged = sorted(
            {int(f.path.split("/")[1]) for f in store.verify(out) if _names_shard(f.path, len(plan.shards))}
        )
        for index in damaged:
            store.remove_shard(out, index)
        _make(out, plan, identity, damaged, workers)
        other = [fault for fault in store.verify(out) if _names_shard(fault.path, len(plan.shards))]
        if not other:
            store.finish(out, manifest_head(plan, identity), len(plan.shards), plan.recipe["title"])
    return store.verify(out)


def _names_shard(path: str, num_shards: int) -> bool:
    parts = path.split("/")
    return parts[0] == "shards" and parts[1].isdigit() and int(parts[1]) < num_shards


def _make(out: Path, plan: Plan, identity: Mapping[str, Any], missing: list[int], workers: int | None) -> None:
    """Have the missing shards made, with a progress bar on a terminal and a line per shard elsewhere."""
    workers = workers if workers is not None else num_cores()
    if workers < 1:
        raise ValueError(f"`workers` (={workers}) must be at least 1.")
    executor = identity["executor"]
    job = {
        "recipe": plan.recipe,
        "out": str(out.resolve()),
        "plan": store.digest(identity),
        "device": executor["device"],
        "method": ROLLOUTS[executor["method"]],
    }
    try:
        with _progress(plan, missing) as report:
            run_shards(job, missing, workers, report)
    finally:
        store.clean_staging(out)


def num_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def build_identity(plan: Plan, device: str, method: str) -> dict[str, Any]:
    """What the bytes of a zoo depend on."""
    if method not in ROLLOUTS:
        raise ValueError(f"No method is called '{method}'; there are {list(ROLLOUTS)}.")
    if device != "cpu" and not torch.cuda.is_available():
        raise ValueError(f"`device` is '{device}', but torch sees no CUDA device here; use cpu.")
    executor = {
        "method": method,
        "device": device,
        "torch": str(torch.__version__),
        "machine": platform.machine(),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "mkl_cbwr": ENVIRONMENT["MKL_CBWR"],
    }
    generator = {"name": "zoo_builder", "version": weightspace.__version__}
    # Through JSON, so that it equals what is read back from a file.
    return json.loads(json.dumps({"recipe": plan.recipe, "executor": executor, "generator": generator}))


def manifest_head(plan: Plan, identity: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest's own content, but the files."""
    families = {cohort.family: None for cohort in plan.cohorts}
    tasks = {type(cohort.task).__name__: cohort.task for cohort in plan.cohorts if cohort.task is not None}
    return {
        **identity,
        "plan": store.digest(identity),
        "num_models": plan.num_models,
        "families": [
            {"class": type(f).__name__, "config": f.config, "spec": json.loads(f.spec.to_json())} for f in families
        ],
        "tasks": {
            name: {"output_kind": task.output_kind, "definition": " ".join((type(task).__doc__ or "").split())}
            for name, task in sorted(tasks.items())
        },
        "labels": {
            name: {"unit": column.unit, "definition": column.definition, "source": column.source}
            for name, column in label_columns(plan).items()
        },
    }


def _built(out: Path, plan: Plan, manifest: Mapping[str, Any], made: int) -> Built:
    rows = sum(shard["rows"] for shard in manifest["shards"])
    return Built(out, plan.num_models, rows, len(manifest["shards"]), made, manifest["digest"])


def _refuse_other_files(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; give a folder for the zoo.")
    known = {"zoo.json", "shards", store.STAGING}
    if out.is_dir() and any(out.iterdir()) and not known & {path.name for path in out.iterdir()}:
        raise ValueError(f"{out} holds other files; give an empty or new folder for the zoo.")


@contextlib.contextmanager
def locked(out: Path, patience: float = 5.0) -> Iterator[None]:
    """Keep other builders off a folder; the lock goes with the process that holds it."""
    handle = os.open(out, os.O_RDONLY)
    deadline = time.monotonic() + patience
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise ValueError(f"Another builder is at work on {out}; wait for it or stop it.") from None
                time.sleep(0.1)
        yield
    finally:
        os.close(handle)


def _finished(out: Path, identity: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The manifest of a finished zoo of the same recipe, None if the zoo is not finished."""
    if not (out / "zoo.json").exists():
        return None
    try:
        manifest = store.open_zoo(out).manifest
    except store.DamagedManifest as error:
        logger.warning("%s", error)
        return None
    asked = ("method", "device")
    old = {"recipe": manifest["recipe"], "executor": {key: manifest["executor"][key] for key in asked}}
    new = {"recipe": identity["recipe"], "executor": {key: identity["executor"][key] for key in asked}}
    refuse_differences(old, new, f"{out} holds a zoo of another plan")
    return manifest


def _remember(out: Path, identity: Mapping[str, Any]) -> None:
    """Keep the plan with the unfinished zoo, or refuse if another one is there."""
    file = out / store.STAGING / PLAN
    if file.exists():
        refuse_differences(json.loads(file.read_bytes()), identity, f"{out} holds an unfinished zoo of another plan")
    file.parent.mkdir(exist_ok=True)
    store.write_durably(file, store.pretty(identity))


def refuse_differences(old: Mapping[str, Any], new: Mapping[str, Any], what: str) -> None:
    """Raise ValueError naming every field in which two plans differ."""
    differences = list(_differences(old, new, ""))
    if differences:
        raise ValueError(f"{what}: {'; '.join(differences)}. Use another folder, or go back to the old values.")


def _differences(old: Any, new: Any, where: str) -> Iterator[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in [*old, *(key for key in new if key not in old)]:
            yield from _differences(old.get(key), new.get(key), f"{where}.{key}" if where else str(key))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for place, pair in enumerate(zip(old, new, strict=True)):
            yield from _differences(*pair, f"{where}[{place}]")
    elif old != new:
        yield f"{where} was {json.dumps(old)}, now {json.dumps(new)}"


def _missing_shards(out: Path, plan: Plan, identity: Mapping[str, Any]) -> list[int]:
    """The shards still to make; damaged ones are taken away first."""
    store.clean_staging(out)
    good, bad = store.good_shards(out, len(plan.shards), store.digest(identity))
    for index, problem in bad.items():
        logger.warning("Shard %05d: %s; it is made again.", index, problem)
        store.remove_shard(out, index)
    if good:
        logger.info("%d of %d shards are there already.", len(good), len(plan.shards))
    return sorted(set(range(len(plan.shards))) - set(good))


@contextlib.contextmanager
def _progress(plan: Plan, missing: list[int]) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    from tqdm import tqdm

    shards = plan.shards
    updates = max(plan.snapshots)
    total = sum(shards[index].last - shards[index].first for index in missing) * updates
    done: list[int] = []
    with tqdm(total=total, unit=" updates", unit_scale=True, disable=not sys.stderr.isatty(), desc="zoo") as bar:

        def report(message: Mapping[str, Any]) -> None:
            bar.update(message.get("progress", 0))
            if "done" in message:
                done.append(message["done"])
                bar.set_postfix_str(f"{len(done)}/{len(missing)} shards")
                if bar.disable:
                    name = shards[message["done"]].cohort.name
                    logger.info("Shard %05d (%s) is there, %d of %d.", message["done"], name, len(done), len(missing))

        yield report
