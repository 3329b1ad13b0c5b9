"""How many models are computed together: a matter of the device and of the plan, never of what else is to be done."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from weightspace.spec import Params
from zoo_builder.planning.plan import Cohort, Plan

STACK = 64
"""Number of models that are computed together on the CPU: what its cache likes."""
# Vectorised loops treat the last elements of a tensor (up to 32) unlike the others, with other bits in sigmoid or
# softplus. In stacks of a multiple of 32 models no model has such elements, so bits do not depend on the neighbours.
MULTIPLE = 32
CUDA_STACK = 1024
"""Number of models that learn together on CUDA, where a stack takes hardly longer than a model."""
CUDA_CHUNK = 256
"""Number of models that are labelled and rolled out together on CUDA, all snapshots of each at once."""
CUDA_MEMORY = 8 * 2**30
"""Bytes that a stack may take on CUDA while it learns, so that it fits a small GPU, too."""


def models_together(cohort: Cohort, device: str) -> int:
    """How many models of a cohort learn as one stack, a multiple of MULTIPLE.

    It does not depend on which GPU there is: on CUDA the last bits may depend on the size of a stack.
    """
    if device == "cpu":
        return STACK
    fitting = CUDA_MEMORY // max(cohort.learner.bytes_per_model(cohort.family, cohort.task), 1)
    return max(min(fitting, CUDA_STACK) // MULTIPLE, 1) * MULTIPLE


def chunk_size(device: str) -> int:
    """How many models of a shard are labelled and rolled out together."""
    return STACK if device == "cpu" else CUDA_CHUNK


@dataclass(frozen=True)
class Members:
    """Some models of one cohort, with each one's own values of spread fields, (models,), float64."""

    ids: list[str]
    values: dict[str, Tensor]
    """Of the task."""
    settings: dict[str, Tensor]
    """Of the learner."""

    @classmethod
    def of(cls, plan: Plan, cohort: Cohort, ids: list[str]) -> Members:
        """Models with what the plan draws for them."""
        return cls(ids, cohort.values(plan.seed, ids), cohort.settings(plan.seed, ids))

    def parts(self, size: int) -> Iterator[Members]:
        """The same models, at most `size` at a time."""
        for first in range(0, len(self.ids), size):
            some = slice(first, first + size)
            values, settings = ({k: v[some] for k, v in own.items()} for own in (self.values, self.settings))
            yield Members(self.ids[some], values, settings)

    def padded(self) -> Members:
        """The models with the last one repeated, up to a multiple of MULTIPLE."""
        ids = padded(self.ids)
        return Members(ids, padded_columns(self.values, len(ids)), padded_columns(self.settings, len(ids)))


def padded(ids: list[str]) -> list[str]:
    """The ids with the last one repeated, up to a multiple of MULTIPLE."""
    return ids + [ids[-1]] * (-len(ids) % MULTIPLE)


def padded_params(params: Params, snapshot: int, count: int, device: str) -> Params:
    """The params (models, ...) of one snapshot of (models, snapshots, ...), the last model repeated up to `count`."""
    own = {name: tensor[:, snapshot].to(device).contiguous() for name, tensor in params.items()}
    return padded_columns(own, count)


def padded_columns(columns: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """Columns (models, ...) with the last model repeated up to `count`."""
    return {name: torch.cat([own, own[-1:].expand(count - len(own), *own.shape[1:])]) for name, own in columns.items()}
