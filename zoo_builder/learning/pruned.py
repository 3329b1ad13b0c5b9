"""Networks that are pruned before they are trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, Literal

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from weightspace.families import Family
from weightspace.rollout import Method, Streams, generator, rollout
from weightspace.rollout.noise import draw_noise
from weightspace.spec import Params
from zoo_builder.learning.bptt import BPTT
from zoo_builder.learning.lyapunov_pruning import by_lyapunov_noise, num_lost, retimed
from zoo_builder.learning.pruning import METHODS, Parent
from zoo_builder.members import Members
from zoo_builder.tasks import Batch, Task

CHOICES = ("lyapunov_noise", *METHODS)
WATCHED, SEQUENCES = 100, 8
"""Steps and sequences over which activity is taken."""


@dataclass(frozen=True, kw_only=True)
class Pruned(BPTT):
    """BPTT of networks whose recurrent connections are pruned first, as their weights alone say, whatever the task.

    `method` says which connections between different units stay, about the share `density` of those that there are:
    `noise`, which keeps slow modes of the linear model (Moore and Chaudhuri, NeurIPS 2020); `lyapunov_noise`, the four
    steps of Chakraborty et al. (ICLR 2024, arXiv 2403.03409), reconstructed from the public description, since the
    paper's text was not at hand (see `lyapunov_pruning`); `magnitude`, the strongest; `activity`, those that carry
    most while standard normal inputs drive the network; `uniform`, any. What chance keeps is divided by its
    probability, so that the mean stays. Connections that are gone stay 0 while the others learn, and a family that
    declares a mask has them out of it. With `snapshots: [0]` nothing is trained.

    It takes families whose recurrent tensors are plain matrices that the function uses as they are. Settings of the
    training, data, exams and snapshots are those of `Descent`.
    """

    method: Literal["lyapunov_noise", "noise", "magnitude", "activity", "uniform"] = "noise"
    """Rule by which connections stay."""
    density: float = 0.3
    """Share of the recurrent connections that stays, above 0 and at most 1; read-outs and inputs do not count."""
    unit_density: float = 1.0
    """Share of the units that `lyapunov_noise` keeps; units without recurrent connections are then taken out whole."""
    net: int = field(default=0, metadata={"least": 0})
    """Number of the random network that is pruned, the same one on every task; 0: each model has its own."""

    varying: ClassVar[tuple[str, ...]] = (*BPTT.varying, "density", "net")

    def __post_init__(self) -> None:
        if self.method not in CHOICES:
            raise ValueError(f"`method` (={self.method!r}) must be one of {CHOICES}.")
        if not 0 < self.unit_density <= 1:
            raise ValueError(f"`unit_density` (={self.unit_density}) must be above 0 and at most 1.")
        if self.unit_density < 1 and self.method != "lyapunov_noise":
            raise ValueError(
                f"`unit_density` (={self.unit_density}) is for the method lyapunov_noise, which takes out units; "
                f"leave it out with {self.method}."
            )
        super().__post_init__()

    def why_not(self, family: Family, task: Task | None) -> str | None:
        """See the base; recurrent tensors must be plain matrices that the function uses as they are."""
        return super().why_not(family, task) or why_not_prunable(family) or self._why_too_few_units(family)

    def _why_too_few_units(self, family: Family) -> str | None:
        """Reason why too few units would be left for a connection; None if enough are."""
        for name in family.spec.recurrent() if self.unit_density < 1 else ():
            size = family.spec.shape(name)[-1]
            left = size - num_lost(size, self.unit_density)
            if left < 2:
                return (
                    f"`unit_density` (={self.unit_density:g}) leaves {left} of {size} units, and a connection needs 2; "
                    "choose a larger share, or a larger family."
                )
        return None

    def first_params(self, family: Family, members: Members) -> Params:
        """First params (models, ...), pruned; those of `members` are pruned, too."""
        settings = self._settings(members)
        nets = settings["net"].tolist()
        names = [f"net/{net:.0f}" if net else model_id for net, model_id in zip(nets, members.ids, strict=True)]
        params = super().first_params(family, dataclasses.replace(members, ids=names))
        active = self._activity(family, params, Streams(members.seed, names, "prune/activity"))
        # Stacks are padded with copies of a model, which need no pruning of their own.
        done: dict[str, Params] = {}
        densities = settings["density"].tolist()
        for row, (model_id, name, density) in enumerate(zip(members.ids, names, densities, strict=True)):
            if model_id not in done:
                unpruned, activity = ({key: value[row] for key, value in part.items()} for part in (params, active))
                # One thread, so that bits do not depend on their number.
                with threadpool_limits(limits=1):
                    stream = generator(members.seed, name, "prune")
                    done[model_id] = self._pruned(family, unpruned, activity, density, stream)
        pruned = {key: torch.stack([done[model_id][key] for model_id in members.ids]) for key in params}
        return self._without_lost_units(family, pruned)

    def gradients(
        self, family: Family, task: Task, params: Params, batch: Batch, noise: Mapping[str, Tensor], method: Method
    ) -> tuple[Tensor, Params]:
        """Those of BPTT, 0 for what is pruned: recurrent weights that are 0 to the last bit."""
        losses, gradients = super().gradients(family, task, params, batch, noise, method)
        for name in family.spec.recurrent():
            if name in gradients:
                gradients[name] = gradients[name] * (params[name] != 0)
        return losses, self._without_lost_units(family, gradients, params)

    def updates_natively(self, family: Family) -> bool:
        """See the base: where masks are declared and all units stay, what is gone has no gradient anyway."""
        return self.unit_density == 1 and all(family.spec.tensors[name].mask for name in family.spec.recurrent())

    def _pruned(
        self, family: Family, params: Params, activity: Params, density: float, stream: torch.Generator
    ) -> Params:
        """The params of one model after pruning."""
        params = dict(params)
        rule = METHODS.get(self.method) or partial(by_lyapunov_noise, unit_density=self.unit_density)
        for name in family.spec.recurrent():
            axis, mask = family.spec.node_axes(name)[0], family.spec.tensors[name].mask
            whole = params[name] if mask is None else params[name] * params[mask]
            active = activity.get(axis, whole.new_zeros(len(whole)))
            parent = Parent(weight=whole.double().numpy(), activity=active.double().numpy())
            edges = parent.edges
            kept = rule(parent, density * int((edges != 0).sum()), stream)
            params[name] = (torch.from_numpy(kept) + whole.double().diag().diag()).to(whole.dtype)
            if mask is not None:
                params[mask] = (params[name] != 0).to(params[mask].dtype)
            for tau in timescales(family, axis) if self.method == "lyapunov_noise" else ():
                before = params[tau].double().clamp(min=1).numpy()
                params[tau] = torch.from_numpy(retimed(before, edges, kept, stream)).to(params[tau].dtype)
        return params

    def _activity(self, family: Family, params: Params, streams: Streams) -> Params:
        """Mean size (models, unit) of what units send, by axis: of spiking ones in proportion to their rate."""
        if self.method != "activity":
            return {}
        x = streams.normal(WATCHED, SEQUENCES, family.input_size)
        start = x.new_zeros(len(streams), SEQUENCES, family.reads_start)
        noise = draw_noise(family.spec, streams, WATCHED, SEQUENCES)
        states = rollout(family, params, x, start, noise=noise).states
        # The last state of an axis is the one that is sent on, such as the trace of spikes.
        return {family.spec.state_axes(name)[-1]: value.abs().mean((1, 2)) for name, value in states.items()}

    def _without_lost_units(self, family: Family, values: Params, params: Params | None = None) -> Params:
        """Values (models, ...) by tensor, 0 at units that have no recurrent connection, where units are taken out."""
        if self.unit_density == 1:
            return values
        values = dict(values)
        for axis, alive in living(family, values if params is None else params):
            for name in values:
                tensor = family.spec.tensors[name]
                for dim, other in enumerate(tensor.axes, 1):
                    if other == axis and tensor.domain == "real" and tensor.role != "mask":
                        shape = [len(alive), *[-1 if d == dim else 1 for d in range(1, values[name].dim())]]
                        values[name] = values[name] * alive.reshape(shape)
        return values

    def _check_settings(self, settings: Mapping[str, Tensor]) -> None:
        super()._check_settings(settings)
        density, net = settings["density"], settings["net"]
        wrong = (density <= 0) | (density > 1)
        if bool(wrong.any()):
            raise ValueError(f"`density` (={density[wrong][0]:g}) must be above 0 and at most 1.")
        if bool((net != net.round()).any()):
            raise ValueError(f"`net` (={net[net != net.round()][0]:g}) must be a whole number.")


def timescales(family: Family, axis: str) -> list[str]:
    """Names of the time constants of the units of an axis."""
    tensors = family.spec.tensors.items()
    return [k for k, t in tensors if t.axes == (axis,) and t.domain == "at_least_1" and "timescale" in t.row_roles]


def living(family: Family, params: Params) -> Iterator[tuple[str, Tensor]]:
    """Axis of every recurrent matrix, and whether each of its units has a connection to another (models, unit)."""
    for name in family.spec.recurrent():
        weight = params[name]
        edges = (weight != 0) & ~torch.eye(weight.shape[-1], dtype=torch.bool, device=weight.device)
        yield family.spec.node_axes(name)[0], edges.any(1) | edges.any(2)


def recurrent_factors(family: Family) -> list[str]:
    """Factor axes by which units may read units: those that at least two tensors join to one set of units."""
    joined: dict[tuple[str, str], int] = {}
    for _, nodes in family.spec.connections():
        for factor in (axis for axis in nodes if family.spec.axes[axis].kind == "factor"):
            for unit in (axis for axis in nodes if family.spec.axes[axis].kind == "hidden"):
                joined[factor, unit] = joined.get((factor, unit), 0) + 1
    return [factor for (factor, _), count in joined.items() if count > 1]


def why_not_prunable(family: Family) -> str | None:
    """Reason why the recurrent tensors of a family cannot be pruned, with the way out; None if they can."""
    spec, way_out = family.spec, "choose a family with a plain recurrent matrix, such as Elman, Leaky, LIF or HRSNN."
    others = [*spec.recurrent_products(), *recurrent_factors(family)]
    if not spec.recurrent() or others:
        reason = f"this family recurs through '{others[0]}', too" if others else "this family has none"
        return f"it prunes recurrent matrices, and {reason}; {way_out}"
    gated = [name for name in spec.recurrent() if spec.tensors[name].row_roles != ("drive",)]
    if gated:
        roles = ", ".join(spec.tensors[gated[0]].row_roles)
        return f"it prunes plain matrices that drive units, and '{gated[0]}' has the rows {roles}; {way_out}"
    params = spec.random_params(generator(0, "any", "prune"))
    used = family.effective(params)
    for name in family.spec.recurrent():
        mask = spec.tensors[name].mask
        expected = params[name] if mask is None else params[name] * params[mask]
        apart = ~torch.eye(len(expected), dtype=torch.bool)
        if name not in used or not torch.equal(used[name][apart], expected[apart]):
            return f"it prunes matrices that are used as they are, and '{name}' is computed from; {way_out}"
    return None
