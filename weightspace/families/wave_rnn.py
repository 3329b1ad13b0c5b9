"""The wave network, whose state travels round rings of sites."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from weightspace.families.base import Family, Noise, linear, uniform
from weightspace.spec import Axis, Gauge, Params, State, TensorSpec, WeightSpec

TAPS = 3
"""Width of the kernel: a site reads itself and its two neighbours."""


@dataclass(frozen=True, kw_only=True)
class WaveRNN(Family):
    """Waves on rings of sites, one ring for each channel (Keller et al., wave RNN, ICLR 2024, arXiv 2309.08045).

    h'(c, s) = relu(sum over d, t of K(c, d, t) h(d, s + t - 1) + sum_i V(c, s, i) x_i + b_c), sites s counted round
    the ring and taps t = 0, 1, 2; y_o = sum over c, s of W(o, c, s) h(c, s) + b_o. At first every channel hands its
    activity on from site to site, K(c, c, 2) = 1, and inputs enter at site 0 alone, V(c, 0, i) = 1, all else of K, V
    and b being 0: a wave comes round again after `sites` steps. The read-out starts from U(-1/sqrt(n), 1/sqrt(n)) with
    n = channels * sites. `weight_ih` is V, `kernel` K, `weight_ho` W; the state h lies on (channel, site).
    """

    hidden_size: int
    """Number of channels."""
    sites: int = field(metadata={"least": TAPS})
    """Number of sites of a ring."""

    def declare(self) -> WeightSpec:
        axes = {
            "input": Axis(size=self.input_size, kind="input"),
            "channel": Axis(size=self.hidden_size, kind="hidden", permutable=True, nonlinearity="relu"),
            "site": Axis(size=self.sites, kind="factor"),
            "tap": Axis(size=TAPS, kind="factor"),
            "output": Axis(size=self.output_size, kind="output"),
        }
        tensors = {
            "weight_ih": TensorSpec(axes=("channel", "site", "input")),
            "kernel": TensorSpec(axes=("channel", "channel", "tap")),
            "bias": TensorSpec(axes=("channel",)),
            "weight_ho": TensorSpec(axes=("output", "channel", "site")),
            "bias_o": TensorSpec(axes=("output",)),
        }
        scale = Gauge(
            axis="channel",
            kind="positive",
            charges={"weight_ih": (1, 0, 0), "kernel": (1, -1, 0), "bias": (1,), "weight_ho": (0, -1, 0)},
            state_charges={"h": 1},
        )
        return WeightSpec(
            axes=axes,
            tensors=tensors,
            states={"h": ("channel", "site")},
            gauges={"scale": scale},
            unrepresented={
                "shift": "V and W with all sites moved round the ring compute the same: sites keep their order here.",
                "mirror": "So do V and W with the sites in reverse and K with its taps in reverse.",
            },
        )

    def init(self, generator: torch.Generator) -> Params:
        params = {name: torch.zeros(self.spec.shape(name)) for name in self.spec.tensors}
        params["weight_ih"][:, 0] = 1
        params["kernel"][..., -1] = torch.eye(self.hidden_size)
        return params | {
            name: uniform(self.spec.shape(name), self.spec.state_size, generator) for name in ("weight_ho", "bias_o")
        }

    def circulant(self, kernel: Tensor) -> Tensor:
        """The matrix (channel * site, channel * site) by which the convolution with `kernel` maps a state."""
        channels, sites = self.hidden_size, self.sites
        nothing = kernel.new_zeros(channels, channels, sites - TAPS)
        ring = torch.cat([kernel[..., 1:], nothing, kernel[..., :1]], -1)
        # Rows shorter by one than two turns of the ring move it by one site each.
        turns = ring.repeat(1, 1, 2 * sites)[..., : sites * (2 * sites - 1)]
        rows = turns.reshape(channels, channels, sites, -1)[..., :sites]
        return rows.transpose(1, 2).reshape(channels * sites, channels * sites)

    def step(self, params: Params, state: State, x: Tensor, noise: Noise) -> State:
        bias = params["bias"][:, None].expand(-1, self.sites).flatten()
        drive = linear(x, params["weight_ih"], bias) + linear(state["h"], self.circulant(params["kernel"]))
        return {"h": torch.relu(drive)}

    def readout(self, params: Params, state: State) -> Tensor:
        return linear(state["h"], params["weight_ho"].flatten(1), params["bias_o"])

    @classmethod
    def examples(cls) -> Sequence[Family]:
        return [
            cls(input_size=2, hidden_size=3, output_size=2, sites=3),
            cls(input_size=1, hidden_size=2, output_size=2, sites=3),
        ]
