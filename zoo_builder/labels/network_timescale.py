"""For how long the activity of a model's units outlives what drives it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from weightspace.rollout.forward import last_states
from weightspace.rollout.noise import draw_noise
from weightspace.rollout.tangents import flatten
from weightspace.spec import WeightSpec
from zoo_builder.labels.autocorrelation import LARGEST_LAG, TAUS, autocorrelations, fitted
from zoo_builder.labels.base import Label, LabelColumn
from zoo_builder.labels.driven import Driven

BURN_IN, NUM_STEPS = 60, 240
"""Steps that are left out at the start of a trial, and those that count."""
GROUPS, REPEATS = 16, 4
"""Probabilities of a 1, and trials with each of them."""
KEPT = 2**23
"""Most numbers of states that are kept at once."""

_TIMESCALE = (
    "the slower time scale that fits the autocorrelation of a unit of the state at lags 0 to "
    f"{LARGEST_LAG}: a exp(-t/tau) or a (c exp(-t/tau1) + (1 - c) exp(-t/tau2)), a and c from 0 to 1, times from "
    f"{TAUS[0]:.1f} to {TAUS[-1]:.0f}, by least squares, whichever Akaike's criterion prefers; in it lags count less "
    "the more alike residuals of neighbouring ones are. Every input is a random bit at each step, 1 with a probability "
    f"of its own for each of {GROUPS} groups of {REPEATS} trials, uniform from 0 to 1; autocovariances about the mean "
    f"over the trials of a group, averaged over all, from {NUM_STEPS} steps after {BURN_IN}"
)


@dataclass(frozen=True, kw_only=True)
class NetworkTimescale(Label):
    """Time scale of the units' activity under random bits: mean, median and spread over units."""

    def columns(self, spec: WeightSpec) -> tuple[LabelColumn, ...]:
        kinds = {"mean": "Mean", "median": "Median", "spread": "Standard deviation"}
        return tuple(
            LabelColumn(
                name=f"network_timescale_{name}",
                unit="steps",
                definition=f"{word}, over the units whose state varies, of {_TIMESCALE}. Null where no unit varies.",
                source="Khajehabdollahi et al., ICLR 2024, arXiv 2309.12927, with longer trials and autocovariances "
                "about the mean of each; Akaike, IEEE Transactions on Automatic Control 1974",
            )
            for name, word in kinds.items()
        )

    def measure(self, driven: Driven) -> dict[str, Tensor]:
        timescales = network_timescales(driven)
        mean = timescales.nanmean(1)
        return {
            "network_timescale_mean": mean,
            "network_timescale_median": timescales.nanquantile(0.5, dim=1),
            "network_timescale_spread": (timescales - mean[:, None]).square().nanmean(1).sqrt(),
        }


def network_timescales(driven: Driven) -> Tensor:
    """Time scale (models, unit) of every unit of the state, float64; NaN for one that does not vary."""
    family, models = driven.family, len(driven.finite)
    # The same at every snapshot.
    streams = driven.inputs.streams("network_timescale")
    num_steps, trials = BURN_IN + NUM_STEPS, GROUPS * REPEATS
    chance = streams.uniform(1, GROUPS, 1).repeat_interleave(REPEATS, 2)
    # Step by step: all numbers together would take eight times the memory of the bits, and more.
    bits = torch.cat([streams.uniform(1, trials, family.input_size) < chance for _ in range(num_steps)], 1)
    noise = draw_noise(family.spec, streams, num_steps, trials)
    found = []
    most = max(KEPT // (NUM_STEPS * trials * family.spec.state_size), 3)
    for part in torch.arange(models, device=driven.device).tensor_split(-(-models // most)):
        member = part % len(bits)
        params = {name: value[part] for name, value in driven.params.items()}
        x = bits[member].double()
        state = torch.func.vmap(family.initial_state)(params, x.new_zeros(len(part), trials, 0))
        drawn = {name: value[member].double() for name, value in noise.items()}
        states = last_states(family, params, x, state, drawn, NUM_STEPS, method=driven.method)
        units = flatten(family, states).unflatten(2, (GROUPS, REPEATS))
        found.append(fitted(autocorrelations(units).flatten(0, 1)).unflatten(0, (len(part), -1)))
    return torch.cat(found)
