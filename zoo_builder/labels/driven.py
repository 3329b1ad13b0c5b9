"""Models driven by their own task's held-out inputs: the trajectories and Jacobians that labels read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from weightspace.families import Family
from weightspace.rollout import Method, Streams
from weightspace.rollout.forward import is_native, last_outputs, last_states
from weightspace.rollout.tangents import flatten, jacobians, push, tangent_rollout, unflatten
from weightspace.spec import Params, State
from zoo_builder.labels.inputs import LANES, SEQUENCES, Inputs
from zoo_builder.tasks import Batch, Split, Task

__all__ = ["DRIVE", "JACOBIANS", "JACOBIAN_STEPS", "LANES", "SEQUENCES", "WARM_UP", "WINDOW", "Driven", "Trajectory"]

WARM_UP, TANGENT_WARM_UP = 48, 16
"""Steps from the initial state that no label reads, and how many more align tangent vectors."""
WINDOW = 48
"""Steps after the warm-up that labels read."""
JACOBIAN_STEPS = 14
"""First steps of the window along which whole Jacobians are kept."""
SEGMENT = 8
"""Steps that a native rollout carries a tangent vector before it is scaled to length 1 again."""
SMALLEST, LARGEST = 1e-100, 1e100
"""Between these, squares of what a tangent vector becomes on the way keep their digits."""

_DRIVEN = (
    f"{LANES} trajectories driven by held-out sequences of the model's own task (standard normal inputs where there is "
    f"no task), one sequence after another with the state carried on, after {WARM_UP + TANGENT_WARM_UP} warm-up steps"
)
DRIVE = f"{WINDOW} steps of {_DRIVEN}"
JACOBIANS = (
    f"Jacobians dh(t+1)/dh(t) of the whole state (spikes with their surrogate derivative) at {JACOBIAN_STEPS} steps of "
    f"{_DRIVEN}"
)


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

    Inputs come from the streams "labels/..." of each model; those of an earlier snapshot may be given. Models with
    non-finite params take part as zeros and are marked in `finite`. A single model is doubled, because the arithmetic
    of a stack of one differs in the last bits.
    """

    def __init__(
        self,
        family: Family,
        params: Params,
        task: Task | None,
        values: Mapping[str, Tensor],
        seed: int,
        model_ids: Sequence[str],
        method: Method = "stacked",
        inputs: Inputs | None = None,
    ) -> None:
        self.num_models = len(model_ids)
        repeat = 2 if self.num_models == 1 else 1
        wide = {k: torch.cat([v] * repeat).detach().to(torch.float64) for k, v in params.items()}
        self.family, self.task, self.seed = family, task, seed
        self.model_ids = tuple(model_ids) * repeat
        self.values = {name: torch.cat([value] * repeat) for name, value in values.items()}
        first = next(iter(wide.values()))
        self.device = first.device
        self.method: Method = "native" if is_native(family, first, method) else "stacked"
        self.finite = torch.stack([v.flatten(1).isfinite().all(1) for v in wide.values()]).all(0)
        self.params = {name: torch.where(_like(self.finite, v), v, 0) for name, v in wide.items()}
        num_steps = WARM_UP + TANGENT_WARM_UP + WINDOW
        self.inputs = inputs or Inputs(family, task, self.values, seed, self.model_ids, self.device, num_steps)

    @cached_property
    def effective(self) -> Params:
        """What the functions really use (models, ...), in the terms of `family.effective_spec`."""
        return torch.func.vmap(self.family.effective)(self.params)

    def streams(self, purpose: str) -> Streams:
        """Fresh streams of the models for one use."""
        return self.inputs.streams(purpose)

    def answers(self, split: Split) -> Iterator[tuple[Batch, Tensor]]:
        """Batches of sequences of the task with the models' outputs at the scored steps, float64.

        Outputs are (models, scored, batch, output).
        """
        for batch, x, start, noise in self.inputs.batches(split):
            scored = batch.target.shape[1]
            yield batch, last_outputs(self.family, self.params, x, start, noise, scored, method=self.method)

    @cached_property
    def trajectory(self) -> Trajectory:
        """The driven trajectories."""
        x, start, noise = self.inputs.drive
        state = torch.func.vmap(self.family.initial_state)(self.params, start)
        state = self._early(state, x[:, :WARM_UP], {k: v[:, :WARM_UP] for k, v in noise.items()})
        late = {name: value[:, WARM_UP:] for name, value in noise.items()}
        tangent, _ = _unit(self._random_tangent())
        segment = SEGMENT if self.method == "native" else 1
        visited, growth, safe = self._carried(slice(None), state, tangent, x[:, WARM_UP:], late, segment)
        if segment > 1 and not bool(safe.all()):
            # Who leaves the range of numbers within a segment is carried again, scaled at every step.
            rest = (~safe).nonzero()[:, 0]
            own = [{name: value[rest] for name, value in part.items()} for part in (state, tangent, late)]
            visited[rest], growth[rest], _ = self._carried(rest, own[0], own[1], x[rest, WARM_UP:], own[2], 1)
        return Trajectory(
            x=x[:, -WINDOW:],
            noise={name: value[:, -WINDOW:] for name, value in noise.items()},
            before=visited[:, -WINDOW - 1 : -1],
            log_growth=growth[:, -WINDOW:],
        )

    def _early(self, state: State, x: Tensor, noise: Mapping[str, Tensor]) -> State:
        """States (models, lane, axis) after these inputs."""
        after = last_states(self.family, self.params, x, state, noise, 1, method=self.method)
        return {name: value[:, 0] for name, value in after.items()}

    def _carried(
        self,
        models: slice | Tensor,
        state: State,
        tangent: State,
        x: Tensor,
        noise: Mapping[str, Tensor],
        segment: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """States (models, 1 + time, lane, state) from the first on, log growth (models, time, lane), and who is safe.

        Safe are models whose tangent vectors stay within the range of numbers between one scaling and the next.
        """
        params = {name: value[models] for name, value in self.params.items()}
        visited, growth = [flatten(self.family, state)[:, None]], []
        safe = x.new_ones(len(x), dtype=torch.bool)
        for first in range(0, x.shape[1], segment):
            part = slice(first, first + segment)
            own_noise = {name: value[:, part] for name, value in noise.items()}
            states, moved = tangent_rollout(
                self.family, params, x[:, part], state, tangent, own_noise, method=self.method
            )
            state, last = ({name: value[:, -1] for name, value in run.items()} for run in (states, moved))
            visited.append(flatten(self.family, states))
            tangent, _ = _unit(last)
            found, is_safe = _log_growth(moved)
            growth.append(found)
            safe &= is_safe
        return torch.cat(visited, dim=1), torch.cat(growth, dim=1), safe

    @cached_property
    def jacobians(self) -> Tensor:
        """dh(t+1)/dh(t) of the whole state, (models, time, lane, to state, from state)."""
        driven = self.trajectory
        if self.method == "native":
            x, noise = driven.x[:, :JACOBIAN_STEPS], {k: v[:, :JACOBIAN_STEPS] for k, v in driven.noise.items()}
            state = unflatten(self.family, driven.before[:, 0])
            return jacobians(self.family, self.params, x, state, noise, method=self.method)
        found = []
        # One time step at a time: what fits in the cache costs a fraction of what does not.
        for t in range(JACOBIAN_STEPS):
            noise = {name: value[:, t] for name, value in driven.noise.items()}
            found.append(self.jacobians_at(driven.before[:, t], driven.x[:, t], noise))
        return torch.stack(found, dim=1)

    @cached_property
    def mean_jacobian(self) -> Tensor:
        """The mean of the Jacobians over time and lanes, (models, to state, from state)."""
        if self.method == "native":
            # As they lie in memory.
            return self.jacobians.transpose(-1, -2).flatten(1, 2).mean(1).transpose(-1, -2)
        return self.jacobians.mean((1, 2))

    def _random_tangent(self) -> State:
        """One random direction (models, lane, axis) per trajectory."""
        draws = self.streams("tangent").normal(LANES, self.family.spec.state_size, dtype=torch.float64)
        return unflatten(self.family, draws)

    def step(self, state: Tensor, x: Tensor, noise: Mapping[str, Tensor]) -> Tensor:
        """States (models, point, state) one step on; all states of a model are side by side in the order of the spec.

        Inputs are (models, point, input), noise (models, point, axis).
        """
        early = {name: value[:, None] for name, value in noise.items()}
        own = unflatten(self.family, state)
        after = last_states(self.family, self.params, x[:, None], own, early, 1, method=self.method)
        return flatten(self.family, after)[:, 0]

    def push(self, state: Tensor, x: Tensor, noise: Mapping[str, Tensor], directions: Tensor) -> Tensor:
        """The Jacobians at states (models, point, state) times directions (models, direction, point, state)."""
        own = unflatten(self.family, state)
        return push(self.family, self.params, x, own, directions, noise, method=self.method)

    def jacobians_at(self, state: Tensor, x: Tensor, noise: Mapping[str, Tensor]) -> Tensor:
        """dh(t+1)/dh(t) at states (models, point, state), as (models, point, to state, from state)."""
        early = {name: value[:, None] for name, value in noise.items()}
        own = unflatten(self.family, state)
        return jacobians(self.family, self.params, x[:, None], own, early, method=self.method)[:, 0]

    def flat_readout(self, params: Params, state: Tensor) -> Tensor:
        """One model's outputs (point, output) at states (point, state)."""
        return self.family.readout(params, unflatten(self.family, state))


def _length(tangent: State) -> Tensor:
    """Lengths (...) of tangent vectors (..., axis) over all states together."""
    return torch.stack([value.square().sum(-1) for value in tangent.values()]).sum(0).sqrt()


def _unit(tangent: State) -> tuple[State, Tensor]:
    """Tangent vectors (..., axis) scaled to length 1, and the lengths (...) they had."""
    length = _length(tangent)
    # A vanished vector stays 0, so that what follows is known to be minus infinity.
    safe = torch.where(length > 0, length, 1)
    return {name: value / safe[..., None] for name, value in tangent.items()}, length


def _log_growth(moved: State) -> tuple[Tensor, Tensor]:
    """Log of how much each step stretched unit tangents (models, time, lane, axis), and whose numbers are safe."""
    size = torch.stack([torch.maximum(-value.amin(-1), value.amax(-1)) for value in moved.values()]).amax(0)
    safe = ((size == 0) | ((size >= SMALLEST) & (size <= LARGEST))).flatten(1).all(1)
    logs = _length(moved).log()
    before = torch.cat([torch.zeros_like(logs[:, :1]), logs[:, :-1]], dim=1)
    return torch.where(logs == -torch.inf, logs, logs - before), safe


def _like(flags: Tensor, tensor: Tensor) -> Tensor:
    return flags.reshape(-1, *[1] * (tensor.dim() - 1))
