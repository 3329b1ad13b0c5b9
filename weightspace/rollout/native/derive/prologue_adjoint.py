"""Gradients of params through the prologue, which computes tensors from them before the first step."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from weightspace.rollout.native.derive.derivatives import PARTIALS, Derivation, Share
from weightspace.rollout.native.trace.flat import Gather, Load, Prologue, Scatter, Step
from weightspace.rollout.native.trace.program import Addend, Builder, Map, Ref


@dataclass(frozen=True)
class PrologueAdjoint:
    """Operations from gradients of results to gradients of params."""

    results: Mapping[int, Ref]
    """Number of a result -> its gradient, for results that depend on a wanted param."""
    params: Mapping[int, Ref]
    """Number of a stored tensor -> its gradient."""
    operations: tuple[Step, ...]
    builder: Builder


@dataclass(kw_only=True)
class _Reverse(Derivation):
    """Gradients of flat values, each complete when the operation that made the value is reached."""

    gradients: dict[int, Ref] = field(default_factory=dict)

    def add(self, to: Ref, share: Share) -> None:
        """Add a share to the gradient of a value, unless gradients stop there."""
        if not to.stopped:
            self.gradients[to.value] = self.accumulate(self.gradients.get(to.value), share)

    def through(self, step: Step) -> None:
        """Pass the gradient of one operation's result on to its arguments."""
        dy = self.gradients.get(step.out.value)
        if dy is None or isinstance(step, Load):
            return
        if isinstance(step, Map):
            for arg, partial in zip(step.reads, PARTIALS[step.function], strict=True):
                self.add(arg, partial(self, step, dy))
        elif not step.source.stopped:
            out = self.builder.value(step.source.rows)
            self.operations.append(
                Scatter(out, dy, step.table) if isinstance(step, Gather) else Gather(out, dy, step.table)
            )
            self.add(step.source, Addend(out))


def results_of(prologue: Prologue, wanted: frozenset[int]) -> set[int]:
    """Numbers of the results on which some wanted stored tensor acts."""
    reached = _reached(prologue, wanted)
    return {number for number, ref in enumerate(prologue.results) if ref.value in reached}


def _reached(prologue: Prologue, wanted: frozenset[int]) -> set[int]:
    """The values on which some wanted stored tensor acts."""
    reached = {prologue.params[number].value for number in wanted if number in prologue.params}
    for step in prologue.operations:
        reads = step.reads if isinstance(step, Map) else () if isinstance(step, Load) else (step.source,)
        if any(ref.value in reached and not ref.stopped for ref in reads):
            reached.add(step.out.value)
    return reached


def prologue_adjoint(prologue: Prologue, wanted: frozenset[int], through: Collection[int]) -> PrologueAdjoint:
    """The gradients of the wanted stored tensors from those of some results; no loss depends on the others."""
    reached = _reached(prologue, wanted)
    reverse = _Reverse(builder=prologue.builder.copy())
    numbers = sorted(results_of(prologue, wanted) & set(through))
    results = {number: reverse.builder.value(prologue.results[number].rows) for number in numbers}
    for number, gradient in results.items():
        reverse.add(prologue.results[number], Addend(gradient))
    for step in reversed(prologue.operations):
        if step.out.value in reached:
            reverse.through(step)
    gradients = reverse.gradients
    params = {
        number: gradients[ref.value]
        for number, ref in prologue.params.items()
        if number in wanted and ref.value in gradients
    }
    return PrologueAdjoint(results, params, tuple(reverse.operations), reverse.builder)
