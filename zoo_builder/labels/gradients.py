"""How a gradient shrinks or grows on its way back through time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from weightspace.rollout.tangents import unflatten
from weightspace.spec import Params, WeightSpec
from zoo_builder.labels.base import Label, LabelColumn
from zoo_builder.labels.driven import JACOBIAN_STEPS, JACOBIANS, Driven

MAX_LAG = JACOBIAN_STEPS


@dataclass(frozen=True, kw_only=True)
class GradientFlow(Label):
    """Slope of the log of an output's mean gradient norm against the lag of the state it is taken with respect to."""

    def columns(self, spec: WeightSpec) -> tuple[LabelColumn, ...]:
        return (
            LabelColumn(
                name="gradient_log_slope",
                unit="nats per step",
                definition="Slope of the least-squares line through log mean ||g(k)||, mean over trajectories, against "
                f"the lag k = 0 to {MAX_LAG}; g(k) is the gradient of v . y(T) with respect to h(T - k), v a random "
                "unit direction of the outputs for each trajectory, carried back from lag to lag by the transposed "
                f"{JACOBIANS}. Below 0 gradients vanish, above 0 they explode. Null where all of a lag are 0.",
                source="Bengio, Simard and Frasconi, IEEE Transactions on Neural Networks 1994",
            ),
        )

    def measure(self, driven: Driven) -> dict[str, Tensor]:
        norms = log_gradients(driven)
        lags = torch.arange(MAX_LAG + 1, dtype=torch.float64, device=norms.device)
        centred = lags - lags.mean()
        # Row by row: the last bits of a matrix-vector product depend on how many rows it has.
        slope = ((norms - norms.mean(1, keepdim=True)) * centred).sum(1) / centred.square().sum()
        return {"gradient_log_slope": slope}


def log_gradients(driven: Driven) -> Tensor:
    """Log of the mean over trajectories of the norm of an output's gradient, (models, lag), lags 0 to MAX_LAG."""
    family, before = driven.family, driven.trajectory.before
    v = driven.streams("gradients").normal(before.shape[2], family.output_size, dtype=torch.float64)
    v = v / torch.linalg.vector_norm(v, dim=-1, keepdim=True)

    def pulled(params: Params, state: Tensor, v: Tensor) -> Tensor:
        pull = torch.func.vjp(lambda flat: family.readout(params, unflatten(family, flat)), state)[1]
        cotangent: Tensor = pull(v)[0]
        return cotangent

    first = torch.func.vmap(pulled)(driven.params, before[:, MAX_LAG].contiguous(), v)
    norms = []
    for lanes, jacobians in driven.jacobian_parts():
        gradient = first[:, lanes]
        found = [torch.linalg.vector_norm(gradient, dim=-1)]
        for lag in range(1, MAX_LAG + 1):
            gradient = (jacobians[:, MAX_LAG - lag] * gradient[..., None]).sum(-2)
            found.append(torch.linalg.vector_norm(gradient, dim=-1))
        norms.append(torch.stack(found, dim=1))
    return torch.cat(norms, dim=2).mean(-1).log()
