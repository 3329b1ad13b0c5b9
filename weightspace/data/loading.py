"""Batches read from the shards of a zoo, with a cache of whole shards in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from weightspace.data.augment import Augmentation
from weightspace.data.batch import Batch
from weightspace.data.sampling import Neighbours, Request
from weightspace.data.targets import Labels
from weightspace.rollout.streams import derive_key
from weightspace.store import Stack, Zoo, cell_codes


class Loaded(NamedTuple):
    """Models of one shard, and their stored inputs and outputs if requested (see `Zoo.rollouts`)."""

    stack: Stack
    rollouts: tuple[Tensor, Tensor] | None


class OutputLayout(NamedTuple):
    """Kind of a task's outputs ("categorical" or "continuous"), and logits per head if there are several heads."""

    kind: str
    classes_per_head: int | None


class ZooBatches(Dataset[Batch]):
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
        stacks = self._transformed([part.stack for part in loaded], request.key)
        neighbours = self.neighbours.draw(request) if self.neighbours else []
        rows = torch.tensor([row for group in request.groups for row in group])
        return Batch(
            stacks=stacks,
            rows=rows,
            targets=self._targets[rows],
            cell_means=self._cell_means[rows],
            rollouts=[part.rollouts for part in loaded if part.rollouts is not None],
            output_kinds=[self._layouts[group[0]].kind for group in request.groups],
            classes_per_head=[self._layouts[group[0]].classes_per_head for group in request.groups],
            neighbours=self._transformed(
                [self._cache.load(group).stack for group in neighbours], derive_key(request.key, "near")
            ),
            models=torch.from_numpy(self.neighbours.models)[rows] if self.neighbours else None,
            cells=self._cells[rows],
            key=request.key,
        )

    def _transformed(self, stacks: list[Stack], key: int) -> list[Stack]:
        for index, transform in enumerate(self.augment):
            transform.reseed(derive_key(key, index))
            stacks = [transform(stack) for stack in stacks]
        return stacks


class _Cache:
    """Cache of whole shards up to a bound; other shards are read from their mapped files each time."""

    def __init__(self, zoo: Zoo, shards: np.ndarray, with_rollouts: bool, cache_bytes: int) -> None:
        self.zoo, self.shards, self.with_rollouts, self.bytes_left = zoo, shards, with_rollouts, cache_bytes
        self._kept: dict[int, Loaded] = {}

    def load(self, rows: Sequence[int]) -> Loaded:
        """Stack and rollouts of rows of one shard."""
        shard = int(self.shards[rows[0]])
        if shard not in self._kept and self.bytes_left > 0:
            self._keep(shard)
        if shard not in self._kept:
            return self._read(rows)
        stack, rollouts = self._kept[shard]
        # Rows of a kept shard are consecutive.
        index = torch.tensor(rows) - int(stack.rows[0])
        params = {name: tensor.index_select(0, index) for name, tensor in stack.params.items()}
        if rollouts is not None:
            rollouts = rollouts[0].index_select(0, index), rollouts[1].index_select(0, index)
        return Loaded(replace(stack, params=params, rows=stack.rows.index_select(0, index)), rollouts)

    def _read(self, rows: Sequence[int]) -> Loaded:
        # Evaluation runs in inference mode, but cached tensors are also used in training.
        with torch.inference_mode(False):
            rollouts = self.zoo.rollouts(list(rows)) if self.with_rollouts else None
            return Loaded(self.zoo.stack(list(rows)), rollouts)

    def _keep(self, shard: int) -> None:
        members = np.flatnonzero(self.shards == shard)
        assert members[-1] - members[0] + 1 == len(members)
        loaded = self._read(members.tolist())
        tensors = [*loaded.stack.params.values(), *(loaded.rollouts or ())]
        size = sum(tensor.nbytes for tensor in tensors)
        if size <= self.bytes_left:
            self.bytes_left -= size
            self._kept[shard] = loaded
        else:
            self.bytes_left = 0


def _output_layouts(zoo: Zoo) -> list[OutputLayout]:
    """The output layout of each row's task in the manifest.

    Tasks that the manifest does not describe are categorical with one head.
    """
    layouts = {}
    for name, task in zoo.manifest.get("tasks", {}).items():
        layouts[name] = OutputLayout(task["output_kind"], task.get("classes_per_head"))
    return [layouts.get(task, OutputLayout("categorical", None)) for task in zoo.table.column("task").to_pylist()]
