"""Models driven by their own task's held-out inputs: the trajectories and Jacobians that labels read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from weightspace.families import Family
from weightspace.rollout import Streams, rollout
from weightspace.spec import Params, State
from zoo_builder.tasks import Batch, Split, Task
from zoo_builder.tasks.noise import draw_noise

LANES = 32
"""Number of trajectories of each model; they start at evenly spread places of a sequence."""
WARM_UP, TANGENT_WARM_UP = 48, 16
"""Steps from the initial state that no label reads, and how many more align tangent vectors."""
WINDOW = 48
"""Steps after the warm-up that labels read."""
JACOBIAN_STEPS = 14
"""First steps of the window along which whole Jacobians are kept."""
SEQUENCES: dict[Split, int] = {"test": 512, "train": 256}
"""Sequences of each split on which a task is scored."""
SEQUENCES_TOGETHER = 128
"""How many of them are rolled at once."""

_DRIVEN = (
    f"{LANES} trajectories driven by held-out sequences of the model's own task (standard normal inputs where there is "
    f"no task), one sequence after another with the state carried on, after {WARM_UP + TANGENT_WARM_UP} warm-up steps"
)
DRIVE = f"{WINDOW} steps of {_DRIVEN}"
JACOBIANS = f"Jacobians dh(t+1)/dh(t) of the whole state at {JACOBIAN_STEPS} steps of {_DRIVEN}"


@dataclass(frozen=True)
class Trajectory:
    """What the driven models did in the window after the warm-up; states are side by side in the order of the spec."""

    x: Tensor
    """Inputs (models, time, lane, input)."""
    noise: dict[str, Tensor]
    """Noise (models, time, lane, axis)."""
    before: Tensor
    """States before each step (models, time, lane, state)."""
    log_growth: Tensor
    """Log of how much each step stretched a unit tangent vector that is carried along (models, time, lane), nats."""


class Driven:
    """A stack of models in float64 with everything labels read of them, computed when first asked for.

    Inputs come from the streams "labels/..." of each model. Models with non-finite params take part as zeros and are
    marked in `finite`. A single model is doubled, because the arithmetic of a stack of one differs in the last bits.
    """

    def __init__(
        self,
        family: Family,
        params: Params,
        task: Task | None,
        values: Mapping[str, Tensor],
        seed: int,
        model_ids: Sequence[str],
    ) -> None:
        self.num_models = len(model_ids)
        repeat = 2 if self.num_models == 1 else 1
        wide = {k: torch.cat([v] * repeat).detach().to(torch.float64) for k, v in params.items()}
        self.family, self.task, self.seed = family, task, seed
        self.model_ids = tuple(model_ids) * repeat
        self.values = {name: torch.cat([value] * repeat) for name, value in values.items()}
        self.device = next(iter(wide.values())).device
        self.finite = torch.stack([v.flatten(1).isfinite().all(1) for v in wide.values()]).all(0)
        self.params = {name: torch.where(_like(self.finite, v), v, 0) for name, v in wide.items()}

    @cached_property
    def effective(self) -> Params:
        """What the functions really use (models, ...), in the terms of `family.effective_spec`."""
        return torch.func.vmap(self.family.effective)(self.params)

    def streams(self, purpose: str) -> Streams:
        """Fresh streams of the models for one use."""
        return Streams(self.seed, self.model_ids, f"labels/{purpose}", self.device)

    def answers(self, split: Split) -> Iterator[tuple[Batch, Tensor]]:
        """Batches of sequences of the task with the models' outputs (models, time, batch, output), float64."""
        assert self.task is not None
        streams = self.streams(f"answers/{split}")
        for _ in range(SEQUENCES[split] // SEQUENCES_TOGETHER):
            batch = self.task.sample(self.values, streams, SEQUENCES_TOGETHER, split)
            noise = draw_noise(self.family.spec, streams, *batch.x.shape[1:3])
            x, start, noise = batch.x.double(), batch.start.double(), _double(noise)
            yield batch, rollout(self.family, self.params, x, start, noise=noise).outputs

    @cached_property
    def trajectory(self) -> Trajectory:
        """The driven trajectories."""
        x, start, noise = self._drive()
        early = rollout(
            self.family, self.params, x[:, :WARM_UP], start, noise={k: v[:, :WARM_UP] for k, v in noise.items()}
        )
        step = torch.func.vmap(self._step_with_tangent)
        state, (tangent, _) = early.final, _unit(self._random_tangent())
        before, growth = [], []
        for t in range(WARM_UP, WARM_UP + TANGENT_WARM_UP + WINDOW):
            before.append(self._flatten(state))
            state, tangent = step(self.params, state, tangent, x[:, t], {k: v[:, t] for k, v in noise.items()})
            tangent, length = _unit(tangent)
            growth.append(length.log())
        return Trajectory(
            x=x[:, -WINDOW:],
            noise={name: value[:, -WINDOW:] for name, value in noise.items()},
            before=torch.stack(before[-WINDOW:], dim=1),
            log_growth=torch.stack(growth[-WINDOW:], dim=1),
        )

    @cached_property
    def jacobians(self) -> Tensor:
        """dh(t+1)/dh(t) of the whole state, (models, time, lane, to state, from state)."""
        driven, found = self.trajectory, []
        # One time step at a time: what fits in the cache costs a fraction of what does not. And no view of the stored
        # states goes in, because forward mode lays out a tangent for all the memory that a view looks at.
        for t in range(JACOBIAN_STEPS):
            noise = {name: value[:, t] for name, value in driven.noise.items()}
            before = driven.before[:, t].contiguous()
            found.append(self.jacobians_at(before, driven.x[:, t], noise))
        return torch.stack(found, dim=1)

    def _drive(self) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Inputs (models, time, lane, input), starts (models, lane, start) and noise of all steps, float64."""
        streams, num_steps = self.streams("driven"), WARM_UP + TANGENT_WARM_UP + WINDOW
        if self.task is None:
            x = streams.normal(num_steps, LANES, self.family.input_size)
            start = x.new_zeros(len(self.model_ids), LANES, 0)
        else:
            length = self.task.num_steps
            pieces = -(-num_steps // length) + 1
            batch = self.task.sample(self.values, streams, pieces * LANES, "test")
            whole = batch.x.unflatten(2, (pieces, LANES)).transpose(1, 2).flatten(1, 2)
            offsets = [lane * length // LANES for lane in range(LANES)]
            x = torch.stack([whole[:, at : at + num_steps, lane] for lane, at in enumerate(offsets)], dim=2)
            start = batch.start[:, :LANES]
        return x.double(), start.double(), _double(draw_noise(self.family.spec, streams, num_steps, LANES))

    def _random_tangent(self) -> State:
        """One random direction (models, lane, axis) per trajectory."""
        spec = self.family.spec
        draws = self.streams("tangent").normal(LANES, spec.state_size, dtype=torch.float64)
        return self._unflatten(draws)

    def _step_with_tangent(
        self, params: Params, state: State, tangent: State, x: Tensor, noise: Mapping[str, Tensor]
    ) -> tuple[State, State]:
        """One model's state (lane, axis) and tangent vectors one step on."""
        after, moved, *_ = torch.func.jvp(lambda s: self.family.step(params, s, x, noise), (state,), (tangent,))
        return after, moved

    def step(self, state: Tensor, x: Tensor, noise: Mapping[str, Tensor]) -> Tensor:
        """States (models, point, state) one step on; all states of a model are side by side in the order of the spec.

        Inputs are (models, point, input), noise (models, point, axis).
        """
        return torch.func.vmap(self._flat_step)(self.params, state, x, noise)

    def push(self, state: Tensor, x: Tensor, noise: Mapping[str, Tensor], directions: Tensor) -> Tensor:
        """The Jacobians at states (models, point, state) times directions (models, direction, point, state)."""
        return torch.func.vmap(self._push)(self.params, state, x, noise, directions)

    def jacobians_at(self, state: Tensor, x: Tensor, noise: Mapping[str, Tensor]) -> Tensor:
        """dh(t+1)/dh(t) at states (models, point, state), as (models, point, to state, from state)."""
        basis = torch.eye(state.shape[-1], dtype=state.dtype, device=state.device)[:, None].expand(-1, *state.shape[1:])
        columns = torch.func.vmap(self._push, in_dims=(0, 0, 0, 0, None))(self.params, state, x, noise, basis)
        return columns.movedim(1, -1)

    def flat_readout(self, params: Params, state: Tensor) -> Tensor:
        """One model's outputs (point, output) at states (point, state)."""
        return self.family.readout(params, self._unflatten(state))

    def _flat_step(self, params: Params, state: Tensor, x: Tensor, noise: Mapping[str, Tensor]) -> Tensor:
        return self._flatten(self.family.step(params, self._unflatten(state), x, noise))

    def _push(
        self, params: Params, state: Tensor, x: Tensor, noise: Mapping[str, Tensor], directions: Tensor
    ) -> Tensor:
        """One model's Jacobians at states (point, state) times directions (direction, point, state)."""

        def step(flat: Tensor) -> Tensor:
            return self._flat_step(params, flat, x, noise)

        return torch.func.vmap(lambda direction: torch.func.jvp(step, (state,), (direction,))[1])(directions)

    def _flatten(self, state: State) -> Tensor:
        return torch.cat([state[name] for name in self.family.spec.states], dim=-1)

    def _unflatten(self, flat: Tensor) -> State:
        spec = self.family.spec
        pieces = flat.split([spec.axes[axis].size for axis in spec.states.values()], dim=-1)
        return dict(zip(spec.states, pieces, strict=True))


def _unit(tangent: State) -> tuple[State, Tensor]:
    """Tangent vectors (..., axis) scaled to length 1 over all states together, and the lengths (...) they had."""
    length = torch.stack([value.square().sum(-1) for value in tangent.values()]).sum(0).sqrt()
    # A vanished vector stays 0, so that what follows is known to be minus infinity.
    safe = torch.where(length > 0, length, 1)
    return {name: value / safe[..., None] for name, value in tangent.items()}, length


def _double(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.double() for name, tensor in tensors.items()}


def _like(flags: Tensor, tensor: Tensor) -> Tensor:
    return flags.reshape(-1, *[1] * (tensor.dim() - 1))
