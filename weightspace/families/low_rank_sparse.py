"""Networks of another family whose recurrent matrices are products of low rank under a sparse mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Literal

import torch
from torch import Tensor

from weightspace import families
from weightspace.families.base import Family, Least, Noise, glorot
from weightspace.spec import Axis, Charge, Gauge, Params, State, TensorSpec, WeightSpec

INITIAL = ("glorot", "orthogonal")
PARTS = ("to", "from", "mask")
"""What stands in the place of a tensor W: W_1, W_2 and M."""


@dataclass(frozen=True, kw_only=True)
class LowRankSparse(Family):
    """Low-rank and sparse recurrent connectivity (Tumma et al., ICLR 2024, arXiv 2310.03915) in a network of `cell`.

    Recurrent matrices of the family `cell` are W(r, s) = (W_1 W_2) * M with W_1 (hidden, rank), W_2 (rank, hidden) and
    a mask M that stays as drawn, whose entries are 0 with probability s = `sparsity`. W_1 = U sqrt(S) and W_2 =
    sqrt(S) V^T start from the first r singular values of a Glorot-uniform or orthogonal matrix; everything else starts
    and acts as in `cell`. `effective` has W(r, s). Second-hand: the paper's text was not at hand, only reviews and
    summaries. Which matrices of a gated cell it factors is not in them; here it is each gate's in the tensors that
    also drive units, so that the gate of CfC, a tensor of its own, stays dense.
    """

    hidden_size: int
    cell: str
    rank: int
    sparsity: float = 0.0
    initial: Literal["glorot", "orthogonal"] = "glorot"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.sparsity < 1:
            raise ValueError(f"`sparsity` (={self.sparsity}) must be at least 0 and below 1.")
        if self.initial not in INITIAL:
            raise ValueError(f"`initial` (={self.initial!r}) must be one of {INITIAL}.")
        if not self._factored:
            raise ValueError(f"`cell` (={self.cell!r}) has no recurrent matrix that could be of low rank.")

    @classmethod
    def least(cls, config: Mapping[str, Any]) -> Mapping[str, Least]:
        return {"hidden_size": Least(config["rank"], "no matrix has a `rank` above its size")}

    @cached_property
    def dense(self) -> Family:
        """The network of `cell` whose recurrent matrices are computed here."""
        sizes = {"input_size": self.input_size, "hidden_size": self.hidden_size, "output_size": self.output_size}
        return families.load(self.cell, sizes)

    @cached_property
    def _factored(self) -> dict[str, str]:
        """Tensor of `cell` -> the rank axis of its factors."""
        spec = self.dense.spec
        names = [name for name in spec.recurrent() if "drive" in spec.tensors[name].row_roles]
        return {name: f"rank.{number}" for number, name in enumerate(names)}

    def declare(self) -> WeightSpec:
        spec = self.dense.spec
        ranks = {rank: Axis(size=self.rank, kind="factor", permutable=True) for rank in self._factored.values()}
        tensors: dict[str, TensorSpec] = {}
        for name, tensor in spec.tensors.items():
            tensors |= self._parts(name, tensor) if name in self._factored else {name: tensor}
        gauges = {name: replace(gauge, charges=self._moved(gauge)) for name, gauge in spec.gauges.items()}
        for name, rank in self._factored.items():
            lead: tuple[Charge, ...] = (0,) * (len(spec.tensors[name].axes) - 2)
            charges = {f"{name}.to": (*lead, 0, -1), f"{name}.from": (*lead, 1, 0)}
            gauges[f"scale.{rank}"] = Gauge(axis=rank, kind="nonzero", charges=charges)
        mixing = "(W_1 G, G^-1 W_2) is the same product for every invertible G; gates could each have their own."
        return replace(
            spec,
            axes={**spec.axes, **ranks},
            tensors=tensors,
            gauges=gauges,
            unrepresented={**spec.unrepresented, "factors": mixing},
        )

    def _parts(self, name: str, whole: TensorSpec) -> dict[str, TensorSpec]:
        """The declarations of W_1, W_2 and M."""
        *lead, to, source = whole.axes
        ends = {"to": (to, self._factored[name]), "from": (self._factored[name], source)}
        parts = {f"{name}.{part}": replace(whole, axes=(*lead, *end)) for part, end in ends.items()}
        return parts | {f"{name}.mask": replace(whole, role="mask")}

    def _moved(self, gauge: Gauge) -> dict[str, tuple[Charge, ...]]:
        """The charges of a gauge of `cell`, its sides of W on W_1 and W_2."""
        charges = dict(gauge.charges)
        for name in charges.keys() & self._factored.keys():
            *lead, to, source = charges.pop(name)
            charges |= {f"{name}.to": (*lead, to, 0), f"{name}.from": (*lead, 0, source)}
        return charges

    @cached_property
    def effective_spec(self) -> WeightSpec:
        """The spec of `effective`: that of `cell`, with masks."""
        spec = self.dense.effective_spec
        tensors = dict(spec.tensors)
        for name in self._factored:
            tensors[name] = replace(tensors[name], mask=f"{name}.mask")
            tensors[f"{name}.mask"] = replace(self.dense.spec.tensors[name], role="mask")
        return replace(spec, tensors=tensors)

    def init(self, generator: torch.Generator) -> Params:
        params = self.dense.init(generator)
        for name in self._factored:
            whole = self._whole(params.pop(name).shape, generator)
            to, values, source = torch.linalg.svd(whole, full_matrices=False)
            root = values[..., : self.rank].sqrt()
            params[f"{name}.to"] = (to[..., : self.rank] * root[..., None, :]).float()
            params[f"{name}.from"] = (root[..., None] * source[..., : self.rank, :]).float()
            drawn = torch.rand(whole.shape, generator=generator)
            params[f"{name}.mask"] = (drawn >= self.sparsity).float()
        return {name: params[name].contiguous() for name in self.spec.tensors}

    def _whole(self, shape: torch.Size, generator: torch.Generator) -> Tensor:
        """Matrices (..., hidden, hidden) before they are cut to a low rank, float64."""
        if self.initial == "glorot":
            return glorot(shape, generator).double()
        turned, triangle = torch.linalg.qr(torch.randn(shape, generator=generator, dtype=torch.float64))
        # Without the signs the orthogonal matrices would not be uniform (Mezzadri, Notices of the AMS 2007).
        matrices: Tensor = turned * triangle.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]
        return matrices

    def _computed(self, params: Params) -> Params:
        """The params of `cell`, with W(r, s) in the place of factors and masks."""
        computed = {name: params[name] for name in self.dense.spec.tensors if name not in self._factored}
        for name in self._factored:
            to, source, mask = (params[f"{name}.{part}"] for part in PARTS)
            # One product for each row: the native engine has no batches of matrices.
            product = torch.stack([a @ b for a, b in zip(to, source, strict=True)]) if to.dim() > 2 else to @ source
            computed[name] = product * mask
        return computed

    def effective(self, params: Params) -> Params:
        masks = {f"{name}.mask": params[f"{name}.mask"] for name in self._factored}
        return {**self.dense.effective(self._computed(params)), **masks}

    def initial_state(self, params: Params, start: Tensor) -> State:
        return self.dense.initial_state(self._computed(params), start)

    def step(self, params: Params, state: State, x: Tensor, noise: Noise) -> State:
        return self.dense.step(self._computed(params), state, x, noise)

    def readout(self, params: Params, state: State) -> Tensor:
        return self.dense.readout(self._computed(params), state)

    @classmethod
    def examples(cls) -> Sequence[Family]:
        make = partial(cls, input_size=2, output_size=2, hidden_size=4)
        return [
            make(cell="Elman", rank=2, sparsity=0.3),
            make(cell="GRU", rank=3, initial="orthogonal"),
            make(cell="LSTM", rank=2, sparsity=0.2),
            make(cell="CfC", rank=3, sparsity=0.4),
        ]
