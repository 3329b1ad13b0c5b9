"""Encoded programs: the program of a family laid out and encoded for the engine, and run on stacks of models."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np
import torch

from weightspace.families import Family
from weightspace.rollout.native.derive.adjoint import Adjoint, adjoint, pruned
from weightspace.rollout.native.derive.deferred import Deferred, deferred
from weightspace.rollout.native.derive.prologue_adjoint import PrologueAdjoint, prologue_adjoint, results_of
from weightspace.rollout.native.derive.silence import silenced
from weightspace.rollout.native.derive.sound import refuse_unsound
from weightspace.rollout.native.derive.tangent import with_jacobian, with_tangents
from weightspace.rollout.native.engine.compiler import library
from weightspace.rollout.native.engine.encoder import Encoder
from weightspace.rollout.native.engine.flat_layout import FlatLayout, prologue_fields
from weightspace.rollout.native.engine.job import INT, Call, Job
from weightspace.rollout.native.engine.layout import Layout, laid_out
from weightspace.rollout.native.engine.misfits import Sizes, refuse_misfits
from weightspace.rollout.native.engine.records import (
    MAX_ADDENDS,
    MAX_PAIRS,
    MAX_TERMS,
    OPCODES,
    SPACES,
    AddendSpec,
    MatrixSpec,
    PieceSpec,
    TermSpec,
    table,
)
from weightspace.rollout.native.engine.threads import at_once
from weightspace.rollout.native.trace.flat import Prologue
from weightspace.rollout.native.trace.program import BackwardOperation, Builder, Program
from weightspace.rollout.native.trace.traced import Traced, trace

LANES = (16, 32)
"""Slice widths."""
RING_LANES = 800
"""Lanes times steps after which gradients of weights are taken together."""


@functools.lru_cache(maxsize=256)
def traced(family: Family, dtype: torch.dtype) -> Traced:
    """The traced family, once; Untraceable if it cannot be."""
    return trace(family, dtype)


Gradients = list[torch.Tensor | None]


@dataclass(frozen=True)
class Wanted:
    """Gradients that a run computes, and values through which they come in: the outputs, if said, and some states."""

    tensors: frozenset[int] = frozenset()
    inputs: bool = False
    initial: bool = False
    outputs: bool = True
    states: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.tensors) or self.inputs or self.initial


def engine_library(dtype: torch.dtype, lanes: int) -> ctypes.CDLL:
    """The compiled engine for one dtype and slice width; NoNative if it cannot be had."""
    is_double = dtype == torch.float64
    real = "double" if is_double else "float"
    compiled = library("engine.c", f"REAL={real}", f"REAL_IS_DOUBLE={int(is_double)}", f"LANES={lanes}")
    _check(compiled, lanes)
    return compiled


def lanes_for(batch: int) -> int:
    """Number of sequences that are run side by side."""
    return LANES[0] if batch <= LANES[0] else LANES[1]


@functools.lru_cache(maxsize=512)
def engine(family: Family, dtype: torch.dtype, lanes: int, wanted: Wanted) -> Engine:
    """Engine of a family for the wanted gradients, made once; tensors computed from params are data of a call."""
    return Engine(traced(family, dtype), dtype, lanes, wanted)


@functools.lru_cache(maxsize=512)
def learning_engine(family: Family, dtype: torch.dtype, lanes: int, wanted: Wanted) -> Engine:
    """Engine of a family with a flat prologue, which is computed in C."""
    traced_family = traced(family, dtype)
    return Engine(traced_family, dtype, lanes, wanted, traced_family.flat)


@functools.lru_cache(maxsize=256)
def tangent_engine(family: Family, dtype: torch.dtype, lanes: int, num_directions: int) -> Engine:
    """The engine of a family's states and so many tangent vectors beside them."""
    plain = traced(family, dtype)
    builder = plain.builder.copy()
    program = with_tangents(plain.program, builder, num_directions)
    return Engine(dataclasses.replace(plain, program=program, builder=builder), dtype, lanes, Wanted())


@functools.lru_cache(maxsize=256)
def jacobian_engine(family: Family, dtype: torch.dtype, lanes: int) -> Engine:
    """The engine of a family's states, with the Jacobian of each step as output."""
    plain = traced(family, dtype)
    builder = plain.builder.copy()
    program = with_jacobian(plain.program, builder)
    return Engine(dataclasses.replace(plain, program=program, builder=builder), dtype, lanes, Wanted())


class Engine:
    """A program for one dtype and slice width, encoded once and run often."""

    def __init__(
        self, source: Traced, dtype: torch.dtype, lanes: int, wanted: Wanted, prologue: Prologue | None = None
    ) -> None:
        """With a `prologue`, tensors that are computed from params are computed in C, else they are data of a call."""
        self.lanes, self.dtype, self.wanted = lanes, dtype, wanted
        self.library = engine_library(dtype, lanes)
        self.traced = source
        program, builder = self.traced.program, self.traced.builder.copy()
        back, self.reached, self.reached_states = None, frozenset[int](), frozenset[str]()
        if wanted:
            back = _adjoint_of(program, builder, wanted, _acting(source, wanted.tensors, prologue))
            self.reached, self.reached_states = back.tensors, back.reached
        results = {number - len(source.stored) for number in self.reached if number >= len(source.stored)}
        through = prologue_adjoint(prologue, wanted.tensors, results) if prologue is not None else None
        deferring = deferred(back, builder) if back is not None else None
        refuse_unsound(program, builder.rows, back, deferring, once=False)
        layout = laid_out(program, back, builder.rows, deferring)
        self._kept: list[Any] = []
        self._job = Job(want_gradients=bool(wanted), output_rows=program.output.rows)
        self._job.tensors = len(self.traced.stored) + len(self.traced.computed)
        self._job.stored = len(self.traced.stored)
        encoder = Encoder(layout)
        self._encode(program, back, deferring, encoder)
        self._encode_params(prologue, through, encoder)
        self._array("constants", np.array(encoder.constants))
        states = [ref.rows for ref in program.states.values()]
        inputs = [ref.rows for name, ref in program.inputs.items() if not name.startswith("state.")]
        extents = {k: v for k, v in encoder.extents().items() if prologue is None or k < len(source.stored)}
        self._sizes = Sizes(dtype, inputs, states, program.output.rows, extents)
        self._place(program, back, layout)

    def _encode(self, program: Program, back: Adjoint | None, deferring: Deferred | None, encoder: Encoder) -> None:
        job = self._job
        lists: dict[str, Iterable[BackwardOperation]] = {"readout": program.readout, "step": program.step}
        if back is not None:
            lists |= {"readout_back": back.readout, "step_back": back.step, "first_back": back.first_step}
        if deferring is not None:
            lists |= {"deferring_step_back": deferring.step, "deferred_readout_back": deferring.readout}
        for name, operations in lists.items():
            self._array(name, encoder.instructions(operations), counted=True)
        weights = (*back.readout_weights, *back.step_weights) if back is not None else ()
        lasts = [encoder.instructions(operations) for operations in (back.last_steps if back is not None else ())]
        self._array("last_back", np.concatenate([encoder.instructions(()), *lasts]))
        self._array("last_back_at", _numbers(accumulate(map(len, lasts), initial=0)), counted=True)
        self._array("jobs", encoder.jobs(weights), counted=True)
        self._array("matrices", table(encoder.matrices.values(), MatrixSpec), counted=True)
        self._array("vectors", table(encoder.vectors.values(), MatrixSpec), counted=True)
        self._array("terms", table(encoder.terms, TermSpec))
        self._array("addends", table(encoder.addends, AddendSpec))
        self._array("pieces", table(encoder.pieces, PieceSpec))
        job.packed_size, job.vector_size = encoder.packed_size, encoder.vector_size
        job.gradient_size = encoder.gradient_size

    def _encode_params(self, prologue: Prologue | None, through: PrologueAdjoint | None, encoder: Encoder) -> None:
        """Results of the prologue, and room for the gradients of elements that have several."""
        stored, job = len(self.traced.stored), self._job
        sizes = [*self.traced.stored.values(), *(self.traced.computed if prologue is None else ())]
        several = encoder.summed_several_times([*self.traced.stored.values(), *self.traced.computed])
        rows: Mapping[int, int] = {}
        if prologue is not None and through is not None:
            several |= set(through.params)
            rows = through.builder.rows
        layout = FlatLayout(self.lanes, rows, encoder.constants)
        if prologue is not None and through is not None:
            job.has_prologue = 1
            for name, array in prologue_fields(prologue, through, stored, layout).items():
                self._array(name, array, counted=name.startswith("prologue"))
        self._array("tensor_size", _numbers(sizes))
        places = [layout.room(size) if number in several else -1 for number, size in enumerate(sizes)]
        self._array("direct_at", _numbers(places))
        job.params_rows = layout.rows

    def _place(self, program: Program, back: Adjoint | None, layout: Layout) -> None:
        job = self._job
        for space in ("record", "input", "ring", "carry", "scratch", "sums"):
            # Odd stride, to avoid conflicts of neighbouring steps in the cache.
            setattr(job, f"{space}_rows", layout.sizes[space] | 1)
        job.carried_in_ring = layout.carried_in_ring
        states = list(program.states.items())
        inputs = [ref for name, ref in program.inputs.items() if not name.startswith("state.")]
        job.num_states, job.num_inputs = len(states), len(inputs)
        self._array("state_at", _numbers(layout.at(ref)[1] for _, ref in states))
        self._array("state_rows", _numbers(ref.rows for _, ref in states))
        for name, carried in (("carry_at", back.carry), ("next_carry_at", back.next_carry)) if back else ():
            self._array(name, _numbers(number for state, _ in states for number in layout.at(carried[state])))
        self._array("input_at", _numbers(layout.at(ref)[1] for ref in inputs))
        self._array("input_size", _numbers(ref.rows for ref in inputs))
        job.output_at[:] = layout.at(program.output)
        job.output_gradient_at[:] = layout.at(back.output) if back else (0, 0)

    def _array(self, name: str, array: np.ndarray, *, counted: bool = False) -> None:
        self._kept.append(array)
        setattr(self._job, name, array.ctypes.data)
        if counted:
            setattr(self._job, f"num_{name}", len(array))

    def ring_steps(self, time: int) -> int:
        """Number of steps whose gradients of weights are computed together: the steps in shares as equal as can be."""
        shares = -(-time // (RING_LANES // self.lanes))
        return -(-time // max(1, shares))

    def run(self, call: Call, threads: int = 1) -> None:
        """Run one call, distributed among threads by models, or by sequences where models are few.

        Results do not depend on the number of threads: gradients of slices are always added in their order.
        """
        self.refuse_misfits(call)
        slices = range(0, call.batch, self.lanes)
        if call.models >= threads or len(slices) == 1 or call.moves is not None:
            # A thread that waits for a core leaves its models to the others.
            at_once([self._work(call, 0, call.batch_of_one)] * min(threads, call.models))
            return
        parts = [call.apart() for _ in slices]
        pairs = zip(parts, slices, strict=True)
        pieces = iter([self._work(own, at, min(at + self.lanes, call.batch)) for own, at in pairs])
        at_once([partial(_all_of, pieces)] * min(threads, len(parts)))
        call.add(parts)

    def gradients_of(self, call: Call, states: Iterable[str]) -> tuple[Gradients, Gradients]:
        """Gradients of tensors and of initial states that a call has computed, None where no loss depends on them."""
        of_tensors = [gradient if i in self.reached else None for i, gradient in enumerate(call.gradients or [])]
        initial = call.initial_gradient or [None for _ in states]
        named = zip(states, initial, strict=True)
        return of_tensors, [gradient if name in self.reached_states else None for name, gradient in named]

    def refuse_misfits(self, call: Call) -> None:
        """Raise ValueError unless all data have the shapes, dtypes and ranges that the engine expects."""
        refuse_misfits(call, self._sizes)

    def job(self, call: Call) -> tuple[Job, list[Any]]:
        """Job of a call for C, and the tensors that must live as long."""
        job = Job.from_buffer_copy(self._job)
        kept = call.fill(job)
        job.ring_steps = self.ring_steps(call.time)
        return job, kept

    def _work(self, call: Call, low: int, high: int) -> Callable[[], None]:
        """Work of one thread: sequences low to high of the models that it takes from a shared counter."""
        job, kept = self.job(call)
        self.library.workspace_size.restype = INT
        return partial(self._run, job, kept, self.library.workspace_size(ctypes.byref(job)), INT(0), low, high)

    def _run(self, job: Job, kept: list[Any], size: int, next_model: Any, low: int, high: int) -> None:
        # `kept` lives as long as the call: the job points at it.
        workspace = torch.empty(size + 64, dtype=self.dtype)
        start = ctypes.c_void_p(-(-workspace.data_ptr() // 64) * 64)
        self.library.run_models(ctypes.byref(job), ctypes.byref(next_model), INT(low), INT(high), start)


def _acting(source: Traced, tensors: frozenset[int], prologue: Prologue | None) -> frozenset[int]:
    """The wanted tensors and, with a prologue in C, those computed from them."""
    computed = results_of(prologue, tensors) if prologue is not None else set()
    return tensors | {len(source.stored) + number for number in computed}


def _adjoint_of(program: Program, builder: Builder, wanted: Wanted, tensors: frozenset[int]) -> Adjoint:
    back = silenced(adjoint(program, builder), outputs=wanted.outputs, states=wanted.states)
    return pruned(back, tensors, inputs=wanted.inputs, initial=wanted.initial)


def _all_of(pieces: Iterator[Callable[[], None]]) -> None:
    for piece in pieces:
        piece()


def _numbers(numbers: Iterable[int]) -> np.ndarray:
    return np.array(list(numbers), dtype=np.int64)


def _check(lib: ctypes.CDLL, lanes: int) -> None:
    constants = (INT * 8)()
    lib.constants(constants)
    expected = (lanes, len(SPACES), len(OPCODES), MAX_TERMS, MAX_ADDENDS, MAX_PAIRS, ctypes.sizeof(Job))
    assert tuple(constants[:7]) == expected, (tuple(constants), expected)
