"""Usable models of a zoo: those whose numbers can be squared and summed in float32."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from weightspace.data.memory import pairs_of
from weightspace.data.sampling import MAX_PAIRS
from weightspace.store import Stack, Zoo

CHUNK, MAX_STACKED = 4096, 256
MAX_NAMED = 5


def bounded_stacks(zoo: Zoo, rows: np.ndarray) -> Iterator[Stack]:
    """Stacks of these rows (ascending), few models at a time where they are large."""
    for start in range(0, len(rows), CHUNK):
        chunk = rows[start : start + CHUNK]
        shards = np.array([zoo.shard_of(int(row)) for row in chunk])
        for part in np.split(chunk, np.flatnonzero(np.diff(shards)) + 1):
            max_models = 4 * MAX_PAIRS // pairs_of(zoo.family_of(int(part[0])))
            yield from zoo.stacks(part.tolist(), max_models=max(1, min(max_models, MAX_STACKED)))


def unusable(zoo: Zoo, rows: np.ndarray, with_rollouts: bool = False) -> dict[int, str]:
    """Row number -> name of a tensor with NaN, infinity or a square beyond float32, of each unusable row.

    Squares count because encoders measure weights in their root mean square.
    """
    problems: dict[int, str] = {}
    for stack in bounded_stacks(zoo, rows):
        tensors = {**stack.params, **stack.effective[1]}
        if with_rollouts:
            x, outputs = zoo.rollouts(stack.rows.tolist())
            tensors |= {"x of its rollouts": x, "outputs of its rollouts": outputs}
        for name, tensor in tensors.items():
            for index in (~_is_usable(tensor)).nonzero().flatten().tolist():
                problems.setdefault(int(stack.rows[index]), name)
    return problems


def _is_usable(tensor: Tensor) -> Tensor:
    """Whether the numbers (models, ...) of each model can be squared and summed."""
    return torch.isfinite(tensor.reshape(len(tensor), -1).float().square().sum(1))


def named(zoo: Zoo, problems: Mapping[int, str]) -> str:
    """The first few models in words: id, step and unusable tensor."""
    table = zoo.table.select(["model_id", "step"])
    texts = []
    for row, name in islice(sorted(problems.items()), MAX_NAMED):
        model_id, step = (column[row].as_py() for column in table.columns)
        texts.append(f"{model_id} at step {step} ('{name}')")
    return ", ".join(texts) + (", ..." if len(problems) > MAX_NAMED else "")
