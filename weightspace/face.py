"""Functions of a notebook: models of any kind embedded, predicted, measured, run and drawn as graphs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from weightspace import store
from weightspace.exchange import opened
from weightspace.families import Family
from weightspace.models import BATCH, Models, batches, is_alone, zoo_of
from weightspace.rollout import rollout
from weightspace.store import Stack

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import ArrayLike, NDArray

    from weightspace.encoders.base import Encoder
    from zoo_builder.members import Members


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
    rows = [embed_stacks(reader, [stack.to(device)]).float().cpu() for stack, _ in batches(models, batch_size)]
    embeddings = torch.cat([torch.zeros(0, reader.embedding_dim), *rows])
    return embeddings[0] if is_alone(models) else embeddings


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
    for stack, own in batches(models, batch_size):
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
    task, such as a score, do not apply. Those that a zoo stores are in its `table`. A `backward` direction reads inputs
    as they stand, too: give it reversed ones, as `zoo-builder import` does.
    """
    import pandas as pd

    from zoo_builder import labels as measured
    from zoo_builder.executor import ROLLOUTS, chosen_method

    names = [labels] if isinstance(labels, str) else list(labels)
    for name in names:
        measured.load(name, {})
    # As zoos are measured: natively, which is many times faster, where there is a compiler.
    method = ROLLOUTS[chosen_method("cpu")]
    frames = []
    for stack, members in _driven(models, inputs, seed):
        columns = measured.measure(names, stack.family, stack.params, None, members, method)
        values = {name: column.numpy() for name, column in columns.items()}
        frames.append(pd.DataFrame(values, index=pd.Index(members.ids, name="model")))
    return pd.concat(frames) if frames else pd.DataFrame(index=pd.Index([], name="model"))


class FixedPoints(NamedTuple):
    """Fixed points of one model, as arrays."""

    points: NDArray[np.float64]
    """States (point, state), those of several names and layers side by side in the order of the declaration."""
    speeds: NDArray[np.float64]
    """||F(h) - h|| at each point (point,), per step: what the search left of it."""
    eigenvalues: NDArray[np.complex128]
    """Eigenvalues (point, state) of the Jacobian dF/dh at each point."""
    stable: NDArray[np.bool_]
    """Whether all eigenvalues are below 1 in absolute value, (point,)."""


def fixed_points(
    models: Models,
    inputs: ArrayLike | Tensor | None = None,
    *,
    held: ArrayLike | Tensor | None = None,
    starts: ArrayLike | Tensor | None = None,
    seed: int = 0,
) -> FixedPoints | list[FixedPoints]:
    """Fixed points h = F(h, x) of models, a list; of one without an axis its points alone.

    They are those that the label FixedPoints counts, found by Newton steps from states driven as in `measure`, for an
    input `held` (input,) that stays the same: silence unless given (Sussillo and Barak, Neural Computation 2013).
    `starts` (start, state) are other states to search from, such as those between memories, where saddles are.
    """
    from zoo_builder.executor import ROLLOUTS, chosen_method
    from zoo_builder.labels import in_parts
    from zoo_builder.labels.fixed_points import locate

    still, others = (None if given is None else torch.as_tensor(given) for given in (held, starts))
    method, found = ROLLOUTS[chosen_method("cpu")], []
    for stack, members in _driven(models, inputs, seed):
        _refuse_misfits(stack.family, still, others)
        for driven in in_parts(stack.family, stack.params, members, method):
            located = locate(driven, still, others)
            columns = (located.points, located.speeds, located.eigenvalues, located.stable)
            for i in range(driven.num_models):
                found.append(FixedPoints(*(column[i][located.chosen[i]].numpy() for column in columns)))
    return found[0] if is_alone(models) else found


def _refuse_misfits(family: Family, held: Tensor | None, starts: Tensor | None) -> None:
    if held is not None and held.shape != (family.input_size,):
        raise ValueError(
            f"`held` has shape {tuple(held.shape)}, expected ({family.input_size},): one input of the "
            f"{type(family).__name__}."
        )
    size = family.spec.state_size
    if starts is not None and (starts.dim() != 2 or starts.shape[1] != size):
        raise ValueError(
            f"`starts` have shape {tuple(starts.shape)}, expected (start, {size}): states of the "
            f"{type(family).__name__} side by side, as `trajectories` has them."
        )


class Trajectories(NamedTuple):
    """Runs of models, arrays (trials, time, channels): lists of one for each model, or those of one without an axis."""

    states: Any
    """States after each step, those of several names and layers side by side in the order of the declaration."""
    inputs: Any
    outputs: Any


def trajectories(models: Models, inputs: ArrayLike | Tensor | None = None, *, seed: int = 0) -> Trajectories:
    """States, inputs and outputs of models, in the shape that `dsa-metric` takes: `DSA(trajectories(models).states)`.

    Models of a zoo run on the sequences of its rollouts, or held-out ones of their task, drawn as a build draws them.
    Others, and all of them where `inputs` (sequences, time, input) are given, run on these, else on standard normal
    noise of `seed`.
    """
    from weightspace.rollout.tangents import flatten
    from zoo_builder import sequences

    zoo = zoo_of(models)
    if zoo is not None and inputs is None:
        shown = sequences.of_zoo(zoo.zoo, zoo.rows)
    else:
        shown = (sequences.without_task(stack, members) for stack, members in _driven(models, inputs, seed))
    columns: tuple[list[Any], ...] = ([], [], [])
    for family, params, x, start, noise in shown:
        ran = rollout(family, params, x, start, noise=noise)
        for column, tensor in zip(columns, (flatten(family, ran.states), x, ran.outputs), strict=True):
            column += [own.transpose(0, 1).contiguous().numpy() for own in tensor]
    return Trajectories(*(column[0] for column in columns) if is_alone(models) else columns)


class Zoo(store.Zoo):
    """A finished zoo, opened for reading, whose models can be run."""

    def trajectories(self, rows: Sequence[int] | None = None) -> Trajectories:
        """States, inputs and outputs of the models of these rows (of all unless given); see `trajectories`."""
        return trajectories(self if rows is None else self[rows])


def build_zoo(
    recipe: str | Path | Mapping[str, Any], out: str | Path, *, seed: int | None = None, workers: int | None = None
) -> Zoo:
    """Build the zoo of a recipe in the folder `out`, or finish it, and open it; one that is there is only opened.

    A recipe is a mapping, a YAML file, or the name of one of `zoo-builder list recipes`; `seed` replaces its own.
    """
    from weightspace.recipes import named
    from zoo_builder.build import build

    build(recipe if isinstance(recipe, Mapping) else named(recipe, "zoo"), out, seed=seed, workers=workers)
    return open_zoo(out)


def open_zoo(source: str | Path) -> Zoo:
    """Open a finished zoo: its folder, or an export of `weightspace export`, a folder or a repository OWNER/NAME.

    Of an export the zoo is made again in a cache, byte for byte, and `path` says where: every command takes that.
    ValueError names the problem and the way out.
    """
    zoo = opened.open_zoo(source)
    return Zoo(zoo.path, zoo.manifest)


def to_data(models: Models) -> Any:
    """The graphs of models, a list of torch_geometric Data; of one without an axis its Data alone.

    They are those of `weightspace.graph.to_data`: a node for each unit, an edge for each connection.
    """
    from weightspace import graph

    graphs = []
    for stack, _ in batches(models, BATCH):
        spec, params = stack.effective
        graphs += [graph.to_data(spec, {key: value[i] for key, value in params.items()}) for i in range(len(stack))]
    return graphs[0] if is_alone(models) else graphs


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


def _driven(models: Models, inputs: ArrayLike | Tensor | None, seed: int) -> Iterator[tuple[Stack, Members]]:
    """Models in their order, a few of one family together, and by name what drives them: inputs, or noise of a seed."""
    from zoo_builder.members import Members

    recorded = None if inputs is None else torch.as_tensor(inputs, dtype=torch.float32)
    for stack, names in batches(models, BATCH):
        drive = None if recorded is None else _fitting(recorded, stack.family).expand(len(stack), -1, -1, -1)
        yield stack, Members(seed, names, recorded=drive)
