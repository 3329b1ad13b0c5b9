"""Whether a model's memory function falls exponentially or as a power of time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from weightspace.rollout.forward import last_outputs
from weightspace.spec import WeightSpec
from zoo_builder.labels.base import Label, LabelColumn
from zoo_builder.labels.driven import WARM_UP, Driven

NUM_STEPS = 64
"""Steps of the memory function."""
DIRECTIONS, AMPLITUDES = 16, (0.5, 1.0, 2.0)
"""Steps of input that are tried: corners of a cube, of these sizes."""
FLOOR = 1e-7
"""Part of the largest value of the memory function below which it is not read."""
LEAST_POINTS = 8
EXACT = 1e-24
"""Least mean squared residual, nats: better fits are exact ones."""

_MEMORY = (
    f"the memory function M(t) = max |y(t+1) - y(t)| / |x| for t = 0 to {NUM_STEPS - 1} after the onset of a constant "
    f"input x, the largest of {DIRECTIONS} corners of a cube and {len(AMPLITUDES)} sizes, after {WARM_UP} steps "
    "without input or noise"
)
_READ = (
    f"Read up to where M first falls below {FLOOR:g} of its largest value. Null where those are fewer than "
    f"{LEAST_POINTS} times"
)


@dataclass(frozen=True, kw_only=True)
class MemoryLaw(Label):
    """Rate and exponent of the memory function, and which of the two laws Akaike's criterion prefers."""

    def columns(self, spec: WeightSpec) -> tuple[LabelColumn, ...]:
        source = "Wang, Li and Li, ICLR 2024, arXiv 2305.19190; Akaike, IEEE Transactions on Automatic Control 1974"
        line = f"the least-squares line of log M(t), {_MEMORY}, against"
        return (
            LabelColumn(
                name="memory_function_rate",
                unit="nats per step",
                definition=f"Minus the slope of {line} t. {_READ}.",
                source=source,
            ),
            LabelColumn(
                name="memory_function_exponent",
                unit="1",
                definition=f"Minus the slope of {line} log(1 + t). {_READ}.",
                source=source,
            ),
            LabelColumn(
                name="memory_law_aic",
                unit="nats",
                definition="AIC of the power law minus AIC of the exponential, n log(RSS / n) + 4, RSS the squared "
                f"residuals of {line} log(1 + t) or t: above 0 the memory is rather exponential. {_READ}, or where no "
                "line falls: such a memory does not decay.",
                source=source,
            ),
        )

    def measure(self, driven: Driven) -> dict[str, Tensor]:
        memory = memory_functions(driven)
        read = ((memory > FLOOR * memory.amax(1, keepdim=True)) & memory.isfinite()).double().cumprod(1)
        count = read.sum(1)
        log = torch.where(read > 0, memory, 1).log()
        time = torch.arange(NUM_STEPS, dtype=torch.float64, device=driven.device)
        rate, left_exponential = fitted_line(time, log, read)
        exponent, left_power = fitted_line(torch.log1p(time), log, read)
        enough = count >= LEAST_POINTS
        difference = count * (left_power / left_exponential).log()
        decays = enough & ((rate > 0) | (exponent > 0))
        return {
            "memory_function_rate": torch.where(enough, rate, torch.nan),
            "memory_function_exponent": torch.where(enough, exponent, torch.nan),
            "memory_law_aic": torch.where(decays, difference, torch.nan),
        }


def memory_functions(driven: Driven) -> Tensor:
    """M(t) (models, time) for t = 0, 1, ..., float64."""
    family, models = driven.family, len(driven.finite)
    words = driven.streams("memory_law").uniform(DIRECTIONS, family.input_size, dtype=torch.float64)
    signs = torch.where(words < 0.5, -1.0, 1.0).double()
    sizes = torch.tensor(AMPLITUDES, dtype=torch.float64, device=driven.device).repeat_interleave(DIRECTIONS)
    onset = signs.repeat(1, len(AMPLITUDES), 1) * sizes[:, None]
    x = onset.new_zeros(models, WARM_UP + NUM_STEPS, *onset.shape[1:])
    x[:, WARM_UP:] = onset[:, None]
    axes = family.spec.noise.items()
    noise = {name: x.new_zeros(*x.shape[:3], family.spec.axes[axis].size) for name, axis in axes}
    start = x.new_zeros(models, x.shape[2], 0)
    outputs = last_outputs(family, driven.params, x, start, noise, NUM_STEPS + 1, method=driven.method)
    moved = (outputs[:, 1:] - outputs[:, :-1]).square().sum(-1).sqrt()
    return (moved / sizes).amax(2)


def fitted_line(time: Tensor, log: Tensor, read: Tensor) -> tuple[Tensor, Tensor]:
    """Minus the slope and the mean squared residual (models,) of lines through log (models, time) where `read` is 1."""
    count = read.sum(1, keepdim=True).clamp(min=1)
    centred = (time - (read * time).sum(1, keepdim=True) / count) * read
    offset = (log - (read * log).sum(1, keepdim=True) / count) * read
    slope = (offset * centred).sum(1) / centred.square().sum(1).clamp(min=torch.finfo(torch.float64).tiny)
    left = (offset - slope[:, None] * centred).square().sum(1) / count[:, 0]
    return -slope, left.clamp(min=EXACT)
