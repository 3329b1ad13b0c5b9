"""Batches of models from a zoo on disk, for Lightning."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from weightspace.augment import Augmentation
from weightspace.batch import Batch, Training
from weightspace.discovery import near_match
from weightspace.sampling import EpochSampler, Neighbours, OrderedSampler, Request, derive_key
from weightspace.store import SplitName, Stack, Zoo, divide, open_zoo, recorded_split, split_title
from weightspace.targets import Labels, Target, read_labels

STATUSES = ("ok", "diverged", "untrained")


class ZooDataModule(pl.LightningDataModule):
    """Train, validation and test rows of a zoo, as its columns say for `split` (see `store.SPLITS`).

    A split with folds needs `fold`, the one that is held out. Rows whose status is not among `statuses` are
    neither trained on nor evaluated, but `predict` embeds every row.
    `augment` changes training stacks only. A batch is `groups_per_batch` stacks, each of one shard: nothing is padded.
    """

    def __init__(
        self,
        zoo: str | Path,
        batch_size: int = 64,
        groups_per_batch: int = 4,
        seed: int = 0,
        augment: Sequence[Augmentation] = (),
        statuses: Sequence[str] = ("ok", "untrained"),
        num_workers: int = 0,
        cache_mb: int = 512,
        split: SplitName = "in_distribution",
        fold: int | None = None,
    ) -> None:
        super().__init__()
        for status in statuses:
            if status not in STATUSES:
                raise ValueError(f"No status is called '{status}'; there are {STATUSES}.{near_match(status, STATUSES)}")
        self.zoo: Zoo = open_zoo(Path(zoo))
        self.batch_size, self.groups_per_batch, self.seed = batch_size, groups_per_batch, seed
        self.augment, self.statuses, self.num_workers = list(augment), tuple(statuses), num_workers
        self.cache_bytes = cache_mb * 2**20
        table = self.zoo.table
        self.division = divide(table, split, fold)
        self._used = np.isin(np.array(table.column("status").to_pylist(), dtype=object), self.statuses)
        self._shards = table.column("shard").to_numpy()
        self._source: ZooBatches | None = None

    def rows(self, part: Literal["train", "val", "test"]) -> np.ndarray:
        """Row numbers of a part of the division that take part."""
        return np.flatnonzero(self._used & getattr(self.division, part))

    def refuse_other_than(self, known: tuple[str, int | None]) -> None:
        """Raise ValueError unless the rows are divided for the split and fold that an encoder was trained for."""
        if recorded_split(self.division.record) != known:
            options = f"--data.split {known[0]}" + (f" --data.fold {known[1]}" if known[1] is not None else "")
            raise ValueError(
                f"The encoder was trained for {split_title(*known)}, but the rows are divided for "
                f"{self.division.name}, whose held-out rows it may have seen; give `{options}`, or train another."
            )

    def serve(self, targets: Sequence[Target] = (), with_rollouts: bool = False, with_neighbours: bool = False) -> None:
        """Get ready for an objective that asks for these targets, for stored rollouts, for neighbouring snapshots."""
        if not len(self.rows("train")):
            raise ValueError(
                f"The zoo {self.zoo.path} has no training rows with status {self.statuses} for {self.division.name}."
            )
        labels = read_labels(self.zoo.table, targets, self._used & self.division.train)
        columns = (self.zoo.table.column(name).to_numpy(zero_copy_only=False) for name in ("model_id", "step", "shard"))
        neighbours = Neighbours(*columns, used=self._used) if with_neighbours else None
        self._source = ZooBatches(self.zoo, labels, with_rollouts, self.cache_bytes, neighbours=neighbours)

    def training_stacks(self) -> Iterator[Stack]:
        """Stacks of the training rows, a chunk at a time, for scales that are learned once."""
        rows = self.rows("train")
        for start in range(0, len(rows), 4096):
            yield from self.zoo.stacks(rows[start : start + 4096].tolist())

    def training(self) -> Training:
        """What the objective may learn its scales from."""
        labels, rows = self._served().labels, self.rows("train")
        used = np.concatenate([rows, self.rows("val")])
        texts = self.zoo.table.column("family_config").take(used).unique().to_pylist()
        configs = [json.loads(text) for text in texts]
        return Training(
            targets=torch.from_numpy(labels.values[rows]),
            cell_means=torch.from_numpy(labels.cell_means[rows]),
            input_size=max(config["input_size"] for config in configs),
            output_size=max(config["output_size"] for config in configs),
            stacks=self.training_stacks(),
        )

    def train_dataloader(self) -> DataLoader:
        """Batches of training rows in the order of (seed, epoch)."""
        rows = self.rows("train")
        sampler = EpochSampler(
            rows,
            self._shards[rows],
            _codes(self.zoo.table, rows),
            batch_size=self.batch_size,
            groups_per_batch=self.groups_per_batch,
            seed=self.seed,
            **self._place(),
        )
        return self._loader(self._served().augmented(self.augment), sampler)

    def val_dataloader(self) -> DataLoader:
        """Validation rows in ascending order."""
        return self._ordered(self.rows("val"))

    def test_dataloader(self) -> DataLoader:
        """Test rows in ascending order."""
        return self._ordered(self.rows("test"))

    def predict_dataloader(self) -> DataLoader:
        """Every row of the zoo in ascending order, whatever its split and status."""
        return self._ordered(np.arange(self.zoo.table.num_rows))

    def _ordered(self, rows: np.ndarray) -> DataLoader:
        sampler = OrderedSampler(
            rows,
            self._shards[rows],
            batch_size=self.batch_size,
            groups_per_batch=self.groups_per_batch,
            **self._place(),
        )
        return self._loader(self._served(), sampler)

    def _loader(self, source: ZooBatches, sampler: EpochSampler | OrderedSampler) -> DataLoader:
        # A sampler of whole batches, given by keyword, is what Lightning neither replaces in `predict` nor repeats.
        return DataLoader(
            dataset=source,
            sampler=sampler,
            batch_size=None,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )

    def _place(self) -> dict[str, int]:
        """This process among those that train together."""
        if self.trainer is None:
            return {"rank": 0, "world_size": 1}
        return {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}

    def _served(self) -> ZooBatches:
        if self._source is None:
            raise ValueError("The data module does not know what to serve; call `serve(targets, with_rollouts)` first.")
        return self._source


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


def _codes(table, rows: np.ndarray) -> np.ndarray:
    """Cohort code (rows): models of one family config and one task class."""
    columns = [table.column(name).to_pylist() for name in ("family", "family_config", "task")]
    numbers: dict[tuple, int] = {}
    codes = [numbers.setdefault(key, len(numbers)) for key in zip(*columns, strict=True)]
    return np.array(codes, dtype=np.int64)[rows]


def _output_layouts(zoo: Zoo) -> list[tuple[str, int | None]]:
    """What each row's outputs are and how many classes a head has (None: one head), as the manifest says of its task.

    Categorical with one head where it says nothing.
    """
    layouts = {}
    for name, task in zoo.manifest.get("tasks", {}).items():
        layouts[name] = (task["output_kind"], task.get("classes_per_head"))
    return [layouts.get(task, ("categorical", None)) for task in zoo.table.column("task").to_pylist()]
