"""Builds of zoos: from a recipe to a finished folder, or on from where an earlier build was stopped."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightspace import store
from weightspace.components import plugins
from zoo_builder.differences import refuse_differences
from zoo_builder.executor import ROLLOUTS, build_identity, chosen_method
from zoo_builder.planning.memory import check_memory
from zoo_builder.planning.plan import Plan, Shard, make_plan
from zoo_builder.planning.recipe import read_recipe
from zoo_builder.progress import following
from zoo_builder.share import Share
from zoo_builder.table import label_columns
from zoo_builder.tasks import Task
from zoo_builder.tasks.kept import keep
from zoo_builder.workers.job import Job
from zoo_builder.workers.processes import Engine, run_shards

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Built:
    """Result of a build: the zoo, the shards made, and the shards that other builders have not finished."""

    path: Path
    models: int
    rows: int
    shards: int
    built: int
    missing: int
    fingerprint: str | None
    """None while shards are missing or not merged yet."""


def build(
    recipe: str | Path | Mapping[str, Any],
    out: str | Path,
    *,
    seed: int | None = None,
    workers: int | None = None,
    device: str = "cpu",
    method: str | None = None,
    share: Share | None = None,
    engine: Engine = run_shards,
) -> Built:
    """Build the zoo of a recipe (YAML file or mapping) in folder `out`, or finish it.

    `workers` None is one process per core, or one on CUDA; `method` None is "native" on the CPU, where there is a
    compiler, and "torch" elsewhere. The bytes depend on the recipe, the seed, the method, the device class and the
    versions, not on the workers, the engine or the shares. With a `share` only those shards are made, beside other
    builders of the same plan; the last builder at work merges them once all are there.
    """
    out = Path(out)
    plan = make_plan(read_recipe(recipe, seed, device), out)
    _refuse_imported(plan, "No recipe makes imported models; make their zoo with `zoo-builder import`.")
    check_memory(plan)
    identity = build_identity(plan, device, chosen_method(device, method))
    refuse_other_files(out)
    finished = _finished(out, identity)
    if finished is not None and not (out / store.STAGING).exists():
        logger.info("%s is finished already, nothing to do.", out)
        return _built(out, plan, finished, 0)
    with store.naming(out, 0):
        out.mkdir(parents=True, exist_ok=True)
    # Builders of shares share the lock; one that starts during a merge waits for its end.
    with store.locked(out, shared=share is not None, patience=5.0 if share is None else 60.0) as lock:
        made = 0
        if _finished(out, identity) is None:
            _remember(out, plan, identity)
            missing = _missing_shards(out, plan, identity, share or Share(1, 1))
            _make(out, plan, identity, missing, workers, engine)
            made = len(missing)
        # In this order: the last builder to give up its shared lock sees the shards of all.
        if share is not None and (not lock.try_alone() or store.absent_shards(out, len(plan.shards))):
            return _unfinished(out, plan, made)
        manifest = _finished(out, identity) or _finish(out, plan, identity)
        # An earlier build may have died, or another one finished, before staging was emptied.
        store.empty_staging(out)
    return _built(out, plan, manifest, made)


def repair(out: str | Path, workers: int | None = None) -> list[store.Fault]:
    """Make the damaged shards and files of a finished zoo again; returns the faults that remain.

    Needs an intact zoo.json, the same versions and the same class of machine: the bytes must come out as promised.
    Files that no builder makes are left alone.
    """
    out = Path(out)
    manifest = store.open_zoo(out).manifest
    # A damaged file of tasks is not read: what it holds is drawn anew.
    tasks_entry = manifest["files"].get(store.TASKS)
    plan = make_plan(_recorded_recipe(out, manifest), out if store.is_intact(out / store.TASKS, tasks_entry) else None)
    _refuse_imported(plan, f"{out} cannot be repaired: its models were trained elsewhere. Import them again.")
    identity = {key: manifest[key] for key in ("recipe", "executor", "generator")}
    here = build_identity(plan, manifest["executor"]["device"], manifest["executor"]["method"])
    refuse_differences(identity, here, f"{out} cannot be repaired here")
    relabelled = [name for name, label in manifest["labels"].items() if "measured_with" in label]
    if relabelled:
        raise ValueError(
            f"{out} cannot be repaired: other versions measured {', '.join(relabelled)}. Copy what is damaged from "
            "elsewhere, or measure them again with the versions that built the zoo."
        )
    with store.locked(out):
        damaged = _damaged_shards(store.verify(out), len(plan.shards))
        for index in damaged:
            store.remove_shard(out, index)
        if tasks_entry is not None:
            keep(out, (cohort.task for cohort in plan.cohorts), tasks_entry)
        _make(out, plan, identity, damaged, workers, run_shards)
        if not _damaged_shards(store.verify(out), len(plan.shards)):
            _finish(out, plan, identity)
    return store.verify(out)


def _refuse_imported(plan: Plan, message: str) -> None:
    if not all(cohort.learner.makes_params for cohort in plan.cohorts):
        raise ValueError(message)


def recorded_plan(zoo: Path, manifest: Mapping[str, Any]) -> Plan:
    """Plan of a finished zoo, its tasks as it keeps them; ValueError where this version reads its recipe otherwise."""
    return make_plan(_recorded_recipe(zoo, manifest), zoo)


def _recorded_recipe(zoo: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return read_recipe(manifest["recipe"])
    except ValueError as error:
        raise ValueError(f"The recipe in zoo.json of {zoo} is not one of a builder: {error}") from None


def _damaged_shards(faults: Sequence[store.Fault], num_shards: int) -> list[int]:
    """Shards of a plan with missing or changed files; further files do no harm."""
    paths = [fault.path.split("/") for fault in faults]
    names = {path[1] for path in paths if path[0] == store.SHARDS and set(path[2:]) <= set(store.SHARD_FILES)}
    return [index for index in range(num_shards) if f"{index:05d}" in names]


def _make(
    out: Path, plan: Plan, identity: Mapping[str, Any], missing: Sequence[int], workers: int | None, engine: Engine
) -> None:
    """Make the missing shards, with a progress bar on a terminal and a line per shard elsewhere."""
    executor = identity["executor"]
    job = Job(
        recipe=plan.recipe,
        out=str(out.resolve()),
        device=executor["device"],
        method=ROLLOUTS[executor["method"]],
        allow_import=plugins.allowed(),
        identity=identity,
        plan_digest=store.digest(identity),
    )
    try:
        with _progress(plan, missing) as report:
            engine(job, missing, workers, report)
    finally:
        store.clean_staging(out)


def _finish(out: Path, plan: Plan, identity: Mapping[str, Any]) -> dict[str, Any]:
    return store.finish(out, manifest_head(plan, identity), len(plan.shards), plan.recipe["title"])


def manifest_head(plan: Plan, identity: Mapping[str, Any]) -> dict[str, Any]:
    """Content of the manifest, without the list of files."""
    families = {cohort.family: None for cohort in plan.cohorts}
    tasks: dict[str, list[Task]] = {}
    for cohort in plan.cohorts:
        if cohort.task is not None:
            tasks.setdefault(type(cohort.task).__name__, []).append(cohort.task)
    return {
        **identity,
        "plan": store.digest(identity),
        "families": [
            {"class": type(f).__name__, "config": f.config, "spec": json.loads(f.spec.to_json())} for f in families
        ],
        "tasks": {
            name: {**_io_of_all(alike), "definition": " ".join((type(alike[0]).__doc__ or "").split())}
            for name, alike in sorted(tasks.items())
        },
        "labels": {
            name: {"unit": column.unit, "definition": column.definition, "source": column.source}
            for name, column in label_columns(plan).items()
        },
    }


def _io_of_all(tasks: Sequence[Task]) -> dict[str, Any]:
    """Inputs and outputs of tasks of one class; their range holds the inputs of all."""
    lows, highs = zip(*(task.input_range for task in tasks), strict=True)
    return {**tasks[-1].io.to_json(), "input_range": [min(lows), max(highs)]}


def _built(out: Path, plan: Plan, manifest: Mapping[str, Any], made: int) -> Built:
    rows = sum(shard["rows"] for shard in manifest["shards"])
    return Built(out, plan.num_models, rows, len(manifest["shards"]), made, 0, manifest["digest"])


def _unfinished(out: Path, plan: Plan, made: int) -> Built:
    absent = len(store.absent_shards(out, len(plan.shards)))
    logger.info(
        "This share is done; %s. The last builder to end merges the shards, or run the build without `--shard`.",
        f"{absent} of the other shards are missing" if absent else "other builders are still at work",
    )
    rows = plan.num_models * len(plan.snapshots)
    return Built(out, plan.num_models, rows, len(plan.shards), made, absent, None)


def refuse_other_files(out: Path) -> None:
    """Raise ValueError where a folder for a zoo is a file, or holds what no builder made."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; give a folder for the zoo.")
    names = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if names - {store.STAGING} and not store.made_by_builder(out):
        raise ValueError(f"{out} holds other files; give an empty or new folder for the zoo.")


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


def _remember(out: Path, plan: Plan, identity: Mapping[str, Any]) -> None:
    """Write the plan and what is kept of tasks into the unfinished zoo; ValueError if another build has begun there."""
    file = out / store.STAGING / store.PLAN
    if file.exists():
        refuse_differences(store.read_document(file), identity, f"{out} holds an unfinished zoo of another plan")
    file.parent.mkdir(exist_ok=True)
    store.write_durably(file, store.pretty(identity))
    keep(out, (cohort.task for cohort in plan.cohorts))


def _missing_shards(out: Path, plan: Plan, identity: Mapping[str, Any], share: Share) -> list[int]:
    """Indices of the shards of a share that are still to be made; damaged ones are removed first."""
    store.clean_staging(out)
    indices = share.of(len(plan.shards))
    good, bad = store.good_shards(out, indices, store.digest(identity))
    for index, problem in bad.items():
        logger.warning("Shard %05d: %s; it is made again.", index, problem)
        store.remove_shard(out, index)
    if good:
        logger.info("%d of %d shards are there already.", len(good), len(indices))
    return sorted(set(indices) - set(good))


def _progress(plan: Plan, missing: Sequence[int]) -> AbstractContextManager[Callable[[Mapping[str, Any]], None]]:
    """The bar of a build, in updates of models; those that do not learn count as one."""
    shards = plan.shards

    def amount(shard: Shard) -> int:
        return (shard.last - shard.first) * max(shard.cohort.learner.updates_behind(plan.snapshots[-1]), 1)

    amounts = {index: amount(shards[index]) for index in missing}

    def said(index: int) -> str:
        return f"Shard {index:05d} ({shards[index].cohort.name}) is there"

    return following(amounts, " updates", "zoo", said)
