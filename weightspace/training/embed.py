"""Frozen embeddings of a whole zoo, or of a folder of state dicts, by a trained encoder, in one file."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor
from tqdm import tqdm

from weightspace.data.datamodule import ZooDataModule
from weightspace.data.memory import free_memory, pairs_of, refuse_beyond, room_for, usable_device
from weightspace.data.sampling import batch_limits
from weightspace.encoders.base import Encoder
from weightspace.exchange.files import tensor_files
from weightspace.exchange.readings import Reading, as_float32, read_models
from weightspace.families import Family
from weightspace.spec import Params
from weightspace.store import Stack, Zoo, divide, recorded_split, write_durably
from weightspace.store.checksum import embedding_digest, tensors_digest
from weightspace.terminal import shows_bars
from weightspace.training.restoring import load

logger = logging.getLogger(__name__)


def opened(source: Path | str | None) -> Encoder:
    """The encoder of a checkpoint, or of what `Encoder.from_pretrained` reads; None is the default packaged one."""
    # The client of the Hub takes a second to import.
    from weightspace.exchange.pretrained import DEFAULT

    if source is None:
        logger.info("No checkpoint was given: the encoder is '%s', which comes with the package.", DEFAULT)
    elif Path(source).is_file() or Path(source).suffix == ".ckpt":
        return load(source).encoder
    return Encoder.from_pretrained(DEFAULT if source is None else source)


def embed(
    checkpoint: Path | str | None,
    zoo: Path | str,
    out: Path | str,
    *,
    batch_size: int = 64,
    device: str = "cpu",
    name: str | None = None,
) -> Path:
    """Write the embeddings (rows, embedding_dim) float32 of every row of models.parquet, in its order.

    `checkpoint` is one, or names a saved encoder (see `opened`). `name` is the name of the embeddings in tables,
    `ENCODER-OBJECTIVE` by default. Rows that the encoder was trained on are included: the file records the split (and
    fold) of the training, whose held-out rows the encoder has not seen.
    """
    data = ZooDataModule(zoo, batch_size=batch_size, cache_mb=0)
    encoder = opened(checkpoint).to(usable_device(device)).eval()
    metadata = record(encoder, data.zoo, name)
    write_embeddings(Path(out), embed_rows(encoder, data, device), metadata)
    return Path(out)


def record(encoder: Encoder, zoo: Zoo, name: str | None = None) -> dict[str, Any]:
    """Metadata of the embeddings of a zoo by a trained encoder."""
    split, fold = _held_out(encoder.provenance, zoo)
    return {**_record(encoder, name), "zoo": zoo.fingerprint, "split": split, "fold": fold}


def embed_state_dicts(
    checkpoint: Path | str | None,
    folder: Path | str,
    out: Path | str,
    *,
    batch_size: int = 64,
    device: str = "cpu",
    name: str | None = None,
) -> Path:
    """Write the embeddings (models, embedding_dim) float32 of a folder of state dicts, in the order of their names.

    A file may hold several models, and need no sidecar: `exchange.readings` says how models are read and named.
    `checkpoint` is one, or names a saved encoder (see `opened`). The metadata lists the names under `state_dicts`; its
    `zoo` is null. Encoders read float32, so weights of another dtype are rounded to it.
    """
    batch_limits(batch_size, 1, np.ones(0))
    encoder = opened(checkpoint).to(usable_device(device)).eval()
    read: list[str] = []
    parts = []
    # Files have a number before they are read, models have not.
    files = tqdm(tensor_files(Path(folder)), desc="embed", unit=" files", disable=not shows_bars())
    readings = chain.from_iterable(map(read_models, files))
    for stack in _stacks_of(readings, batch_size, read):
        parts.append((stack.rows, embed_stacks(encoder, [stack.to(device)]).float().cpu()))
    embeddings = torch.full((len(read), encoder.embedding_dim), torch.nan)
    for rows, part in parts:
        embeddings[rows] = part
    write_embeddings(Path(out), embeddings, {**_record(encoder, name), "zoo": None, "state_dicts": read})
    return Path(out)


def _stacks_of(readings: Iterable[Reading], max_models: int, names: list[str]) -> Iterator[Stack]:
    """Stacks of at most `max_models` models of one family and size; their rows are indices of `names`, which is filled.
    """
    incomplete: dict[Family, list[tuple[int, Params]]] = {}
    for row, reading in enumerate(readings):
        names.append(reading.name)
        family = reading.family
        incomplete.setdefault(family, []).append((row, as_float32(reading)))
        if len(incomplete[family]) == batch_limits(max_models, 1, np.array([pairs_of(family)]))[1][0]:
            yield _stack_of(family, incomplete.pop(family))
    yield from (_stack_of(family, models) for family, models in incomplete.items())


def _stack_of(family: Family, models: Sequence[tuple[int, Params]]) -> Stack:
    stacked = {key: torch.stack([params[key] for _, params in models]) for key in family.spec.tensors}
    return Stack(family, stacked, torch.tensor([row for row, _ in models]))


def _record(encoder: Encoder, name: str | None) -> dict[str, Any]:
    """Metadata of embeddings by an encoder: its class, weights, objective, kind of labels, and their name."""
    trained = encoder.provenance or {"objective": None, "learned_with": None, "label_adjacent": []}
    kept = {key: trained[key] for key in ("objective", "learned_with", "label_adjacent")}
    weights = {key: value for key, value in encoder.state_dict().items() if isinstance(value, Tensor)}
    kept |= {"encoder": type(encoder).__name__, "encoder_sha256": tensors_digest(weights), "queries": encoder.queries}
    return {**kept, "name": name or default_name(encoder)}


def default_name(encoder: Encoder) -> str:
    """Name of an encoder's embeddings in tables, ENCODER-OBJECTIVE where its objective is known."""
    return "-".join([type(encoder).__name__, *([encoder.provenance["objective"]] if encoder.provenance else [])])


def _held_out(trained: Mapping[str, Any] | None, zoo: Zoo) -> tuple[str, int | None]:
    """The split and fold of this zoo whose held-out rows an encoder has not seen in its training."""
    if trained is None:
        logger.warning("It is not recorded what the encoder was trained on; splits say nothing about what it has seen.")
        return "in_distribution", None
    split, fold = recorded_split(trained)
    if trained["zoo"] == zoo.fingerprint:
        return split, fold
    with suppress(ValueError):
        # The fingerprint also changes when labels are added; the division of the models does not.
        if divide(zoo.table, split, fold).models == trained.get("models"):
            return split, fold
    logger.warning("The encoder was trained on another zoo; splits of this one say nothing about what it has seen.")
    return "in_distribution", None


def embed_rows(encoder: Encoder, data: ZooDataModule, device: str = "cpu") -> Tensor:
    """Embeddings (rows, embedding_dim) float32 of every row of the zoo, in its order."""
    data.serve()
    data.refuse_unusable()
    embeddings = torch.full((data.zoo.table.num_rows, encoder.embedding_dim), torch.nan)
    batches = tqdm(data.predict_dataloader(), desc="embed", unit=" batches", disable=not shows_bars())
    for batch in batches:
        embeddings[batch.rows] = embed_stacks(encoder, batch.to(device).stacks).float().cpu()
    return embeddings


def embed_stacks(encoder: Encoder, stacks: list[Stack]) -> Tensor:
    """Embeddings (models, embedding_dim) of stacks, with the encoder frozen and in evaluation mode."""
    refuse_beyond(stacks, encoder.bytes_of, free_memory(stacks[0].rows.device) if stacks else None)
    was_training = encoder.training
    encoder.eval()
    try:
        with torch.inference_mode(), room_for(stacks):
            embedding: Tensor = encoder(stacks)
            return embedding
    finally:
        encoder.train(was_training)


def write_embeddings(path: Path, embeddings: Tensor, metadata: Mapping[str, Any]) -> None:
    """Write `embedding` atomically, with one metadata key, `weightspace`, of sorted JSON.

    The entry `sha256` is the checksum of the embeddings and all other entries.
    """
    if not torch.isfinite(embeddings).all():
        row = int((~torch.isfinite(embeddings).all(1)).nonzero()[0, 0])
        raise ValueError(
            f"The embedding of row {row} is not finite, so nothing was written; the checkpoint may come from a "
            "training that diverged (try a lower learning rate)."
        )
    digest = embedding_digest(metadata, embeddings)
    text = json.dumps({**metadata, "sha256": digest}, sort_keys=True, allow_nan=False)
    data = safetensors.torch.save({"embedding": embeddings.contiguous()}, {"weightspace": text})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, data)
