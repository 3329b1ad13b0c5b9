"""Zoos of models that were trained elsewhere, from files of their tensors."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from weightspace import store
from weightspace.exchange.files import read_inputs
from weightspace.exchange.readings import NO_WORDS, Reading, Words, as_float32, readings_of
from weightspace.families import Family
from weightspace.rollout import rollout
from weightspace.spec import Params
from weightspace.store import ShardContent
from weightspace.terminal import shows_bars
from zoo_builder.build import Built, manifest_head, refuse_other_files
from zoo_builder.executor import build_identity, chosen_method
from zoo_builder.labels import load as load_label
from zoo_builder.labels import measuring_column
from zoo_builder.learning import Learned
from zoo_builder.learning.imported import Imported
from zoo_builder.members import padded_columns
from zoo_builder.planning.plan import Plan, Shard, make_plan
from zoo_builder.planning.recipe import read_recipe
from zoo_builder.relabel import relabel
from zoo_builder.table import table_of

logger = logging.getLogger(__name__)

TITLE = "Recurrent networks trained elsewhere"
MODELS_TOGETHER = 64
MOST_ROLLED = 2**24
"""Most numbers of states that a rollout on recorded inputs keeps in memory at a time, or one model's."""


def bring(
    state_dicts: str | Path,
    out: str | Path,
    *,
    inputs: str | Path | None = None,
    labels: Sequence[str] = (),
    words: Words = NO_WORDS,
    title: str = TITLE,
    seed: int = 0,
    workers: int | None = None,
) -> Built:
    """Make the zoo `out` of a folder of trained networks, NAME.safetensors or NAME.npz, and measure `labels` of it.

    Models are named as `read_models` names them; `words` say what tensors cannot. The sequences of `inputs`, a file of
    one tensor (sequences, time, input), are stored with the outputs on them, and drive models when labels are measured,
    now or later; without them standard normal noise does. ValueError names the file that cannot be read, and why.
    """
    out = Path(out)
    refuse_other_files(out)
    if any(out.iterdir() if out.is_dir() else ()):
        raise ValueError(f"{out} holds a zoo already; give an empty or new folder for this one.")
    recorded = None if inputs is None else read_inputs(Path(inputs))
    for label in labels:
        # Before anything is written.
        load_label(measuring_column(label), {})
    contents = _contents(readings_of(state_dicts, words), recorded)
    plan = make_plan(_recipe(contents.models, title, seed))
    identity = build_identity(plan, "cpu", chosen_method("cpu"))
    head = manifest_head(plan, identity)
    with store.naming(out, 0):
        out.mkdir(parents=True, exist_ok=True)
    with store.locked(out):
        for shard, params in _shards(plan, readings_of(state_dicts, words)):
            backward = [name in contents.backward for name in shard.model_ids]
            content = _content(plan, shard, params, recorded, backward)
            store.write_shard(out, shard.index, content, head["plan"])
        manifest = store.finish(out, head, len(plan.shards), plan.recipe["title"])
        store.empty_staging(out)
    digest = manifest["digest"]
    if labels:
        digest = relabel(out, labels, workers).fingerprint
    return Built(out, plan.num_models, plan.num_models, len(plan.shards), len(plan.shards), 0, digest)


class Contents(NamedTuple):
    """Names of the models of a folder by family, and of those that read sequences from their end."""

    models: dict[Family, list[str]]
    backward: set[str]


def _contents(readings: Iterator[Reading], recorded: Tensor | None) -> Contents:
    """Names of the models of a folder by family, and which are backward directions.

    ValueError where a model is not finite, reads other inputs than the recorded ones, or is called like another.
    """
    contents, names = Contents({}, set()), set[str]()
    for reading in readings:
        if reading.name in names:
            raise ValueError(
                f"Two models are called '{reading.name}': a file has that name, and so has a module of another file "
                "behind the name of its file. Rename one of the files."
            )
        names.add(reading.name)
        as_float32(reading)
        _refuse_misfit(reading, recorded)
        contents.models.setdefault(reading.family, []).append(reading.name)
        if reading.is_backward:
            contents.backward.add(reading.name)
    return contents


def _recipe(models: Mapping[Family, Sequence[str]], title: str, seed: int) -> dict[str, Any]:
    return read_recipe(
        {
            "title": title,
            "seed": seed,
            "families": [{"class": type(family).__name__, **family.config} for family in models],
            "learning": {"class": Imported.__name__},
            "models": [list(names) for names in models.values()],
            "models_per_cohort": max(map(len, models.values())),
            "snapshots": [Imported.num_updates],
        }
    )


def _refuse_misfit(reading: Reading, recorded: Tensor | None) -> None:
    if recorded is not None and recorded.shape[2] != reading.family.input_size:
        raise ValueError(
            f"The inputs have {recorded.shape[2]} columns, but the model '{reading.name}' reads "
            f"{reading.family.input_size}; import models of other input sizes into a zoo of their own."
        )


def _shards(plan: Plan, readings: Iterator[Reading]) -> Iterator[tuple[Shard, Params]]:
    """Shards as soon as all their models are read, with the params (models, ...) of these."""
    from tqdm import tqdm

    shard_of = {name: shard for shard in plan.shards for name in shard.model_ids}
    waiting: dict[int, dict[str, Params]] = {}
    bar = tqdm(readings, desc="import", unit=" models", total=plan.num_models, disable=not shows_bars())
    for reading in bar:
        shard = shard_of[reading.name]
        read = waiting.setdefault(shard.index, {})
        read[reading.name] = as_float32(reading)
        if len(read) == len(shard.model_ids):
            del waiting[shard.index]
            tensors = shard.cohort.family.spec.tensors
            yield shard, {key: torch.stack([read[name][key] for name in shard.model_ids]) for key in tensors}


def _content(
    plan: Plan, shard: Shard, params: Params, recorded: Tensor | None, backward: Sequence[bool]
) -> ShardContent:
    members = shard.cohort.members(plan.seed, shard.model_ids)
    by_snapshot = {name: tensor[:, None] for name, tensor in params.items()}
    never = torch.full((len(members.ids),), -1, dtype=torch.int64)
    table = table_of(plan, shard, members, Learned((Imported.num_updates,), by_snapshot, never), [{}], 0)
    rollouts = None if recorded is None else _answers(shard.cohort.family, params, recorded, backward)
    return ShardContent(family=shard.cohort.family, params=params, table=table, rollouts=rollouts)


@torch.no_grad()
def _answers(family: Family, params: Params, recorded: Tensor, backward: Sequence[bool]) -> dict[str, Tensor]:
    """`x` and `outputs` (models, sequences, time, ...); models of backward readings get inputs in reverse order."""
    both = (recorded, recorded.flip(1))
    x = torch.stack([both[is_backward] for is_backward in backward])
    per_model = recorded.shape[0] * recorded.shape[1] * family.spec.state_size
    size, outputs = max(MOST_ROLLED // per_model, 1), []
    for first in range(0, len(x), size):
        part = {name: tensor[first : first + size] for name, tensor in params.items()}
        count = len(x[first : first + size])
        # A stack of one has other last bits.
        columns = padded_columns({**part, "": x[first : first + size]}, max(count, 2))
        inputs = columns.pop("").transpose(1, 2)
        answers = rollout(family, columns, inputs).outputs[:count]
        outputs.append(answers.transpose(1, 2))
    return {"x": x.contiguous(), "outputs": torch.cat(outputs).contiguous()}
