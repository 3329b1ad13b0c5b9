"""Labels added to a finished zoo, or measured again, without retraining."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from weightspace import store
from weightspace.components import plugins
from weightspace.families import Family
from weightspace.rollout import Method
from weightspace.store import canonical
from zoo_builder import labels
from zoo_builder.build import manifest_head, recorded_plan
from zoo_builder.differences import refuse_differences
from zoo_builder.executor import ROLLOUTS, build_identity
from zoo_builder.planning.plan import Plan, Shard, make_plan
from zoo_builder.shard import label_column, label_columns, measure_labels, own_configs
from zoo_builder.stacks import Members, chunk_size
from zoo_builder.workers.processes import run_shards

logger = logging.getLogger(__name__)


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

    The zoo then has the bytes that a build of its recipe with these labels would have had; params and rollouts are
    not touched. Needs the versions and the class of machine that built it, because the bytes must come out so. With
    `other_version` others will do, if they make the same models of the recipe; zoo.json then says of each label that
    was measured so by what it was, and the zoo can no longer be repaired or built again byte by byte.
    """
    zoo = Path(zoo)
    names = list(dict.fromkeys(names))
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
    return Relabelled(zoo, rows, _measured_columns(plan, names), finished["digest"])


def _measured_with(zoo: Path, plan: Plan, identity: Mapping[str, Any], other_version: bool) -> Mapping[str, Any] | None:
    """What labels are measured with here, None if it is what built the zoo; refused unless `other_version`."""
    executor = identity["executor"]
    # Labels are measured where the models learned, if that is to be had here.
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
    """The new manifest's own content, where labels that others measured say so."""
    head = manifest_head(plan, identity)
    others = {name: label["measured_with"] for name, label in manifest["labels"].items() if "measured_with" in label}
    for name in _measured_columns(plan, names):
        others.pop(name, None)
        if measured_with is not None:
            others[name] = measured_with
    if not others:
        return head
    found = {name: {**label, "measured_with": others[name]} for name, label in head["labels"].items() if name in others}
    # No build of the recipe makes these tables, so they are shards of another plan.
    return {**head, "labels": head["labels"] | found, "plan": store.digest({**identity, "measured_with": others})}


def stage_shard(
    zoo: Path,
    plan: Plan,
    shard: Shard,
    names: Sequence[str],
    key: str,
    device: str = "cpu",
    method: Method = "stacked",
) -> None:
    """Measure one shard's models and write its new table aside; this is what workers do."""
    stack, table = store.open_zoo(zoo).shard(shard.index)
    _refuse_other_models(plan, shard, stack.family, table)
    ids, pieces = shard.model_ids, []
    params = {name: tensor.unflatten(0, (len(ids), len(plan.snapshots))) for name, tensor in stack.params.items()}
    size = chunk_size(device)
    for place, members in enumerate(Members.of(plan, shard.cohort, ids).parts(size)):
        own = {name: tensor[place * size : (place + 1) * size] for name, tensor in params.items()}
        measured = measure_labels(plan, shard.cohort, names, members, own, device, method)
        columns = {name: label_column(measured, name, len(members.ids)) for name in _measured_columns(plan, names)}
        pieces.append(pa.table(columns))
    new = pa.concat_tables(pieces)
    ordered = [*store.SCHEMA.names, *label_columns(plan)]
    missing = [name for name in ordered if name not in new.column_names and name not in table.column_names]
    if missing:
        raise ValueError(f"The zoo lacks the columns {missing} of its own labels; measure those labels again, too.")
    columns = {name: (new if name in new.column_names else table)[name] for name in ordered}
    store.stage_table(zoo, key, shard.index, pa.table(columns))


def _refuse_other_models(plan: Plan, shard: Shard, family: Family, table: pa.Table) -> None:
    """Raise ValueError unless the models of a shard are those that this version makes of the recipe."""
    ids, cohort = shard.model_ids, shard.cohort
    values = cohort.values(plan.seed, ids)
    task, count = cohort.task, len(ids)
    configs = [None] * count if task is None else [canonical(own) for own in own_configs(task, values, count)]
    expected = [(ids[i], step, configs[i]) for i in range(len(ids)) for step in plan.snapshots]
    found = zip(*(table[name].to_pylist() for name in ("model_id", "step", "task_config")), strict=True)
    if family != cohort.family or list(found) != expected:
        raise ValueError("Its models are not those that this version makes of the recipe, so it cannot label them.")


def _manifest(zoo: Path, names: Sequence[str]) -> Mapping[str, Any]:
    """The manifest of a zoo that is whole, or the old one of a zoo whose labelling was stopped."""
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
    """The plan of the zoo with the new labels after its own."""
    recipe = recorded_plan(zoo, manifest).recipe
    return make_plan({**recipe, "labels": list(dict.fromkeys([*recipe["labels"], *names]))})


def _stage(
    zoo: Path, plan: Plan, names: Sequence[str], key: str, executor: Mapping[str, Any], workers: int | None
) -> None:
    """Have the missing tables measured and written aside by worker processes."""
    from tqdm import tqdm

    missing = sorted(set(range(len(plan.shards))) - set(store.staged_tables(zoo, key, len(plan.shards))))
    device, method = executor["device"], ROLLOUTS[executor["method"]]
    relabelling = {"names": list(names), "key": key, "device": device, "method": method}
    job = {
        "recipe": plan.recipe,
        "out": str(zoo.resolve()),
        "device": device,
        "relabel": relabelling,
        "allow_import": plugins.allowed(),
    }
    with tqdm(total=len(missing), unit=" shards", disable=not sys.stderr.isatty(), desc="labels") as bar:

        def report(message: Mapping[str, Any]) -> None:
            bar.update("done" in message)
            if bar.disable and "done" in message:
                logger.info("Shard %05d is labelled.", message["done"])

        run_shards(job, missing, workers, report)


def _measured_columns(plan: Plan, names: Sequence[str]) -> list[str]:
    return list(labels.columns(names, [cohort.family.effective_spec for cohort in plan.cohorts]))
