"""Training that starts from an encoder which was trained before, on another zoo or by another objective."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from weightspace.components.construction import plain
from weightspace.data.datamodule import ZooDataModule
from weightspace.encoders.base import Encoder
from weightspace.store import recorded_split, split_title
from weightspace.training.embed import opened
from weightspace.training.module import EmbeddingModule


def start_from(module: EmbeddingModule, source: Path | str, data: ZooDataModule) -> None:
    """Give a module's encoder the tensors of a trained one, its input scales included, before it is trained on `data`.

    `source` is a checkpoint, or a saved, packaged or published encoder (see `embed.opened`). ValueError where it is of
    another class or other sizes, where no training of it is recorded, or where it has seen rows that `data` holds out.
    """
    trained = opened(source)
    _refuse_misfit(module.encoder, trained, source)
    if trained.provenance is None:
        raise ValueError(f"{source} does not say how it was trained, so it is unknown which rows it has seen.")
    _refuse_seen(trained.provenance, data)
    module.encoder.load_state_dict(trained.state_dict())
    # Its figures are of embeddings that the training now changes.
    module.started_from = plain({key: value for key, value in trained.provenance.items() if key != "metrics"})


def _refuse_seen(record: Mapping[str, Any], data: ZooDataModule) -> None:
    """Raise ValueError if a training of this record was on the zoo of `data`, but held out other rows of it."""
    for training in _trainings(record):
        if training.get("zoo") == data.zoo.fingerprint and training.get("models") != data.division.models:
            raise ValueError(
                f"The encoder to start from was trained on this zoo for {split_title(*recorded_split(training))}, and "
                f"has seen rows that {data.division.name} holds out; start from one that was trained for the same "
                "split, or on another zoo."
            )


def _trainings(record: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    """The record of a training, and those of the trainings that it started from, the latest first."""
    while record:
        yield record
        record = record.get("started_from")


def _refuse_misfit(encoder: Encoder, trained: Encoder, source: Path | str) -> None:
    """Raise ValueError unless both encoders are of one class, with tensors of the same names and shapes."""
    shapes = [{name: tuple(t.shape) for name, t in side.state_dict().items()} for side in (encoder, trained)]
    if type(encoder) is type(trained) and shapes[0] == shapes[1]:
        return
    kinds = [side.construction for side in (encoder, trained)]
    raise ValueError(
        f"{source} is a {type(trained).__name__} with {kinds[1]['init_args']}, but `model.encoder` is a "
        f"{type(encoder).__name__} with {kinds[0]['init_args']}; choose the same class and sizes."
    )
