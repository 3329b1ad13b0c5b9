"""Functions of a notebook: models of any kind embedded, predicted, measured and drawn as graphs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from weightspace.exchange.opened import open_zoo
from weightspace.families import Family
from weightspace.spec import Params
from weightspace.store import Model, Selection, Stack, Zoo

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import ArrayLike

    from weightspace.encoders.base import Encoder

Models: TypeAlias = "Zoo | Selection | Stack | tuple[Family, Params] | nn.Module | str | Path | Iterable[Models]"
"""What is taken as models: a zoo or rows of one, a stack, a family with params (with or without a models axis), a layer
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
    normalisation and pruning are replaced by the weights that they compute. ValueError names what no family represents.
    """
    from weightspace.exchange.readings import of_module

    return Model(*of_module(module, readout, direction))


def load_encoder(source: str | Path | None = None) -> Encoder:
    """The encoder of a checkpoint, of a run folder of `weightspace fit`, or of a saved or packaged name or repository.

    None is the encoder that comes with the package, which was trained without labels. It is in evaluation mode.
    """
    from weightspace.training.embed import opened

    return opened(source if source is None else _checkpoint_in(source)).eval()


def embed(models: Models, encoder: Encoder | str | Path | None = None, *, batch_size: int = BATCH) -> Tensor:
    """Embeddings (models, embedding_dim) float32 of models, in their order; (embedding_dim,) of one without an axis.

    `encoder` is one, or what `load_encoder` takes. ValueError names models that it cannot read.
    """
    from weightspace.training.embed import embed_stacks

    reader = load_encoder(encoder) if encoder is None or isinstance(encoder, str | Path) else encoder
    device = next((tensor.device for tensor in reader.state_dict().values()), torch.device("cpu"))
    rows = [embed_stacks(reader, [stack.to(device)]).float().cpu() for stack, _ in _batches(models, batch_size)]
    embeddings = torch.cat([torch.zeros(0, reader.embedding_dim), *rows])
    return embeddings[0] if _is_alone(models) else embeddings


def predict(models: Models, checkpoint: str | Path, *, batch_size: int = BATCH) -> pd.DataFrame:
    """Labels of models (rows) by a supervised encoder: a column for each of its targets, in the label's unit.

    `checkpoint` is that of `weightspace fit`, or its run folder. Predictions hold for models like those it learned
    from. ValueError where it was trained without labels.
    """
    import pandas as pd

    from weightspace.objectives.supervised import Supervised
    from weightspace.training.embed import embed_stacks
    from weightspace.training.restoring import load

    path = _checkpoint_in(checkpoint)
    module = load(path).eval()
    heads = [part for part in module.objective.modules() if isinstance(part, Supervised)]
    if not heads:
        raise ValueError(
            f"{path} was trained by {type(module.objective).__name__}, which predicts no labels; give a checkpoint of "
            "Supervised (`weightspace fit --config supervised`), or measure the labels with `measure`."
        )
    names: list[str] = []
    values: list[Tensor] = []
    for stack, own in _batches(models, batch_size):
        embedding = embed_stacks(module.encoder, [stack])
        with torch.no_grad():
            values.append(torch.cat([head.predict(embedding) for head in heads], dim=1))
        names += own
    columns = [target.name for head in heads for target in head.targets]
    joined = torch.cat([torch.zeros(0, len(columns)), *values]).numpy()
    return pd.DataFrame(joined, index=pd.Index(names, name="model"), columns=columns)


def measure(
    models: Models, labels: str | Sequence[str], inputs: ArrayLike | Tensor | None = None, *, seed: int = 0
) -> pd.DataFrame:
    """Labels of models (rows), measured: a column for each that `zoo-builder list labels` describes, NaN where it does
    not apply.

    Models are driven by `inputs` (sequences, time, input), else by standard normal noise of `seed`; labels that need a
    task, such as a score, do not apply. Those that a zoo stores are in its `table`.
    """
    import pandas as pd

    from zoo_builder import labels as measured
    from zoo_builder.executor import ROLLOUTS, chosen_method
    from zoo_builder.members import Members

    names = [labels] if isinstance(labels, str) else list(labels)
    for name in names:
        measured.load(name, {})
    recorded = None if inputs is None else torch.as_tensor(inputs, dtype=torch.float32)
    # As zoos are measured: natively, which is many times faster, where there is a compiler.
    method = ROLLOUTS[chosen_method("cpu")]
    frames = []
    for stack, own in _batches(models, BATCH):
        drive = None if recorded is None else _fitting(recorded, stack.family).expand(len(stack), -1, -1, -1)
        members = Members(seed, own, recorded=drive)
        columns = measured.measure(names, stack.family, stack.params, None, members, method)
        values = {name: column.numpy() for name, column in columns.items()}
        frames.append(pd.DataFrame(values, index=pd.Index(own, name="model")))
    return pd.concat(frames) if frames else pd.DataFrame(index=pd.Index([], name="model"))


def to_data(models: Models) -> Any:
    """The graphs of models, a list of torch_geometric Data; of one without an axis its Data alone.

    They are those of `weightspace.graph.to_data`: a node for each unit, an edge for each connection.
    """
    from weightspace import graph

    graphs = []
    for stack, _ in _batches(models, BATCH):
        spec, params = stack.effective
        graphs += [graph.to_data(spec, {key: value[i] for key, value in params.items()}) for i in range(len(stack))]
    return graphs[0] if _is_alone(models) else graphs


def _checkpoint_in(source: str | Path) -> str | Path:
    """The checkpoint in a run folder; anything else stays what it is."""
    for path in (Path(source, "checkpoints", "best.ckpt"), Path(source, "best.ckpt")):
        if path.is_file():
            return path
    return source


def _fitting(recorded: Tensor, family: Family) -> Tensor:
    if recorded.dim() != 3 or 0 in recorded.shape or recorded.shape[2] != family.input_size:
        raise ValueError(
            f"Inputs have shape {tuple(recorded.shape)}, expected (sequences, time, input) with the "
            f"{family.input_size} inputs of the {type(family).__name__}."
        )
    return recorded


def _batches(models: Models, batch_size: int) -> Iterator[Part]:
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


def _is_alone(models: Any) -> bool:
    """Whether these are one model without a models axis."""
    pair = _pair(models)
    if pair is None:
        return isinstance(models, nn.Module)
    family, params = pair
    return all(params[name].dim() == len(family.spec.shape(name)) for name in family.spec.tensors if name in params)


def _pair(models: Any) -> tuple[Family, Params] | None:
    """A family with its params, where models are that."""
    is_pair = isinstance(models, tuple) and len(models) == 2 and isinstance(models[0], Family)
    return models if is_pair else None


def _parts(models: Any) -> Iterator[Part]:
    pair = _pair(models)
    if pair is not None:
        yield _part_of(*pair, is_alone=_is_alone(models))
    elif isinstance(models, str | Path):
        yield from _parts_of_files(Path(models))
    elif isinstance(models, Zoo | Selection):
        yield from _parts_of_zoo(models)
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


def _parts_of_zoo(models: Zoo | Selection) -> Iterator[Part]:
    table = models.table.select(["model_id", "step"]).to_pylist()
    names = [f"{row['model_id']}@{row['step']}" for row in table]
    first = 0
    for stack in models.stacks():
        yield Part(stack, names[first : first + len(stack)])
        first += len(stack)


def _parts_of_files(path: Path) -> Iterator[Part]:
    """Models of a zoo's folder, or of a folder or file of state dicts."""
    from weightspace.exchange.readings import read_models, readings_of

    if any((path / name).is_file() for name in ("zoo.json", "export.json")):
        yield from _parts_of_zoo(open_zoo(path))
        return
    for reading in readings_of(path) if path.is_dir() else read_models(path):
        params = {name: tensor[None] for name, tensor in reading.params.items()}
        yield Part(Stack(reading.family, params, torch.zeros(1, dtype=torch.int64)), [reading.name])
