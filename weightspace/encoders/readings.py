"""The base of encoders that read fixed numbers off weights, without learning, and learn what follows from them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from weightspace.encoders.base import Encoder, refuse_outside
from weightspace.encoders.graph_level import NUM_DECLARED, Standardised, declared_of
from weightspace.graph import layout
from weightspace.store import Stack


class Readings(Encoder):
    """A perceptron on tables of numbers that are read off a model, standardised by those of the training models.

    Subclasses say how many groups and columns each table has, and read them. Sizes and nonlinearities, which the
    declaration fixes, enter as a table of their own. No gradient passes to the weights of the models that are read.

    Shapes: stacks of (models, ...) params -> (models, embedding_dim).
    """

    def __init__(self, embedding_dim: int, width: int, dropout: float, tables: Mapping[str, tuple[int, int]]) -> None:
        super().__init__(embedding_dim)
        refuse_outside({"width": width})
        shapes = {"declared": (1, NUM_DECLARED), **tables}
        self.tables = nn.ModuleDict({name: Standardised(*shape) for name, shape in shapes.items()})
        columns = sum(groups * (columns + 1) for groups, columns in shapes.values())
        self.layers = nn.Sequential(
            nn.Linear(columns, width),
            nn.SiLU(),
            nn.Dropout(dropout),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Dropout(dropout),
            nn.Linear(width, embedding_dim),
        )

    @abstractmethod
    def read(self, stack: Stack) -> dict[str, Tensor]:
        """Each table (models, group, column) float64, NaN where a model has no such group."""

    @torch.no_grad()
    def fit_standardisation(self, stacks: Iterable[Stack]) -> None:
        """Mean and deviation of every column over the training models, as buffers."""
        for stack in stacks:
            for name, values in self._read(stack).items():
                self._table(name).add(values)
        for name in self.tables:
            self._table(name).settle()

    def forward(self, stacks: Sequence[Stack]) -> Tensor:
        """Embeddings (models, embedding_dim) of stacks."""
        columns = []
        for stack in stacks:
            with torch.no_grad():
                values = self._read(stack)
                columns.append(torch.cat([self._table(name)(values[name]) for name in self.tables], dim=1))
        embeddings: Tensor = self.layers(torch.cat(columns))
        return embeddings

    def _read(self, stack: Stack) -> dict[str, Tensor]:
        declared = declared_of(layout(stack.family.effective_spec)).to(stack.rows.device)
        return {"declared": declared.expand(len(stack), 1, -1), **self.read(stack)}

    def _table(self, name: str) -> Standardised:
        table = self.tables[name]
        assert isinstance(table, Standardised)
        return table
