"""Batches of models from a zoo on disk, for Lightning."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import lightning.pytorch as pl
import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import DataLoader

from weightspace.components.discovery import refuse_unknown_name
from weightspace.data.augment import Augmentation
from weightspace.data.batch import Batch, Training
from weightspace.data.loading import ZooBatches
from weightspace.data.memory import pairs_of
from weightspace.data.sampling import EpochSampler, Neighbours, OrderedSampler, batch_limits
from weightspace.data.targets import Target, read_labels
from weightspace.data.usable import bounded_stacks, named, unusable
from weightspace.exchange.opened import open_zoo
from weightspace.families import Family
from weightspace.store import SplitName, Stack, Zoo, codes, divide, recorded_split, split_title

logger = logging.getLogger(__name__)

STATUSES = ("ok", "diverged", "untrained")
Part = Literal["train", "val", "test"]
STAGES: dict[str, tuple[Part, ...]] = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}
"""Parts of the rows that each stage of Lightning uses; other stages use every row."""


class ZooDataModule(pl.LightningDataModule):
    """Train, validation and test rows of a zoo, by its columns for `split` (see `store.SPLITS`).

    A split with folds needs `fold`, the fold that is held out. Rows of other `statuses`, and models whose weights are
    not finite, are neither trained on nor evaluated; `predict` embeds every row.
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
        batch_limits(batch_size, groups_per_batch, np.ones(0))
        for status in statuses:
            refuse_unknown_name("status", status, STATUSES)
        self.zoo: Zoo = open_zoo(zoo)
        self.batch_size, self.groups_per_batch, self.seed = batch_size, groups_per_batch, seed
        self.augment, self.statuses, self.num_workers = list(augment), tuple(statuses), num_workers
        self.cache_bytes = cache_mb * 2**20
        table = self.zoo.table
        self.division = divide(table, split, fold)
        self._used = np.isin(np.array(table.column("status").to_pylist(), dtype=object), self.statuses)
        self._shards = table.column("shard").to_numpy()
        shards, first = np.unique(self._shards, return_index=True)
        costs = np.array([pairs_of(self.zoo.family_of(int(row))) for row in first], dtype=np.int64)
        self._costs = costs[np.searchsorted(shards, self._shards)]
        self._checked: set[bool] = set()
        self._source: ZooBatches | None = None

    def rows(self, part: Part) -> np.ndarray:
        """Row numbers of a part of the division, without rows of other statuses and unusable ones."""
        return np.flatnonzero(self._used & getattr(self.division, part))

    def refuse_other_than(self, trained: tuple[str, int | None]) -> None:
        """Raise ValueError unless the rows are divided for this split and fold, those of an encoder's training."""
        if recorded_split(self.division.record) != trained:
            options = f"--data.split {trained[0]}" + (f" --data.fold {trained[1]}" if trained[1] is not None else "")
            raise ValueError(
                f"The encoder was trained for {split_title(*trained)}, but the rows are divided for "
                f"{self.division.name}, whose held-out rows it may have seen; give `{options}`, or train another."
            )

    def serve(self, targets: Sequence[Target] = (), with_rollouts: bool = False, with_neighbours: bool = False) -> None:
        """Prepare batches with these targets and, if requested, stored rollouts and neighbouring snapshots."""
        self._leave_out_unusable(with_rollouts)
        labels = read_labels(self.zoo.table, targets, self._used & self.division.train, self.zoo.path)
        columns = (self.zoo.table.column(name).to_numpy(zero_copy_only=False) for name in ("model_id", "step", "shard"))
        neighbours = Neighbours(*columns, used=self._used) if with_neighbours else None
        self._source = ZooBatches(self.zoo, labels, with_rollouts, self.cache_bytes, neighbours=neighbours)

    def _leave_out_unusable(self, with_rollouts: bool) -> None:
        """Leave out models whose numbers would make every loss NaN, with a warning that names them."""
        if with_rollouts in self._checked:
            return
        self._checked.add(with_rollouts)
        part = self._used & (self.division.train | self.division.val | self.division.test)
        problems = unusable(self.zoo, np.flatnonzero(part), with_rollouts)
        if problems:
            self._used[list(problems)] = False
            logger.warning(
                "%d of %d rows are left out, because their numbers are not finite or too large for float32: %s.",
                len(problems), int(part.sum()), named(self.zoo, problems),
            )  # fmt: skip

    def refuse_unusable(self) -> None:
        """Raise ValueError if the weights of a row are not finite or too large, so that it has no embedding."""
        problems = unusable(self.zoo, np.arange(self.zoo.num_rows))
        if problems:
            raise ValueError(
                f"{len(problems)} of {self.zoo.num_rows} rows have no embedding, because their weights are not finite "
                f"or too large for float32: {named(self.zoo, problems)}; repair them, or make a zoo without them "
                f"(`zoo-builder verify {self.zoo.path}` tells whether its bytes are as promised)."
            )

    def rows_for(self, stage: str) -> np.ndarray:
        """Row numbers that a stage of Lightning uses; ValueError if it needs a part that the zoo lacks."""
        # A stage of Lightning is a StrEnum, whose str is not the plain text.
        stage, names = stage[:], {"train": "training", "val": "validation", "test": "test"}
        for part in STAGES.get(stage, ()):
            if not len(self.rows(part)):
                raise ValueError(
                    f"The zoo {self.zoo.path} has no {names[part]} rows with status {self.statuses} for "
                    f"{self.division.name}, which `{stage}` needs; build it with `splits: {{val: 0.1, ...}}`."
                )
        if stage not in STAGES:
            return np.arange(self.zoo.num_rows)
        return np.concatenate([self.rows(part) for part in STAGES[stage]])

    def families(self, rows: np.ndarray) -> list[Family]:
        """Family, at its size, of each shard of these rows."""
        first = np.unique(self._shards[rows], return_index=True)[1]
        return [self.zoo.family_of(int(row)) for row in rows[first]]

    def training_stacks(self) -> Iterator[Stack]:
        """Stacks of the training rows, a chunk at a time, on which scales are fitted."""
        return bounded_stacks(self.zoo, self.rows("train"))

    def training(self) -> Training:
        """The data that the objective fits its scales on."""
        labels, rows = self._served().labels, self.rows("train")
        train_and_val = np.concatenate([rows, self.rows("val")])
        texts = self.zoo.table.column("family_config").take(train_and_val).unique().to_pylist()
        configs = [json.loads(text) for text in texts]
        return Training(
            targets=torch.from_numpy(labels.values[rows]),
            cell_means=torch.from_numpy(labels.cell_means[rows]),
            input_size=max(config["input_size"] for config in configs),
            output_size=max(config["output_size"] for config in configs),
            stacks=_TrainingStacks(self),
        )

    def train_dataloader(self) -> DataLoader[Batch]:
        """Batches of training rows in the order of (seed, epoch)."""
        rows = self.rows("train")
        sampler = EpochSampler(
            rows,
            self._shards[rows],
            _cohort_codes(self.zoo.table, rows),
            costs=self._costs[rows],
            batch_size=self.batch_size,
            groups_per_batch=self.groups_per_batch,
            seed=self.seed,
            **self._rank(),
        )
        return self._loader(self._served().augmented(self.augment), sampler)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Validation rows in ascending order."""
        return self._ordered(self.rows("val"))

    def test_dataloader(self) -> DataLoader[Batch]:
        """Test rows in ascending order."""
        return self._ordered(self.rows("test"))

    def predict_dataloader(self) -> DataLoader[Batch]:
        """Every row of the zoo in ascending order, of every split and status."""
        return self._ordered(np.arange(self.zoo.table.num_rows))

    def _ordered(self, rows: np.ndarray) -> DataLoader[Batch]:
        sampler = OrderedSampler(
            rows,
            self._shards[rows],
            costs=self._costs[rows],
            batch_size=self.batch_size,
            groups_per_batch=self.groups_per_batch,
            **self._rank(),
        )
        return self._loader(self._served(), sampler)

    def _loader(self, source: ZooBatches, sampler: EpochSampler | OrderedSampler) -> DataLoader[Batch]:
        # Lightning replaces batch samplers in `predict`, but not a `sampler` of whole batches passed by keyword.
        return DataLoader(
            dataset=source,
            sampler=sampler,
            batch_size=None,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )

    def _rank(self) -> dict[str, int]:
        """Rank of this process and number of processes of a distributed training."""
        if self.trainer is None:
            return {"rank": 0, "world_size": 1}
        return {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}

    def _served(self) -> ZooBatches:
        if self._source is None:
            raise ValueError("The data module does not know what to serve; call `serve(targets, with_rollouts)` first.")
        return self._source


class _TrainingStacks:
    """The training rows of a data module, read again each time they are gone through."""

    def __init__(self, data: ZooDataModule) -> None:
        self._data = data

    def __iter__(self) -> Iterator[Stack]:
        return self._data.training_stacks()


def _cohort_codes(table: pa.Table, rows: np.ndarray) -> np.ndarray:
    """Cohort code (rows): models of one family config and one task class."""
    columns = [table.column(name).to_pylist() for name in ("family", "family_config", "task")]
    cohorts: np.ndarray = codes(zip(*columns, strict=True))[rows]
    return cohorts
