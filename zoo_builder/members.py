"""Members of a cohort: models that are computed together, each with its own values of the varying fields."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from weightspace.spec import Params

# Vectorised loops treat the last elements of a tensor (up to 32) unlike the others, with other bits in sigmoid or
# softplus. In stacks of a multiple of 32 models no model has such elements, so bits do not depend on the neighbours.
MULTIPLE = 32


@dataclasses.dataclass(frozen=True)
class Members:
    """Some models of one cohort: their names, from which with the seed all their random streams derive."""

    seed: int
    ids: Sequence[str]
    values: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    """Each model's own value of a varying field of the task, (models,), float64."""
    settings: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    """Each model's own value of a varying field of the learner, (models,), float64."""
    params: Params | None = None
    """Params (models, ...) from which models learn on, None for fresh ones."""
    recorded: Tensor | None = None
    """Input sequences (models, sequences, time, input) that drive models without a task; None for noise."""

    def part(self, first: int, last: int) -> Members:
        """The models `first` to `last` - 1."""
        values, settings, params = (
            None if columns is None else {name: column[first:last] for name, column in columns.items()}
            for columns in (self.values, self.settings, self.params)
        )
        recorded = None if self.recorded is None else self.recorded[first:last]
        return Members(self.seed, self.ids[first:last], values or {}, settings or {}, params, recorded)

    def parts(self, size: int) -> Iterator[Members]:
        """The same models, at most `size` at a time."""
        for first in range(0, len(self.ids), size):
            yield self.part(first, first + size)

    def repeated(self, times: int) -> Members:
        """The same models several times, one round after another."""
        values, settings = (
            {name: torch.cat([column] * times) for name, column in columns.items()}
            for columns in (self.values, self.settings)
        )
        params = None if self.params is None else {name: torch.cat([t] * times) for name, t in self.params.items()}
        recorded = None if self.recorded is None else torch.cat([self.recorded] * times)
        return Members(self.seed, list(self.ids) * times, values, settings, params, recorded)

    def padded(self) -> Members:
        """The models with the last one repeated, up to a multiple of MULTIPLE."""
        ids = [*self.ids, *[self.ids[-1]] * (-len(self.ids) % MULTIPLE)]
        values, settings = (padded_columns(columns, len(ids)) for columns in (self.values, self.settings))
        params = None if self.params is None else padded_columns(self.params, len(ids))
        recorded = self.recorded
        if recorded is not None:
            recorded = padded_columns({"recorded": recorded}, len(ids))["recorded"]
        return Members(self.seed, ids, values, settings, params, recorded)


def padded_columns(columns: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """Columns (models, ...) with the last model repeated up to `count`."""
    return {
        name: torch.cat([column, column[-1:].expand(count - len(column), *column.shape[1:])])
        for name, column in columns.items()
    }


def padded_params(params: Params, snapshot: int, count: int, device: str) -> Params:
    """The params (models, ...) of one snapshot of (models, snapshots, ...), the last model repeated up to `count`."""
    return padded_columns({name: tensor[:, snapshot].to(device).contiguous() for name, tensor in params.items()}, count)
