"""Hints for error messages of the parser: the nearest known name, or how to enable a class."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Iterator

from weightspace import encoders, objectives
from weightspace.components import plugins
from weightspace.data import augment
from weightspace.data.datamodule import ZooDataModule
from weightspace.training.module import EmbeddingModule


def with_hint(message: str) -> str:
    """An error message of the parser with a hint: the nearest known name, or how to enable a class."""
    denied = re.search(r"Importing '([\w.]+)' is not allowed", message)
    if denied:
        return f"{message[: denied.end()]}, so it was not imported. {plugins.way_out(denied[1])}"
    known = sorted(set(_names()))
    for word in re.findall(r"(?:string: |Option '|class_path '|arguments: --)([\w.]+)", message):
        name = word.rpartition(".")[2]
        matches = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
        if matches and matches[0] != name:
            return f"{message}\n  Did you mean '{matches[0]}'?"
    return message


def _names() -> Iterator[str]:
    """Names that a config may use: encoders, objectives, augmentations, and their options."""
    transforms = {value.__name__: value for value in augment.Augmentation.__subclasses__()}
    for name, value in {**encoders.available(), **objectives.available(), **transforms}.items():
        yield name
        yield from inspect.signature(value).parameters
    for value in (ZooDataModule, EmbeddingModule):
        yield from inspect.signature(value).parameters
