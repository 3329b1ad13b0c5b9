"""Cases of a benchmark: a family at one size, a number of models, and data of each model."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from weightspace import families
from weightspace.families import Family
from weightspace.rollout import Streams, generator
from weightspace.rollout.noise import draw_noise
from weightspace.spec import Params
from zoo_builder.planning.plain import parse_yaml

LEARNING_RATE, WEIGHT_DECAY = 1e-3, 1e-2
"""Settings of AdamW; all others are the defaults of torch."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """Many models of one family and size, each trained on a batch of sequences of its own."""

    family: str
    fields: Mapping[str, Any]
    """The family's config, with all sizes."""
    models: int
    batch: int
    steps: int
    """Length of the sequences."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("models", "batch", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` (={getattr(self, name)}) must be at least 1.")

    def load(self) -> Family:
        """The family at its size."""
        return families.load(self.family, self.fields)

    @property
    def title(self) -> str:
        """Short text of the case."""
        return f"{self.family}, {self.fields['hidden_size']} units, {self.models} models, {self.steps} steps"


@dataclass(frozen=True)
class Data:
    """Params (models, ...) to start from, inputs (models, time, batch, input), and classes (models, time, batch)."""

    params: Params
    x: Tensor
    start: Tensor
    noise: Params
    target: Tensor

    def narrow(self, first: int, count: int) -> Data:
        """The data of some models, as views."""
        params, noise = ({k: v[first : first + count] for k, v in part.items()} for part in (self.params, self.noise))
        x, start, target = (part[first : first + count] for part in (self.x, self.start, self.target))
        return Data(params, x, start, noise, target)


def cases(
    names: Sequence[str],
    hidden: Sequence[int],
    models: Sequence[int],
    steps: Sequence[int],
    *,
    batch: int = 32,
    sizes: tuple[int, int] = (8, 8),
    fields: Mapping[str, Any] | None = None,
) -> list[Case]:
    """One case per family, number of hidden units, models and steps; `sizes` are those of input and output.

    Of `fields` each family takes those it has; a field that none has is refused. What a family needs beside its sizes
    and `fields`, its first example says.
    """
    available = families.available()
    for name in names:
        if name not in available:
            # Raises, with the near match.
            families.load(name, {})
    known = {field.name for name in names for field in dataclasses.fields(available[name])}
    unknown = sorted(set(fields or {}) - known)
    if unknown:
        raise ValueError(f"None of {list(names)} has the field '{unknown[0]}'; theirs are {sorted(known)}.")
    listed = []
    for name, units, count, length in itertools.product(names, hidden, models, steps):
        config = dict(_needed(available[name])) | {"input_size": sizes[0], "output_size": sizes[1]}
        names_of_fields = {field.name for field in dataclasses.fields(available[name])}
        config |= {"hidden_size": units, **{k: v for k, v in (fields or {}).items() if k in names_of_fields}}
        listed.append(Case(family=name, fields=config, models=count, batch=batch, steps=length))
        # A field that does not fit is refused before anything is measured.
        listed[-1].load()
    return listed


def parse_fields(texts: Sequence[str]) -> dict[str, Any]:
    """Fields from `name=value`, each value as in YAML."""
    fields = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"`fields` has '{text}'; give NAME=VALUE, such as rank=16.")
        fields[name] = parse_yaml(value, f"`fields` {text}")
    return fields


def _needed(family: type[Family]) -> Iterator[tuple[str, Any]]:
    """The fields without a default, as the family's first example has them."""
    example = family.examples()[0].config
    for field in dataclasses.fields(family):
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            yield field.name, example[field.name]


def draw(case: Case) -> Data:
    """The data of a case, the same whatever the method."""
    family = case.load()
    ids = [str(model) for model in range(case.models)]
    draws = [family.init(generator(case.seed, model, "init")) for model in ids]
    params = {name: torch.stack([one[name] for one in draws]) for name in family.spec.tensors}
    numbers = generator(case.seed, "all", "inputs")
    shape = (case.models, case.steps, case.batch)
    x = torch.randn(*shape, family.input_size, generator=numbers)
    target = torch.randint(family.output_size, shape, generator=numbers)
    noise = draw_noise(family.spec, Streams(case.seed, ids, "noise"), case.steps, case.batch)
    return Data(params, x, x.new_zeros(case.models, case.batch, 0), noise, target)


def flops(case: Case) -> int:
    """Floating-point operations of one update of one model, those of its matrices alone.

    For every weight of a map, per step and sequence: 2 forward (multiply and add), 2 for its own gradient where it is
    trained, and 2 to pass the gradient on to what it reads, where trained tensors lie behind that:

        steps * batch * sum over maps of weights * (2 + 2 [trained] + 2 [a source carries a gradient]).

    The task's inputs carry none. A tensor with three node axes is a map of products of two units. What is done element
    by element, the loss and the optimiser are not counted (see `elements.operations`), so the share of peak is a lower
    bound of what the processor was kept busy with.
    """
    spec = case.load().spec
    trained = set(spec.trained)
    joins = [(name, to, sources) for name, (to, *sources) in spec.connections()]
    carrying = {to for name, to, _ in joins if name in trained}
    carrying |= {
        axis for diagonal in (False, True) for name, axis in spec.vectors(diagonal=diagonal) if name in trained
    }
    for _ in spec.axes:
        # As often as the longest path has edges.
        carrying |= {to for _, to, sources in joins if carrying & set(sources)}
    per_step = sum(
        prod(spec.shape(name)) * (2 + 2 * (name in trained) + 2 * bool(carrying & set(sources)))
        for name, _, sources in joins
        if spec.tensors[name].use == "map"
    )
    return per_step * case.steps * case.batch
