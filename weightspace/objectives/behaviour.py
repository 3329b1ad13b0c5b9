"""What models do on inputs, as something to imitate: states, outputs, responses to kicks; no gradients are kept."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from weightspace.objectives.gram import variance
from weightspace.rollout import Rollout, Streams, rollout
from weightspace.rollout.noise import draw_noise
from weightspace.spec import State
from weightspace.store import Stack


@dataclass(frozen=True, eq=False)
class Behaviour:
    """A stack and what it did on inputs x (models, time, sequences, input) with noise (models, time, sequences, axis).

    All randomness comes from streams of the batch's key and each model's row, so that models are on their own.
    """

    stack: Stack
    x: Tensor
    noise: dict[str, Tensor]
    run: Rollout
    streams: Streams

    @property
    def spread(self) -> State:
        """Root mean square distance of each state from its mean over time and sequences (models,)."""
        return {name: variance(value.flatten(1, 2)).sqrt() for name, value in self.run.states.items()}


@torch.no_grad()
def observe(stack: Stack, x: Tensor, key: int) -> Behaviour:
    """Roll a stack out, natively where that can be, on inputs x (models, sequences, time, input)."""
    some = next(iter(stack.params.values()))
    x = x.to(some).transpose(1, 2).contiguous()
    streams = Streams(key, [str(row) for row in stack.rows.tolist()], "behaviour", x.device)
    drawn = draw_noise(stack.family.spec, streams.fork("noise"), x.shape[1], x.shape[2])
    noise = {name: value.to(x) for name, value in drawn.items()}
    run = rollout(stack.family, stack.params, x, method="native", noise=noise)
    return Behaviour(stack, x, noise, run, streams)


def share_suffix(x: Tensor, steps: int) -> Tensor:
    """Inputs (models, sequences, time, input) of which the second of every two ends with the first's last `steps`.

    What then tells the two apart is what is remembered of the time before, and how long.
    """
    if not steps:
        return x
    shared = x.clone()
    second = shared[:, 1::2]
    second[:, :, -steps:] = x[:, 0::2][:, : second.shape[1], -steps:]
    return shared


@torch.no_grad()
def responses(seen: Behaviour, num_steps: int) -> Tensor:
    """Log of what is left of a kick of the state, (models, step), step 1 to `num_steps`, NaN beyond the inputs' end.

    In the middle of each sequence every state is moved in a random direction, as far as it lies from its mean on
    average (a unit kick, in units of the state's own spread), and the rollout goes on from there on the same inputs and
    noise. With differences d the log of sqrt(mean over states and sequences of |d|^2 / spread^2) is given, no less than
    that of 1e-4; directions are uniform, so no permutation or sign changes what is expected.
    """
    start = seen.x.shape[1] // 2
    if start == 0:
        return seen.x.new_full((len(seen.stack), num_steps), torch.nan)
    stop = min(start + num_steps, seen.x.shape[1])
    spread, kicks = seen.spread, seen.streams.fork("kicks")
    state = {}
    for name, value in seen.run.states.items():
        direction = kicks.normal(*value.shape[2:], dtype=value.dtype)
        length = spread[name][:, None, None] / direction.norm(dim=2, keepdim=True).clamp(min=1e-12)
        state[name] = (value[:, start - 1] + length * direction).contiguous()
    x = seen.x[:, start:stop].contiguous()
    noise = {name: value[:, start:stop].contiguous() for name, value in seen.noise.items()}
    kicked = rollout(seen.stack.family, seen.stack.params, x, method="native", noise=noise, state=state)
    left = [
        (kicked.states[name] - value[:, start:stop]).square().sum(3).mean(2) / spread[name].square()[:, None]
        for name, value in seen.run.states.items()
    ]
    # A state that does not vary is not kicked: 0 / 0.
    logs = torch.log(torch.stack(left).nanmean(0) + 1e-8) / 2
    return F.pad(logs, (0, num_steps - logs.shape[1]), value=torch.nan)


def draw_inputs(stack: Stack, sequences: int, steps: int, key: int) -> Tensor:
    """Standard normal inputs (models, sequences, time, input), the same for every model of a batch."""
    generator = torch.Generator().manual_seed(key)
    x = torch.randn(1, sequences, steps, stack.family.input_size, generator=generator)
    return x.to(next(iter(stack.params.values()))).expand(len(stack), -1, -1, -1)
