"""Models in any shape that a user has them in, read as stacks of one family and size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, cast

import torch
from torch import nn

from weightspace.exchange.opened import open_zoo
from weightspace.families import Family
from weightspace.families.torch_module import Layer
from weightspace.spec import Params
from weightspace.store import Model, Selection, Stack, Zoo

Models: TypeAlias = "Zoo | Selection | Stack | tuple[Family, Params] | nn.Module | str | Path | Iterable[Models]"
"""Models as users have them: a zoo or rows, a stack, a family with params (with or without a models axis), a layer
or cell of torch.nn, a zoo's folder, a file or folder of state dicts, or several of these one after another."""
BATCH = 64


class Part(NamedTuple):
    """Models of one family and size, and their names."""

    stack: Stack
    names: list[str]


def from_torch(
    module: nn.Module, readout: nn.Linear | None = None, direction: Literal["forward", "backward"] | None = None
) -> Model:
    """The model of a torch.nn recurrent layer or cell, and the nn.Linear that reads its last layer, as copies.

    Of a bidirectional layer `direction` is the one to take; `backward` reads sequences from their end. Weight
    normalisation and pruning are replaced by the weights that they compute. A module of `Family.as_rnn` gives its model
    back. ValueError names what no family represents.
    """
    from weightspace.exchange.readings import of_module

    if isinstance(module, Layer):
        return Model(cast(Family, module.family), {name: t.detach().clone() for name, t in module.params.items()})
    return Model(*of_module(module, readout, direction))


def batches(models: Models, batch_size: int) -> Iterator[Part]:
    """Models in their order, float32, at most `batch_size` together: neighbours of one family and size."""
    if batch_size < 1:
        raise ValueError(f"`batch_size` (={batch_size}) must be at least 1.")
    waiting: list[Part] = []
    for part in _parts(models):
        for first in range(0, len(part.stack), batch_size):
            piece = _piece(part, first, batch_size)
            full = sum(len(other.stack) for other in waiting) + len(piece.stack) > batch_size
            if waiting and (full or waiting[0].stack.family != piece.stack.family):
                yield _together(waiting)
                waiting = []
            waiting.append(piece)
    if waiting:
        yield _together(waiting)


def _piece(part: Part, first: int, size: int) -> Part:
    stack = part.stack
    params = {name: tensor[first : first + size].float() for name, tensor in stack.params.items()}
    rows = stack.rows[first : first + size]
    return Part(Stack(stack.family, params, rows, stack.io), part.names[first : first + size])


def _together(parts: Sequence[Part]) -> Part:
    first = parts[0].stack
    params = {name: torch.cat([part.stack.params[name] for part in parts]) for name in first.params}
    rows = torch.cat([part.stack.rows for part in parts])
    return Part(Stack(first.family, params, rows, first.io), [name for part in parts for name in part.names])


def is_alone(models: Any) -> bool:
    """Whether these are one model without a models axis."""
    pair = _pair(models)
    if pair is None:
        return isinstance(models, nn.Module)
    family, params = pair
    return all(params[name].dim() == len(family.spec.shape(name)) for name in family.spec.tensors if name in params)


def zoo_of(models: Any) -> Selection | None:
    """The rows of a zoo, where models are one, rows of one, or its folder or that of its export."""
    if isinstance(models, str | Path) and any(Path(models, name).is_file() for name in ("zoo.json", "export.json")):
        models = open_zoo(models)
    if isinstance(models, Zoo):
        return models[:]
    return models if isinstance(models, Selection) else None


def _pair(models: Any) -> tuple[Family, Params] | None:
    """A family with its params, where models are that."""
    is_pair = isinstance(models, tuple) and len(models) == 2 and isinstance(models[0], Family)
    return models if is_pair else None


def _parts(models: Any) -> Iterator[Part]:
    pair, zoo = _pair(models), zoo_of(models)
    if pair is not None:
        yield _part_of(*pair, is_alone=is_alone(models))
    elif zoo is not None:
        yield from _parts_of_zoo(zoo)
    elif isinstance(models, str | Path):
        yield from _parts_of_files(Path(models))
    elif isinstance(models, nn.Module):
        yield _part_of(*from_torch(models), is_alone=True)
    elif isinstance(models, Stack):
        yield Part(models, [str(row) for row in models.rows.tolist()])
    elif isinstance(models, Iterable):
        yield from _numbered(chain.from_iterable(map(_parts, models)))
    else:
        raise ValueError(
            f"A {type(models).__name__} is no model; give a zoo, a stack, a family with params, a module of torch.nn, "
            "the path of a zoo or of state dicts, or several of these."
        )


def _part_of(family: Family, params: Params, *, is_alone: bool) -> Part:
    stacked = {name: (tensor[None] if is_alone else tensor).detach() for name, tensor in params.items()}
    family.spec.check(stacked, stacked=True)
    ordered = {name: stacked[name] for name in family.spec.tensors}
    count = len(next(iter(ordered.values())))
    return Part(Stack(family, ordered, torch.arange(count)), [str(number) for number in range(count)])


def _numbered(parts: Iterable[Part]) -> Iterator[Part]:
    """Parts whose models without names of their own are numbered through."""
    count = 0
    for part in parts:
        has_numbers = all(name.isdecimal() for name in part.names)
        numbers = [str(number) for number in range(count, count + len(part.names))]
        yield Part(part.stack, numbers if has_numbers else part.names)
        count += len(part.names)


def _parts_of_zoo(models: Selection) -> Iterator[Part]:
    table = models.table.select(["model_id", "step"]).to_pylist()
    names = [f"{row['model_id']}@{row['step']}" for row in table]
    first = 0
    for stack in models.stacks():
        yield Part(stack, names[first : first + len(stack)])
        first += len(stack)


def _parts_of_files(path: Path) -> Iterator[Part]:
    """Models of a folder or file of state dicts."""
    from weightspace.exchange.readings import read_models, readings_of

    for reading in readings_of(path) if path.is_dir() else read_models(path):
        params = {name: tensor[None] for name, tensor in reading.params.items()}
        yield Part(Stack(reading.family, params, torch.zeros(1, dtype=torch.int64)), [reading.name])
