"""What an impulse of input does to the outputs one and three steps later: its sign, and its energy."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from weightspace.rollout.forward import last_outputs
from weightspace.spec import WeightSpec
from zoo_builder.labels.base import Label, LabelColumn
from zoo_builder.labels.driven import WARM_UP, Driven

SIGNED_LAG, ENERGY_LAG = 1, 3
MOST_NUMBERS = 2**24
"""Most numbers of one model's inputs and states that are kept at once."""

_RESPONSE = (
    "half the difference between the output after an impulse of 1 at an input and that after an impulse of -1, with no "
    f"input before and after, and no noise, from the state after {WARM_UP} steps without input"
)


@dataclass(frozen=True, kw_only=True)
class LaggedResponse(Label):
    """The odd part of the impulse response: its mean at lag 1 with its sign, and log energy at lag 3."""

    def columns(self, spec: WeightSpec) -> tuple[LabelColumn, ...]:
        return (
            LabelColumn(
                name=f"signed_response_lag_{SIGNED_LAG}",
                unit="outputs per input",
                definition=f"Mean over outputs and inputs of the response {SIGNED_LAG} step after the input: "
                f"{_RESPONSE}. Null where it is not finite.",
                source="definition",
            ),
            LabelColumn(
                name=f"log_response_energy_lag_{ENERGY_LAG}",
                unit="nats",
                definition=f"Log of the mean square over outputs and inputs of the response {ENERGY_LAG} steps after "
                f"the input: {_RESPONSE}. Null where it is 0 or not finite.",
                source="definition",
            ),
        )

    def measure(self, driven: Driven) -> dict[str, Tensor]:
        response = responses(driven, ENERGY_LAG)
        signed = response[:, SIGNED_LAG].mean((1, 2))
        energy = response[:, ENERGY_LAG].square().mean((1, 2)).log()
        found = {f"signed_response_lag_{SIGNED_LAG}": signed, f"log_response_energy_lag_{ENERGY_LAG}": energy}
        return {name: torch.where(value.isfinite(), value, torch.nan) for name, value in found.items()}


def responses(driven: Driven, lags: int) -> Tensor:
    """Odd parts of impulse responses (models, lag, input, output), lags 0 to `lags`, float64."""
    family = driven.family
    impulses = torch.eye(family.input_size, dtype=torch.float64, device=driven.device)
    numbers = 2 * (WARM_UP + 1 + lags) * (family.input_size + family.spec.state_size)
    parts = impulses.split(max(MOST_NUMBERS // numbers, 1))
    return torch.cat([_responses(driven, part, lags) for part in parts], dim=2)


def _responses(driven: Driven, impulses: Tensor, lags: int) -> Tensor:
    """Responses (models, lag, impulse, output) to impulses (impulse, input)."""
    family, models = driven.family, len(driven.finite)
    x = impulses.new_zeros(models, WARM_UP + 1 + lags, 2 * len(impulses), family.input_size)
    x[:, WARM_UP] = torch.cat([impulses, -impulses])
    axes = family.spec.noise.items()
    noise = {name: x.new_zeros(*x.shape[:3], family.spec.axes[axis].size) for name, axis in axes}
    start = x.new_zeros(models, x.shape[2], 0)
    outputs = last_outputs(family, driven.params, x, start, noise, 1 + lags, method=driven.method)
    up, down = outputs.unflatten(2, (2, len(impulses))).unbind(2)
    response: Tensor = (up - down) / 2
    return response
