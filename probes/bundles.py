"""Columns that no training row has together, packed into one: trees then look at the columns of a single family."""

from __future__ import annotations

import numpy as np

ROWS = 256
"""Bytes of eight rows each that are compared at a time."""


class Bundles:
    """Exclusive feature bundling (Ke et al., LightGBM, NeurIPS 2017) of columns that are 0 where a model lacks them.

    A column keeps its order and its sign: it is divided by the root mean square of its values other than 0. Columns of
    one value beside 0, which say that a model has something, stay alone; those that are constant are left out.
    """

    def __init__(self, values: np.ndarray) -> None:
        """Bundles of the columns of training rows, `values` (rows, columns)."""
        has, peak = values != 0, np.abs(values).max(axis=0)
        shares = np.square(values / np.where(peak > 0, peak, 1.0)).sum(axis=0) / np.maximum(has.sum(axis=0), 1)
        self.scale = peak * np.sqrt(shares)
        self.members: list[np.ndarray] = []
        varying = np.flatnonzero(np.ptp(values, axis=0) > 0)
        alone = np.array([_is_flag(values[has[:, column], column]) for column in varying], dtype=bool)
        self.members += [np.array([column]) for column in varying[alone]]
        self.members += exclusive(has, varying[~alone])
        # Trees need a column, be it one that is 0 everywhere.
        self.members = self.members or [varying]

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Bundled columns (rows, bundles) of `values` (rows, columns); of two in one bundle the first is kept."""
        packed = np.zeros((len(values), len(self.members)))
        for bundle, columns in enumerate(self.members):
            # From the last to the first, so that the first stays where a new kind of row has several.
            for column in columns[::-1]:
                rows = values[:, column] != 0
                packed[rows, bundle] = values[rows, column] / self.scale[column]
        return packed


def exclusive(has: np.ndarray, columns: np.ndarray) -> list[np.ndarray]:
    """Groups of `columns` such that no row of the mask `has` (rows, all columns) has two of a group, by first fit."""
    patterns, kind = np.unique(np.packbits(has[:, columns], axis=0), axis=1, return_inverse=True)
    conflicts = np.zeros((patterns.shape[1],) * 2, dtype=bool)
    for part in np.array_split(patterns, 1 + len(patterns) // ROWS):
        mask = np.unpackbits(part, axis=0).astype(np.float32)
        conflicts |= mask.T @ mask > 0
    groups: list[list[int]] = []
    blocked = np.zeros((len(columns), patterns.shape[1]), dtype=bool)
    for column, pattern in zip(columns.tolist(), kind.reshape(-1).tolist(), strict=True):
        group = int(np.argmin(blocked[: len(groups) + 1, pattern]))
        if group == len(groups):
            groups.append([])
        groups[group].append(column)
        blocked[group] |= conflicts[pattern]
    return [np.array(group) for group in groups]


def _is_flag(present: np.ndarray) -> bool:
    """Whether the values other than 0 are all one."""
    return bool(np.ptp(present) == 0)
