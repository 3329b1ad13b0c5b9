"""Interviews of recurrent networks: queries asked, responses read in time and over all queries, one vector each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weightspace.encoders.base import Encoder, refuse_outside
from weightspace.encoders.graph_level import NUM_DECLARED, Standardised, declared_of
from weightspace.encoders.queries import Core, Mode, Queries, as_inputs, refuse_unknown_mode
from weightspace.encoders.responses import PER_STEP, Responses, ask, continued, gathered, num_geometry, paired
from weightspace.families import Family
from weightspace.graph import layout
from weightspace.spec import State
from weightspace.store import Stack

VIEWS = 3
"""Outputs, states, states per unit."""
CODE_DIM = 16
MAX_ENDS = 4096


class Interview(nn.Module):
    """Asks every model the same first questions, and reads what stays the same under all declared symmetries.

    Each query is asked twice, with another input at one step, a quarter of the way: the distance of both responses
    is the memory of that input. The state is kept between queries of a sequence. A small GRU reads each query's steps;
    the spectrum of the covariance of states, of which `state_effective_rank` is a function, is read once.

    Shapes: stacks -> (models, width).
    """

    def __init__(
        self, mode: Mode, num_queries: int, num_steps: int, reader_dim: int, core_dim: int, max_inputs: int,
        max_outputs: int,
    ) -> None:  # fmt: skip
        super().__init__()
        refuse_unknown_mode(mode)
        sizes = {"num_queries": num_queries, "reader_dim": reader_dim, "core_dim": core_dim}
        refuse_outside({**sizes, "max_inputs": max_inputs, "max_outputs": max_outputs}, most=MAX_ENDS)
        refuse_outside({"num_steps": num_steps}, least=2, most=MAX_ENDS)
        self.num_steps, self.kick = num_steps, num_steps // 4
        self.max_inputs, self.max_outputs = max_inputs, max_outputs
        self.queries = Queries(num_queries, num_steps, max_inputs, CODE_DIM if mode == "deep_linear" else None)
        self.core = Core(core_dim, num_queries, max_inputs, max_outputs) if mode == "interactive" else None
        per_step = max_outputs + VIEWS * PER_STEP
        self.steps = Standardised(per_step, 1)
        self.geometry = Standardised(VIEWS, num_geometry(num_steps, self.kick))
        self.declared = Standardised(1, NUM_DECLARED)
        self.read = nn.Linear(self.steps.width, reader_dim)
        self.asked = nn.Parameter(torch.randn(num_queries, reader_dim))
        self.reader = nn.GRU(reader_dim, reader_dim, batch_first=True)
        self.width = 2 * num_queries * reader_dim + self.geometry.width + self.declared.width
        self.width += 0 if self.core is None else core_dim

    def refuse_too_large(self, family: Family) -> None:
        """Raise ValueError where a family has more inputs or outputs than queries or readings."""
        ends = {"inputs": (family.input_size, self.max_inputs), "outputs": (family.output_size, self.max_outputs)}
        for name, (size, most) in ends.items():
            if size > most:
                raise ValueError(
                    f"{type(family).__name__} has {size} {name}, but queries were made for `max_{name}` (={most}); "
                    f"train with `max_{name}` {size} or more, or leave such models out."
                )

    @torch.no_grad()
    def fit_standardisation(self, stacks: Iterable[Stack]) -> None:
        """Mean and deviation of each reading over the training models, asked the first queries."""
        for stack in stacks:
            (responses,), _ = self.ask([stack])
            self.steps.add(self._steps_of(responses).flatten(0, 2)[..., None])
            self.geometry.add(responses.geometry)
            self.declared.add(self._declared_of(responses))
        for table in (self.steps, self.geometry, self.declared):
            table.settle()

    def ask(self, stacks: Sequence[Stack]) -> tuple[list[Responses], Tensor | None]:
        """Responses of each stack, and what the core of an interactive interview thinks at its end."""
        if self.core is not None:
            return self._converse(self.core, stacks)
        raw, responses = self.queries(), []
        for stack in stacks:
            x = as_inputs(raw, stack).expand(len(stack), *raw.shape[:2], -1)
            responses.append(ask(stack, paired(x[:, :-1], x[:, -1], self.kick), self.kick))
        return responses, None

    def forward(self, stacks: Sequence[Stack]) -> tuple[Tensor, list[Responses]]:
        """One vector per model (models, width), and the responses it was read from."""
        responses, thoughts = self.ask(stacks)
        steps = torch.cat([self._steps_of(answer) for answer in responses]).transpose(1, 2)
        columns: Tensor = self.steps(steps.flatten(0, 2)[..., None])
        read = self.read(columns).unflatten(0, steps.shape[:3]) + self.asked[:, None]
        heard, last = self.reader(read.flatten(0, 1))
        whole = torch.cat([heard.mean(1), last[0]], dim=1).unflatten(0, steps.shape[:2]).flatten(1)
        parts = [whole, self.geometry(torch.cat([answer.geometry for answer in responses]))]
        parts += [self.declared(torch.cat([self._declared_of(answer) for answer in responses]))]
        return torch.cat(parts if thoughts is None else [*parts, thoughts], dim=1), responses

    def _converse(self, core: Core, stacks: Sequence[Stack]) -> tuple[list[Responses], Tensor]:
        """Ask step by step: what to ask next depends on a model's answers so far."""
        raw, counts = self.queries(), [len(stack) for stack in stacks]
        answers = raw.new_zeros(sum(counts), raw.shape[1], self.max_outputs)
        memory, thought = core.begin(sum(counts)), answers
        talks = [_Talk(stack) for stack in stacks]
        for t in range(self.num_steps):
            shifts, thought, memory = core(answers, memory)
            heard = []
            for talk, shift in zip(talks, shifts.split(counts), strict=True):
                x = as_inputs(raw[t] + shift, talk.stack)
                second = as_inputs(raw[-1].expand_as(shift), talk.stack) if t == self.kick else x
                outputs = talk.answer(torch.cat([x, second], dim=1)[:, None])
                outputs = torch.where(outputs.isfinite(), outputs, 0.0)[:, : raw.shape[1]].to(raw.dtype)
                heard.append(F.pad(outputs, (0, self.max_outputs - outputs.shape[-1])))
            answers = torch.cat(heard)
        return [talk.responses(self.kick) for talk in talks], thought.mean(1)

    def _steps_of(self, responses: Responses) -> Tensor:
        """Answers and readings (models, time, query, reading) of every step, NaN where there are none."""
        answers = responses.outputs.chunk(2, dim=2)[0]
        answers = torch.where(responses.finite[:, None, None, None], answers, torch.nan)
        answers = F.pad(answers, (0, self.max_outputs - answers.shape[-1]), value=torch.nan)
        return torch.cat([answers, responses.per_step.flatten(3)], dim=-1)

    def _declared_of(self, responses: Responses) -> Tensor:
        stack = responses.stack
        declared = declared_of(layout(stack.family.effective_spec)).to(responses.inputs.device)
        return declared.expand(len(stack), 1, -1)


class Interviewer(Encoder):
    """Base of encoders that interview models: those with more inputs or outputs than queries have are refused."""

    queries: ClassVar[bool] = True
    interview: Interview

    def refuse_too_large(self, family: Family) -> None:
        """Raise ValueError where a family has more inputs or outputs than this encoder asks and hears."""
        self.interview.refuse_too_large(family)

    def fit_standardisation(self, stacks: Iterable[Stack]) -> None:
        """Mean and deviation of each reading over the training models, as buffers."""
        self.interview.fit_standardisation(stacks)


class _Talk:
    """A stack that is asked step by step, its state kept from one answer to the next question."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self._state: State | None = None
        self._inputs: list[Tensor] = []
        self._outputs: list[Tensor] = []
        self._states: list[State] = []

    def answer(self, x: Tensor) -> Tensor:
        """Outputs (models, lane, output) after one more step of inputs (models, 1, lane, input)."""
        run = continued(self.stack, x, self._state, "stacked")
        self._state = run.final
        self._inputs.append(x)
        self._outputs.append(run.outputs)
        self._states.append(run.states)
        return run.outputs[:, 0]

    def responses(self, kick: int) -> Responses:
        """All answers so far."""
        states = {name: torch.cat([state[name] for state in self._states], dim=1) for name in self._states[0]}
        return gathered(self.stack, torch.cat(self._inputs, 1), torch.cat(self._outputs, 1), states, kick)
