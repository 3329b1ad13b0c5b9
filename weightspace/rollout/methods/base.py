"""The contract of a rollout method: the sequential answer, to a tolerance that its docstring states."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from weightspace.families import Family
from weightspace.rollout.results import Rollout
from weightspace.spec import Params, State


@dataclass(frozen=True, kw_only=True)
class RolloutMethod(ABC):
    """A method that runs a family over time. Subclasses are frozen dataclasses whose fields are their options.

    A file in `rollout/methods/` is enough: `rollout(..., method=...)` takes the name of its class in lower case, words
    joined by underscores, or an instance.
    """

    def why_not(self, family: Family, x: Tensor) -> str | None:
        """Reason why this method cannot run a family on inputs like x (`Stacked` then does), None if it can."""
        return None

    @abstractmethod
    def run(
        self, family: Family, params: Params, x: Tensor, start: Tensor, noise: Mapping[str, Tensor], state: State | None
    ) -> Rollout:
        """Outputs, states and a report of all models; see `rollout` for shapes."""
