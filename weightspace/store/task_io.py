"""Inputs and outputs of a task, as a zoo's manifest records them and stacks of its models carry them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

InputKind = Literal["one_hot", "values"]
OutputKind = Literal["categorical", "continuous"]


@dataclass(frozen=True, kw_only=True)
class TaskIO:
    """Inputs that a task gives at each step, and what it reads from the outputs."""

    input_kind: InputKind
    """`one_hot`: one column is 1, the others 0, and columns are tokens. `values`: a number in each column."""
    input_range: tuple[float, float]
    """Low and high end of the numbers in a column; of inputs without bounds, such as normal ones, at least 99% lie
    inside."""
    input_size: int
    """Number of input columns."""
    output_kind: OutputKind
    """`categorical`: outputs are log-odds of classes. `continuous`: they are values."""
    classes_per_head: int | None = None
    """Number of classes of each of several heads side by side; None: there is one head."""

    def to_json(self) -> dict[str, Any]:
        """The fields that a manifest keeps for a task.

        The input size is left out: it may differ between cohorts, and is that of their family.
        """
        low, high = self.input_range
        fields = {"input_kind": self.input_kind, "input_range": [low, high], "output_kind": self.output_kind}
        return fields | ({} if self.classes_per_head is None else {"classes_per_head": self.classes_per_head})

    @classmethod
    def from_json(cls, task: Mapping[str, Any], input_size: int) -> TaskIO | None:
        """The record of a task in a checked manifest; None where an older version, which kept no inputs, wrote it."""
        if "input_kind" not in task:
            return None
        low, high = task["input_range"]
        return cls(
            input_kind=task["input_kind"],
            input_range=(float(low), float(high)),
            input_size=input_size,
            output_kind=task["output_kind"],
            classes_per_head=task.get("classes_per_head"),
        )


def task_problems(name: str, task: Any) -> Iterator[str]:
    """Problems of a manifest's record of one task, each the end of a sentence."""
    if not isinstance(task, dict) or not isinstance(task.get("output_kind"), str):
        yield f"does not say the `output_kind` of the task {name!r}"
        return
    classes = task.get("classes_per_head", 2)
    if type(classes) is not int or classes < 2:
        yield f"says of {name!r} that a head has {classes!r} classes, expected 2 or more"
    if "input_kind" not in task:
        return
    for field, kinds in (("input_kind", get_args(InputKind)), ("output_kind", get_args(OutputKind))):
        if task[field] not in kinds:
            yield f"says `{field}` {task[field]!r} of the task {name!r}, expected one of {', '.join(kinds)}"
    if not _is_range(task.get("input_range")):
        yield f"says `input_range` {task.get('input_range')!r} of the task {name!r}, expected two numbers, low and high"


def _is_range(value: Any) -> bool:
    if not isinstance(value, list) or len(value) != 2 or any(type(end) not in (int, float) for end in value):
        return False
    # Whole numbers of JSON may be too large for a float.
    return all(abs(end) < 1e30 and math.isfinite(end) for end in value) and value[0] < value[1]
