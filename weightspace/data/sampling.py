"""Which rows make up which batch: pure functions of (seed, epoch), so that a resumed run sees the same batches."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Sampler

from weightspace.rollout.streams import derive_key


@dataclass(frozen=True)
class Request:
    """One batch to load: groups of row numbers, each group of one shard, and the key of its random draws."""

    groups: tuple[tuple[int, ...], ...]
    key: int = 0


MAX_PAIRS = 2**20
"""Largest number of pairs of nodes (summed over the models) of a batch of more than one model: encoders hold a few
hundred bytes for each pair, and several times as many while they learn. A model of 512 units has 270,000."""


def batch_limits(batch_size: int, groups_per_batch: int, costs: np.ndarray) -> tuple[int, np.ndarray]:
    """Groups of a batch, and for each row the models of the largest group it may be in, by costs (rows,) in pairs."""
    if batch_size < 1 or groups_per_batch < 1:
        raise ValueError(
            f"`batch_size` (={batch_size}) and `groups_per_batch` (={groups_per_batch}) must be at least 1."
        )
    groups = min(groups_per_batch, batch_size, max(1, MAX_PAIRS // int(costs.max(initial=1))))
    return groups, np.clip(MAX_PAIRS // groups // np.maximum(costs, 1), 1, batch_size // groups)


class EpochSampler(Sampler[Request]):
    """Training batches: every row once an epoch, in groups of one shard, a batch's groups spread over cohorts.

    rows, shards, cohorts, costs (rows,) describe the training rows; all rows of a shard cost the same, and batches of
    models that cost much hold fewer of them (see `batch_limits`). Batch i of epoch e is a pure function of (seed, e, i)
    and of the rows; rank r of w takes batches r, r + w, ... and all ranks take equally many.
    """

    def __init__(
        self,
        rows: np.ndarray,
        shards: np.ndarray,
        cohorts: np.ndarray,
        *,
        costs: np.ndarray | None = None,
        batch_size: int,
        groups_per_batch: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.rows, self.shards, self.cohorts = rows, shards, cohorts
        costs = np.ones(len(rows), dtype=np.int64) if costs is None else costs
        self.groups_per_batch, self.group_sizes = batch_limits(batch_size, groups_per_batch, costs)
        self.seed, self.rank, self.world_size, self.epoch = seed, rank, world_size, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose batches the next iteration yields; Lightning calls this."""
        self.epoch = epoch

    def __len__(self) -> int:
        _, first, counts = np.unique(self.shards, return_index=True, return_counts=True)
        groups = int(np.ceil(counts / self.group_sizes[first]).sum())
        return math.ceil(math.ceil(groups / self.groups_per_batch) / self.world_size)

    def __iter__(self) -> Iterator[Request]:
        generator = np.random.default_rng(derive_key(self.seed, "order", self.epoch))
        groups = self._spread(self._groups(generator), generator)
        starts = range(0, len(groups), self.groups_per_batch)
        batches = [groups[start : start + self.groups_per_batch] for start in starts]
        # Ranks must take equally many steps, or those with one more wait for the others for ever.
        for number in range(self.rank, len(self) * self.world_size, self.world_size):
            key = derive_key(self.seed, "batch", self.epoch, number)
            yield Request(tuple(batches[number % len(batches)]), key)

    def _groups(self, generator: np.random.Generator) -> dict[int, list[tuple[int, ...]]]:
        """Cohort -> groups of its rows in random order, each within one shard and as even as can be."""
        groups: dict[int, list[tuple[int, ...]]] = {}
        for shard in np.unique(self.shards):
            members = generator.permutation(np.flatnonzero(self.shards == shard))
            count = math.ceil(len(members) / self.group_sizes[members[0]])
            cohort = int(self.cohorts[members[0]])
            for part in np.array_split(members, count):
                groups.setdefault(cohort, []).append(tuple(np.sort(self.rows[part]).tolist()))
        return groups

    def _spread(
        self, groups: dict[int, list[tuple[int, ...]]], generator: np.random.Generator
    ) -> list[tuple[int, ...]]:
        """All groups in an order in which each cohort is spread evenly over the epoch."""
        places, ordered = [], []
        for members in groups.values():
            shuffled = [members[i] for i in generator.permutation(len(members))]
            places.append((np.arange(len(members)) + generator.random()) / len(members))
            ordered.extend(shuffled)
        order = np.argsort(np.concatenate(places), kind="stable")
        return [ordered[i] for i in order]


class OrderedSampler(Sampler[Request]):
    """Evaluation batches: rows ascending, each once, in groups of one shard; ranks take turns.

    Ranks take whole batches, so that each batch is the one a single process would see, to the last bit of its
    embeddings; only where there are fewer batches than ranks is each group a batch.
    """

    def __init__(
        self,
        rows: np.ndarray,
        shards: np.ndarray,
        *,
        costs: np.ndarray | None = None,
        batch_size: int,
        groups_per_batch: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        costs = np.ones(len(rows), dtype=np.int64) if costs is None else costs
        groups_per_batch, sizes = batch_limits(batch_size, groups_per_batch, costs)
        groups = list(_runs(rows, shards, sizes))
        starts = range(0, len(groups), groups_per_batch)
        batches = [groups[start : start + groups_per_batch] for start in starts]
        if len(batches) < world_size:
            batches = [[group] for group in groups]
        if 0 < len(batches) < world_size:
            # A rank without a batch would end its epoch while the others wait for it for ever.
            raise ValueError(
                f"{len(rows)} rows make {len(batches)} batches, too few for {world_size} devices; use fewer devices or "
                f"a smaller `batch_size` (={batch_size})."
            )
        self.requests = [Request(tuple(batch)) for batch in batches[rank::world_size]]

    def __len__(self) -> int:
        return len(self.requests)

    def __iter__(self) -> Iterator[Request]:
        return iter(self.requests)


def _runs(rows: np.ndarray, shards: np.ndarray, sizes: np.ndarray) -> Iterator[tuple[int, ...]]:
    """Rows in order, cut wherever the shard changes and into pieces of at most the size (rows,) of their first."""
    order = np.argsort(rows)
    rows, shards, sizes = rows[order], shards[order], sizes[order]
    for run in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(shards)) + 1):
        size = int(sizes[run[0]]) if len(run) else 1
        for start in range(0, len(run), size):
            yield tuple(rows[run[start : start + size]].tolist())


class Neighbours:
    """The snapshots just before and just after each row in the training of its model, among the rows that take part.

    model_ids, steps, shards, used (rows,) describe the table. `models` (rows,) are numbers that the snapshots of one
    model share; `sides` (rows, before and after) are row numbers, a row's own where there is no such snapshot.
    """

    def __init__(self, model_ids: np.ndarray, steps: np.ndarray, shards: np.ndarray, *, used: np.ndarray) -> None:
        self.models = np.unique(model_ids, return_inverse=True)[1].astype(np.int64)
        rows = np.flatnonzero(used)
        order = rows[np.lexsort((steps[rows], self.models[rows]))]
        before, after = order[:-1], order[1:]
        # Stacks are of one shard, and so are the snapshots of a model.
        adjacent = (self.models[before] == self.models[after]) & (shards[before] == shards[after])
        if not adjacent.any():
            raise ValueError(
                "No model of the zoo has two snapshots that take part, so there are no neighbours to learn from; build "
                "it with more `snapshots`, or train with `neighbours: false` and `views`."
            )
        self.sides = np.stack([np.arange(len(model_ids))] * 2, axis=1)
        self.sides[after[adjacent], 0] = before[adjacent]
        self.sides[before[adjacent], 1] = after[adjacent]

    def draw(self, request: Request) -> list[tuple[int, ...]]:
        """Per group one neighbour of each row: the one before or after by a fair coin, the other where there is one."""
        generator = np.random.default_rng(derive_key(request.key, "neighbours"))
        drawn = []
        for group in request.groups:
            rows = np.array(group)
            side = generator.integers(2, size=len(rows))
            first, second = self.sides[rows, side], self.sides[rows, 1 - side]
            drawn.append(tuple(np.where(first != rows, first, second).tolist()))
        return drawn
