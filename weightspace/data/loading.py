"""Batches read from the shards of a zoo, which are kept in memory where they fit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from weightspace.data.augment import Augmentation
from weightspace.data.batch import Batch
from weightspace.data.sampling import Neighbours, Request, derive_key
from weightspace.data.targets import Labels, cell_codes
from weightspace.store import Stack, Zoo


class ZooBatches(Dataset):
    """Loads the batch of a request; shards are decoded once and kept while `cache_bytes` allows."""

    def __init__(
        self,
        zoo: Zoo,
        labels: Labels,
        with_rollouts: bool,
        cache_bytes: int,
        augment: Sequence[Augmentation] = (),
        neighbours: Neighbours | None = None,
    ) -> None:
        self.zoo, self.labels, self.with_rollouts, self.augment = zoo, labels, with_rollouts, augment
        self.neighbours = neighbours
        self._targets = torch.from_numpy(labels.values).float()
        self._cell_means = torch.from_numpy(labels.cell_means).float()
        self._cells = torch.from_numpy(cell_codes(zoo.table))
        self._layouts = _output_layouts(zoo)
        self._shards = zoo.table.column("shard").to_numpy()
        self._cache = _Cache(zoo, self._shards, with_rollouts, cache_bytes)

    def augmented(self, augment: Sequence[Augmentation]) -> ZooBatches:
        """The same batches with their stacks transformed, sharing the cache."""
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        twin.augment = augment
        return twin

    def __getitem__(self, request: Request) -> Batch:
        """The batch of a request, transformed with the draws of its key."""
        loaded = [self._cache.load(group) for group in request.groups]
        stacks = self._transformed([stack for stack, _ in loaded], request.key)
        near = self.neighbours.draw(request) if self.neighbours else []
        rows = torch.tensor([row for group in request.groups for row in group])
        return Batch(
            stacks=stacks,
            rows=rows,
            targets=self._targets[rows],
            cell_means=self._cell_means[rows],
            rollouts=[rollouts for _, rollouts in loaded if rollouts is not None],
            output_kinds=[self._layouts[group[0]][0] for group in request.groups],
            classes_per_head=[self._layouts[group[0]][1] for group in request.groups],
            neighbours=self._transformed(
                [self._cache.load(group)[0] for group in near], derive_key(request.key, "near")
            ),
            models=torch.from_numpy(self.neighbours.models)[rows] if self.neighbours else None,
            cells=self._cells[rows],
            key=request.key,
        )

    def _transformed(self, stacks: list[Stack], key: int) -> list[Stack]:
        for place, transform in enumerate(self.augment):
            transform.reseed(derive_key(key, place))
            stacks = [transform(stack) for stack in stacks]
        return stacks


class _Cache:
    """Whole shards in memory up to a bound; what does not fit is read from its mapped file each time."""

    def __init__(self, zoo: Zoo, shards: np.ndarray, with_rollouts: bool, cache_bytes: int) -> None:
        self.zoo, self.shards, self.with_rollouts, self.left = zoo, shards, with_rollouts, cache_bytes
        self._kept: dict[int, tuple[Stack, tuple[Tensor, Tensor] | None, int]] = {}

    def load(self, rows: Sequence[int]) -> tuple[Stack, tuple[Tensor, Tensor] | None]:
        """Stack and rollouts of rows of one shard."""
        shard = int(self.shards[rows[0]])
        if shard not in self._kept and self.left > 0:
            self._keep(shard)
        if shard not in self._kept:
            return self._read(rows)
        stack, rollouts, first = self._kept[shard]
        index = torch.tensor(rows) - first
        params = {name: tensor.index_select(0, index) for name, tensor in stack.params.items()}
        chosen = None if rollouts is None else (rollouts[0].index_select(0, index), rollouts[1].index_select(0, index))
        return Stack(family=stack.family, params=params, rows=stack.rows.index_select(0, index)), chosen

    def _read(self, rows: Sequence[int]) -> tuple[Stack, tuple[Tensor, Tensor] | None]:
        # Evaluating is in inference mode, and what is kept from it must do for training.
        with torch.inference_mode(False):
            return self.zoo.stack(list(rows)), self.zoo.rollouts(list(rows)) if self.with_rollouts else None

    def _keep(self, shard: int) -> None:
        members = np.flatnonzero(self.shards == shard)
        # Positions are taken relative to the first row, which holds because a shard's rows follow each other.
        assert members[-1] - members[0] + 1 == len(members)
        stack, rollouts = self._read(members.tolist())
        tensors = [*stack.params.values(), *(rollouts or ())]
        size = sum(tensor.nbytes for tensor in tensors)
        if size <= self.left:
            self.left -= size
            self._kept[shard] = (stack, rollouts, int(members[0]))
        else:
            self.left = 0


def _output_layouts(zoo: Zoo) -> list[tuple[str, int | None]]:
    """What each row's outputs are and how many classes a head has (None: one head), as the manifest says of its task.

    Categorical with one head where it says nothing.
    """
    layouts = {}
    for name, task in zoo.manifest.get("tasks", {}).items():
        layouts[name] = (task["output_kind"], task.get("classes_per_head"))
    return [layouts.get(task, ("categorical", None)) for task in zoo.table.column("task").to_pylist()]
