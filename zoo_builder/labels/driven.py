"""Models driven by their own task's held-out inputs: the trajectories and Jacobians that labels read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from weightspace.families import Family
from weightspace.rollout import Method, Streams
from weightspace.rollout.captured import mapped
from weightspace.rollout.forward import answered, is_measured_natively, is_native, last_outputs, last_states
from weightspace.rollout.results import Measured
from weightspace.rollout.tangents import (
    flatten,
    jacobians,
    joined,
    log_product_norms,
    push,
    tangent_rollout,
    to_unit,
    unflatten,
)
from weightspace.spec import Params
from zoo_builder.labels.inputs import SEQUENCES, TRAJECTORIES, Inputs
from zoo_builder.labels.spectra import covariance
from zoo_builder.members import Members
from zoo_builder.tasks import Batch, Split, Task
from zoo_builder.tasks.categorical import counts_right_answers

__all__ = ["DRIVE", "JACOBIANS", "JACOBIAN_STEPS", "MOST_BYTES", "SEQUENCES", "TRAJECTORIES", "WARM_UP", "WINDOW"]
__all__ += ["Driven", "Trajectory", "jacobian_bytes"]

WARM_UP, TANGENT_WARM_UP = 48, 16
"""Steps from the initial state that no label reads, and further ones over which tangent vectors align."""
WINDOW = 48
"""Steps after the warm-up that labels read."""
JACOBIAN_STEPS = 12
"""First steps of the window along which whole Jacobians are taken."""
MOST_BYTES, PART_BYTES = 2**30, 2**28
"""Most bytes of the Jacobians of models measured together on the CPU, and of those of a single model that has more."""

_DRIVEN = (
    f"{TRAJECTORIES} trajectories driven by held-out sequences of the model's own task (without a task: by inputs that "
    "the zoo stores, or standard normal ones), one sequence after another with the state carried on, after "
    f"{WARM_UP + TANGENT_WARM_UP} warm-up steps"
)
DRIVE = f"{WINDOW} steps of {_DRIVEN}"
JACOBIANS = (
    f"Jacobians dh(t+1)/dh(t) of the whole state (spikes with their surrogate derivative) at {JACOBIAN_STEPS} steps of "
    f"{_DRIVEN}"
)


@dataclass(frozen=True)
class Trajectory:
    """Driven models in the window after the warm-up; states are side by side in the order of the spec."""

    x: Tensor
    """Inputs (models, time, trajectory, input)."""
    noise: dict[str, Tensor]
    """Noise (models, time, trajectory, axis)."""
    before: Tensor
    """States before each step (models, time, trajectory, state)."""
    log_growth: Tensor
    """Log of the factor by which each step stretched a unit tangent vector (models, time, trajectory), nats."""


class Driven:
    """A stack of models and the quantities that labels read of them, computed when first asked for.

    By torch everything is in float64. Natively, outputs and measurements along trajectories are in the precision of
    the params, in which the models learned; all else is in float64. Inputs come from the streams
    "labels/..." of each model. Models with non-finite params take part as zeros and are marked in `finite`. A single
    model is doubled, because the arithmetic of a stack of one differs in the last bits.

    A model whose Jacobians take more than MOST_BYTES comes alone and not doubled, since no chunk holds two, and its
    Jacobians are taken by torch, those of a few trajectories at a time.

    Several snapshots of the models may be measured at once, one after another in `params` (snapshots * models, ...).
    They have the same inputs; `inputs` are those of an earlier call. "models" in shapes then counts snapshots * models.
    """

    def __init__(
        self,
        family: Family,
        params: Params,
        task: Task | None,
        members: Members,
        method: Method = "stacked",
        inputs: Inputs | None = None,
    ) -> None:
        first = next(iter(params.values()))
        self.num_models = len(first)
        self.is_large = first.device.type == "cpu" and jacobian_bytes(family) > MOST_BYTES
        repeat = 2 if self.num_models == 1 and not self.is_large else 1
        wide = {k: torch.cat([v] * repeat).detach() for k, v in params.items()}
        self.family, self.task, self.device = family, task, first.device
        members = members.repeated(repeat)
        self.snapshots = repeat * self.num_models // len(members.ids)
        self.method: Method = "native" if is_measured_natively(family, first, method) else "stacked"
        self.dtype = first.dtype if self.method == "native" else torch.float64
        self.finite = torch.stack([v.flatten(1).isfinite().all(1) for v in wide.values()]).all(0)
        if not bool(self.finite.all()):
            wide = {name: torch.where(_like(self.finite, v), v, 0) for name, v in wide.items()}
        self.params_as_run = {name: value.to(self.dtype) for name, value in wide.items()}
        num_steps = WARM_UP + TANGENT_WARM_UP + WINDOW
        self.inputs = inputs or Inputs(family, task, members, self.device, num_steps)

    @property
    def not_applicable(self) -> Tensor:
        """NaN for every model (models,), float64: a label that does not apply."""
        return self.finite.new_full(self.finite.shape, torch.nan, dtype=torch.float64)

    @cached_property
    def params(self) -> Params:
        """The params (models, ...) in float64."""
        return {name: value.double() for name, value in self.params_as_run.items()}

    @cached_property
    def effective(self) -> Params:
        """The params that the functions really use (models, ...), by the names of `family.effective_spec`."""
        if type(self.family).effective is Family.effective:
            return self.params
        return torch.func.vmap(self.family.effective)(self.params)

    def streams(self, purpose: str) -> Streams:
        """Fresh streams of the models for one use, the same at every snapshot."""
        return self.inputs.streams(purpose, self.snapshots)

    def answers(self, split: Split) -> Iterator[tuple[Batch, Tensor]]:
        """Batches of sequences of the task with the models' outputs (models, scored, batch, output)."""
        for drawn in self.inputs.batches(split):
            batch, noise = mapped(drawn, self.at_every_snapshot)
            x, start, noise = mapped((batch.x, batch.start, noise), lambda tensor: tensor.to(self.dtype))
            scored = batch.target.shape[1]
            yield batch, last_outputs(self.family, self.params_as_run, x, start, noise, scored, method=self.method)

    def judgements(self, split: Split) -> Iterator[tuple[Tensor, Tensor]]:
        """Score and loss (models,), float64, on batches of sequences of the task."""
        assert self.task is not None
        if self.method != "native" or not counts_right_answers(self.task):
            for batch, outputs in self.answers(split):
                yield self.task.score(outputs, batch), self.task.loss(outputs, batch)
            return
        for batch, noise in self.inputs.batches(split):
            criterion = self.task.criterion(batch)
            assert criterion is not None
            x, start, noise = mapped((batch.x, batch.start, noise), lambda tensor: tensor.to(self.dtype))
            judged = [answered(self.family, params, x, start, noise, criterion) for params in self._by_snapshot()]
            score, loss = (torch.cat(column) for column in zip(*judged, strict=True))
            yield score, loss

    def _by_snapshot(self) -> Iterator[Params]:
        """The params (models, ...) of each snapshot: natively, all snapshots read the same inputs in memory."""
        count = len(self.inputs.members.ids)
        for first in range(0, count * self.snapshots, count):
            yield {name: value[first : first + count] for name, value in self.params_as_run.items()}

    def at_every_snapshot(self, tensor: Tensor) -> Tensor:
        """A tensor (models, ...) that all snapshots share, repeated for each: (snapshots * models, ...)."""
        return tensor if self.snapshots == 1 else tensor.repeat(self.snapshots, *[1] * (tensor.dim() - 1))

    @cached_property
    def measured(self) -> Measured:
        """Averages along the driven trajectories."""
        if self.method == "native" and not self.is_large:
            return self._natively(self.dtype, JACOBIAN_STEPS)
        driven = self.trajectory
        means, log_norms = [], []
        for _, part in self.jacobian_parts():
            share = part.shape[2] / TRAJECTORIES
            means.append(share * part.mean((1, 2)))
            log_norms.append(share * log_product_norms(part))
        return Measured(
            growth=driven.log_growth,
            covariance=covariance(driven.before.flatten(1, 2)),
            mean_jacobian=torch.stack(means).sum(0),
            log_norms=torch.stack(log_norms).sum(0),
            visited=driven.before,
        )

    @cached_property
    def trajectory(self) -> Trajectory:
        """The driven trajectories, float64."""
        x, start, noise = mapped(self.inputs.drive, lambda tensor: self.at_every_snapshot(tensor.double()))
        if is_native(self.family, x, self.method):
            measured = self._natively(torch.float64, 0, want_states=True)
            assert measured.visited is not None
            before, growth = measured.visited, measured.growth
        else:
            before, growth = self._carried(x, start, noise)
        late = {name: value[:, -WINDOW:] for name, value in noise.items()}
        return Trajectory(x=x[:, -WINDOW:], noise=late, before=before, log_growth=growth)

    def _natively(self, dtype: torch.dtype, num_jacobians: int, *, want_states: bool = False) -> Measured:
        from weightspace.rollout.native.drive import Steps, native_drive

        steps = Steps(WARM_UP, TANGENT_WARM_UP, WINDOW, num_jacobians)
        x, start, noise = mapped(self.inputs.drive, lambda tensor: tensor.to(dtype))
        tangent = unflatten(self.family, self.inputs.directions.to(dtype))
        drive = partial(native_drive, x=x, start=start, noise=noise, tangent=tangent, steps=steps)
        snapshots = mapped(list(self._by_snapshot()), lambda tensor: tensor.to(dtype))
        return joined([drive(self.family, params, want_states=want_states) for params in snapshots])

    def _carried(self, x: Tensor, start: Tensor, noise: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """States before each step of the window (models, time, trajectory, state), and log growth (models, time,
        trajectory)."""
        early = {name: value[:, :WARM_UP] for name, value in noise.items()}
        state = torch.func.vmap(self.family.initial_state)(self.params, start)
        after = last_states(self.family, self.params, x[:, :WARM_UP], state, early, 1, method=self.method)
        state = {name: value[:, 0] for name, value in after.items()}
        tangent = unflatten(self.family, self.at_every_snapshot(self.inputs.directions))
        visited, growth = [], []
        for t in range(WARM_UP, x.shape[1]):
            visited.append(flatten(self.family, state))
            now = {name: value[:, t : t + 1] for name, value in noise.items()}
            states, moved = tangent_rollout(
                self.family, self.params, x[:, t : t + 1], state, tangent, now, method=self.method
            )
            state = {name: value[:, 0] for name, value in states.items()}
            tangent, length = to_unit({name: value[:, 0] for name, value in moved.items()})
            growth.append(length.log())
        return torch.stack(visited[-WINDOW:], dim=1), torch.stack(growth[-WINDOW:], dim=1)

    def jacobian_parts(self) -> Iterator[tuple[slice, Tensor]]:
        """Some trajectories after others, with the Jacobians along them, shaped as `jacobians`.

        All at once, but for a large model.
        """
        if not self.is_large:
            yield slice(0, TRAJECTORIES), self.jacobians
            return
        together = max(PART_BYTES * TRAJECTORIES // jacobian_bytes(self.family), 1)
        for first in range(0, TRAJECTORIES, together):
            lanes = slice(first, first + together)
            yield lanes, self._jacobians_along(lanes)

    @cached_property
    def jacobians(self) -> Tensor:
        """dh(t+1)/dh(t) of the whole state, (models, time, trajectory, to state, from state)."""
        driven = self.trajectory
        if self.method != "native":
            return self._jacobians_along(slice(0, TRAJECTORIES))
        x, noise = driven.x[:, :JACOBIAN_STEPS], {k: v[:, :JACOBIAN_STEPS] for k, v in driven.noise.items()}
        state = unflatten(self.family, driven.before[:, 0])
        return jacobians(self.family, self.params, x, state, noise, method=self.method)

    def _jacobians_along(self, lanes: slice) -> Tensor:
        driven, steps = self.trajectory, []
        # One time step at a time: Jacobians that fit in the cache cost a fraction of those that do not.
        for t in range(JACOBIAN_STEPS):
            noise = {name: value[:, t, lanes] for name, value in driven.noise.items()}
            steps.append(self.jacobians_at(driven.before[:, t, lanes], driven.x[:, t, lanes], noise))
        return torch.stack(steps, dim=1)

    @cached_property
    def mean_jacobian(self) -> Tensor:
        """The mean of the Jacobians over time and trajectories, (models, to state, from state), float64."""
        if self.dtype == torch.float64 or self.is_large:
            return self.measured.mean_jacobian
        # Transposed, so that sums run in the order of the native Jacobians' memory.
        return self.jacobians.transpose(-1, -2).flatten(1, 2).mean(1).transpose(-1, -2)

    def step(self, state: Tensor, x: Tensor, noise: Mapping[str, Tensor]) -> Tensor:
        """States (models, point, state) one step on; all states of a model are side by side in the order of the spec.

        Inputs are (models, point, input), noise (models, point, axis).
        """
        early = {name: value[:, None] for name, value in noise.items()}
        states = unflatten(self.family, state)
        after = last_states(self.family, self.params, x[:, None], states, early, 1, method=self.method)
        return flatten(self.family, after)[:, 0]

    def push(self, state: Tensor, x: Tensor, noise: Mapping[str, Tensor], directions: Tensor) -> Tensor:
        """The Jacobians at states (models, point, state) times directions (models, direction, point, state)."""
        states = unflatten(self.family, state)
        return push(self.family, self.params, x, states, directions, noise, method=self.method)

    def jacobians_at(self, state: Tensor, x: Tensor, noise: Mapping[str, Tensor]) -> Tensor:
        """dh(t+1)/dh(t) at states (models, point, state), as (models, point, to state, from state)."""
        early = {name: value[:, None] for name, value in noise.items()}
        states, method = unflatten(self.family, state), "stacked" if self.is_large else self.method
        return jacobians(self.family, self.params, x[:, None], states, early, method=method)[:, 0]


def jacobian_bytes(family: Family) -> int:
    """Bytes of the Jacobians of one model along its trajectories."""
    return 8 * JACOBIAN_STEPS * TRAJECTORIES * family.spec.state_size**2


def _like(flags: Tensor, tensor: Tensor) -> Tensor:
    return flags.reshape(-1, *[1] * (tensor.dim() - 1))
