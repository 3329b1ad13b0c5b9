"""Labels added to a finished zoo, or measured again, without retraining."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from weightspace import store
from weightspace.components import plugins
from zoo_builder import labels
from zoo_builder.build import manifest_head, recorded_plan
from zoo_builder.differences import refuse_differences
from zoo_builder.executor import ROLLOUTS, build_identity
from zoo_builder.planning.plan import Plan, make_plan
from zoo_builder.progress import following
from zoo_builder.table import measured_columns
from zoo_builder.workers.job import Job, Labelling
from zoo_builder.workers.processes import run_shards


@dataclass(frozen=True)
class Relabelled:
    """A finished zoo with new labels, and the columns that were measured."""

    path: Path
    rows: int
    columns: list[str]
    fingerprint: str


def relabel(
    zoo: str | Path, names: Sequence[str], workers: int | None = None, *, other_version: bool = False
) -> Relabelled:
    """Measure the labels `names` of every model of a finished zoo, and put them into its tables.

    The name of a column stands for the label that measures it.
    The zoo then has the bytes that a build of its recipe with these labels would have had; params and rollouts are
    not touched. Needs the versions and the class of machine that built it, because the bytes must come out so. With
    `other_version` others will do, if they make the same models of the recipe; zoo.json then says of each label that
    was measured so by what it was, and the zoo can no longer be repaired or built again byte by byte.
    """
    zoo = Path(zoo)
    names = list(dict.fromkeys(map(labels.measuring_column, names)))
    for name in names:
        labels.load(name, {})
    if not zoo.is_dir():
        raise ValueError(f"{zoo} is not a folder; give the folder that `zoo-builder build --out` made.")
    with store.locked(zoo):
        manifest = _manifest(zoo, names)
        plan = _plan(zoo, manifest, names)
        identity = {**{key: manifest[key] for key in ("executor", "generator")}, "recipe": plan.recipe}
        measured_with = _measured_with(zoo, plan, identity, other_version)
        if {**plan.recipe, "labels": manifest["recipe"].get("labels")} != manifest["recipe"]:
            raise ValueError(f"{zoo} cannot be labelled here: this version reads its recipe in another way.")
        head = _head(manifest, plan, identity, measured_with, names)
        key = store.digest({"identity": identity, "labels": names, "definitions": head["labels"]})[:16]
        _stage(zoo, plan, names, key, (measured_with or identity)["executor"], workers)
        store.publish_tables(zoo, key, head["plan"], names, manifest)
        finished = store.finish(zoo, head, len(plan.shards), plan.recipe["title"])
    rows = sum(shard["rows"] for shard in finished["shards"])
    return Relabelled(zoo, rows, measured_columns(plan, names), finished["digest"])


def _measured_with(zoo: Path, plan: Plan, identity: Mapping[str, Any], other_version: bool) -> Mapping[str, Any] | None:
    """Executor of the labels, None if it is the one that built the zoo; another is refused unless `other_version`."""
    executor = identity["executor"]
    # Labels are measured on the device on which the models learned, if this machine has it.
    device = "cpu" if other_version and not torch.cuda.is_available() else executor["device"]
    here = build_identity(plan, device, executor["method"])
    if here == identity:
        return None
    if not other_version:
        way_out = f"{zoo} cannot be labelled here as it was built (`--other_version` measures with what is here)"
        refuse_differences(identity, here, way_out)
    return {key: here[key] for key in ("executor", "generator")}


def _head(
    manifest: Mapping[str, Any],
    plan: Plan,
    identity: Mapping[str, Any],
    measured_with: Mapping[str, Any] | None,
    names: Sequence[str],
) -> dict[str, Any]:
    """Content of the new manifest, in which labels by another executor name it."""
    head = manifest_head(plan, identity)
    executors = {name: label["measured_with"] for name, label in manifest["labels"].items() if "measured_with" in label}
    for name in measured_columns(plan, names):
        executors.pop(name, None)
        if measured_with is not None:
            executors[name] = measured_with
    if not executors:
        return head
    relabelled = {
        name: {**label, "measured_with": executors[name]} for name, label in head["labels"].items() if name in executors
    }
    # No build of the recipe makes these tables, so they are shards of another plan.
    plan_digest = store.digest({**identity, "measured_with": executors})
    return {**head, "labels": head["labels"] | relabelled, "plan": plan_digest}


def _manifest(zoo: Path, names: Sequence[str]) -> Mapping[str, Any]:
    """Manifest of an intact zoo, or the old one of a zoo whose labelling was stopped."""
    stopped = store.unfinished_labelling(zoo)
    if stopped is None:
        manifest = store.open_zoo(zoo).manifest
        faults = store.verify(zoo)
        if faults:
            raise ValueError(
                f"{zoo} is damaged ({faults[0].path}: {faults[0].problem}); run `zoo-builder verify {zoo} --repair`."
            )
        return manifest
    earlier, manifest = stopped
    if sorted(earlier) != sorted(names):
        way_out = f"zoo-builder label {zoo} --labels {' '.join(earlier)}"
        raise ValueError(f"{zoo} is unfinished: an earlier labelling was stopped. Run `{way_out}` first.")
    return manifest


def _plan(zoo: Path, manifest: Mapping[str, Any], names: Sequence[str]) -> Plan:
    """Plan of the zoo, the new labels after those it has."""
    recipe = recorded_plan(zoo, manifest).recipe
    return make_plan({**recipe, "labels": list(dict.fromkeys([*recipe["labels"], *names]))}, zoo)


def _stage(
    zoo: Path, plan: Plan, names: Sequence[str], key: str, executor: Mapping[str, Any], workers: int | None
) -> None:
    """Measure the missing tables in worker processes, which write them to staging."""
    missing = sorted(set(range(len(plan.shards))) - set(store.staged_tables(zoo, key, len(plan.shards))))
    device, method = executor["device"], ROLLOUTS[executor["method"]]
    job = Job(
        recipe=plan.recipe,
        out=str(zoo.resolve()),
        device=device,
        method=method,
        allow_import=plugins.allowed(),
        labelling=Labelling(tuple(names), key),
    )
    amounts = {index: len(plan.shards[index].model_ids) for index in missing}
    with following(amounts, " models", "labels", "Shard {:05d} is labelled".format) as report:
        run_shards(job, missing, workers, report)
