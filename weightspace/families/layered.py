"""Networks of equal recurrent layers: their declaration, read-out, and conversion from and to torch.nn."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from weightspace.families.base import Family, linear, uniform
from weightspace.families.computed import weights_of
from weightspace.spec import Axis, Charge, Gauge, Params, State, TensorSpec, WeightSpec

UNREPRESENTED: dict[str, Any] = {"bidirectional": False, "proj_size": 0}
"""Options of torch.nn's layers that no family represents, each with the value that switches it off."""

MOST_LAYERS = 100
"""Bound on `num_layers`: a declaration lists every tensor of every layer."""


@dataclass(frozen=True, kw_only=True)
class Layered(Family):
    """Layers of one kind on top of each other, x_l = h_{l-1}', and a linear read-out y = W_ho h_L + b_o of the last.

    Each layer has `weight_ih.l` ([gate,] hidden.l, below), `weight_hh.l` ([gate,] hidden.l, hidden.l) and `bias.l`
    ([gate,] hidden.l), the sum of torch.nn's two biases. Without a read-out the units of the last layer are the
    outputs: they keep an identity, so that layer has neither permutations nor a gauge.
    """

    hidden_size: int
    num_layers: int = 1
    has_readout: bool = True

    torch_class: ClassVar[type[nn.RNNBase]]
    torch_cell: ClassVar[type[nn.RNNCellBase] | None] = None
    """The class of torch.nn that is one step of one layer, None where there is none."""
    gates: ClassVar[tuple[str, ...]] = ()
    """Names of the gate rows in the order of torch.nn; none where a layer has a single matrix."""
    roles: ClassVar[tuple[str, ...]] = ("drive",)
    """The row role of each gate."""
    target_charge: ClassVar[Charge] = 1
    """The gauge charge of each gate row: 1 where the sign or scale of a unit is that of the row."""
    state_names: ClassVar[tuple[str, ...]] = ("h",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_layers > MOST_LAYERS:
            raise ValueError(
                f"`num_layers` (={self.num_layers}) of {type(self).__name__} must be at most {MOST_LAYERS}."
            )
        if not self.has_readout and self.output_size != self.hidden_size:
            raise ValueError(
                f"`output_size` (={self.output_size}) of {type(self).__name__} must be `hidden_size` "
                f"(={self.hidden_size}) where `has_readout` is false: its outputs are its last states."
            )

    @property
    def unit(self) -> str:
        """The nonlinearity of a unit, one of `NONLINEARITIES`."""
        return "gated"

    @property
    def gauge_kind(self) -> Literal["sign", "positive"]:
        """The rescaling of a unit that leaves the function unchanged."""
        return "sign"

    @property
    def has_bias(self) -> bool:
        """Whether layers and read-out add biases."""
        return True

    def declare(self) -> WeightSpec:
        axes = {"input": Axis(size=self.input_size, kind="input")}
        if self.has_readout:
            axes["output"] = Axis(size=self.output_size, kind="output")
        if self.gates:
            axes["gate"] = Axis(size=len(self.gates), kind="channel", names=self.gates)
        tensors: dict[str, TensorSpec] = {}
        states: dict[str, str] = {}
        gauges: dict[str, Gauge] = {}
        for layer in range(self.num_layers):
            hidden, free = f"hidden.{layer}", self.has_readout or layer < self.num_layers - 1
            axes[hidden] = Axis(
                size=self.hidden_size, kind="hidden", permutable=free, layer=layer, nonlinearity=self.unit
            )
            tensors |= self._layer_tensors(layer)
            states |= {f"{name}.{layer}": hidden for name in self.state_names}
            if free:
                gauges[f"{'sign' if self.gauge_kind == 'sign' else 'scale'}.{layer}"] = self._gauge(layer)
        if self.has_readout:
            tensors["weight_ho"] = TensorSpec(axes=("output", f"hidden.{self.num_layers - 1}"))
            tensors |= {"bias_o": TensorSpec(axes=("output",))} if self.has_bias else {}
        return WeightSpec(axes=axes, tensors=tensors, states=states, gauges=gauges)

    def _layer_tensors(self, layer: int) -> dict[str, TensorSpec]:
        lead = ("gate",) if self.gates else ()
        hidden, below = f"hidden.{layer}", f"hidden.{layer - 1}" if layer else "input"
        bias = {f"bias.{layer}": TensorSpec(axes=(*lead, hidden), row_roles=self.roles)} if self.has_bias else {}
        return {
            f"weight_ih.{layer}": TensorSpec(axes=(*lead, hidden, below), row_roles=self.roles),
            f"weight_hh.{layer}": TensorSpec(axes=(*lead, hidden, hidden), row_roles=self.roles),
            **bias,
        }

    def _gauge(self, layer: int) -> Gauge:
        lead: tuple[Charge, ...] = (0,) if self.gates else ()
        charges: dict[str, tuple[Charge, ...]] = {
            f"weight_ih.{layer}": (*lead, self.target_charge, 0),
            f"weight_hh.{layer}": (*lead, self.target_charge, -1),
        }
        if self.has_bias:
            charges[f"bias.{layer}"] = (*lead, self.target_charge)
        if layer == self.num_layers - 1:
            charges["weight_ho"] = (0, -1)
        else:
            charges[f"weight_ih.{layer + 1}"] = (*lead, 0, -1)
        states = {f"{name}.{layer}": 1 for name in self.state_names}
        return Gauge(axis=f"hidden.{layer}", kind=self.gauge_kind, charges=charges, state_charges=states)

    def init(self, generator: torch.Generator) -> Params:
        return {name: uniform(self.spec.shape(name), self.hidden_size, generator) for name in self.spec.tensors}

    def readout(self, params: Params, state: State) -> Tensor:
        top = state[f"h.{self.num_layers - 1}"]
        return linear(top, params["weight_ho"], params.get("bias_o")) if self.has_readout else top

    @classmethod
    def from_torch(cls, module: nn.RNNBase | nn.RNNCellBase, readout: nn.Linear | None = None) -> tuple[Self, Params]:
        """The family and params of a torch.nn layer or cell and the nn.Linear that reads its last layer.

        Without `readout` the outputs are the last layer's states. Missing biases become zeros; `batch_first`, which
        concerns the layout of inputs alone, is dropped. Weight normalisation and pruning are replaced by the weights
        that they compute now. Options that the family cannot represent are refused by name.
        """
        _refuse(cls, module, readout)
        family = cls(
            input_size=module.input_size,
            hidden_size=module.hidden_size,
            num_layers=getattr(module, "num_layers", 1),
            output_size=module.hidden_size if readout is None else readout.out_features,
            has_readout=readout is not None,
            **cls._options_from_torch(module),
        )
        is_cell = isinstance(module, nn.RNNCellBase)
        names = family.torch_names(bias=bool(module.bias), is_cell=is_cell)
        weights = weights_of(module, names)
        reading = None if readout is None else weights_of(readout, ("weight", *("bias",) * (readout.bias is not None)))
        return family, family.params_of({layer: weights[name] for name, layer in names.items()}, reading)

    def torch_names(self, *, bias: bool, is_cell: bool = False) -> dict[str, str]:
        """Names of weights in a module of torch.nn -> in its layer class: those of cells lack the layer's number."""
        kinds = ("weight_ih", "weight_hh", *("bias_ih", "bias_hh") * bias)
        layers = [f"{kind}_l{layer}" for layer in range(self.num_layers) for kind in kinds]
        return {name.removesuffix("_l0") if is_cell else name: name for name in layers}

    def params_of(self, weights: Mapping[str, Tensor], readout: Mapping[str, Tensor] | None = None) -> Params:
        """Params, as copies, from the tensors of a torch.nn layer and of its read-out by their names there."""
        params: Params = {}
        for layer in range(self.num_layers):
            for kind in ("weight_ih", "weight_hh"):
                shape = self.spec.shape(f"{kind}.{layer}")
                params[f"{kind}.{layer}"] = weights[f"{kind}_l{layer}"].reshape(shape).clone()
            shape = self.spec.shape(f"bias.{layer}")
            zeros = params[f"weight_ih.{layer}"].new_zeros(shape)
            biases = (weights.get(f"bias_{kind}_l{layer}", zeros).reshape(shape) for kind in ("ih", "hh"))
            params |= self._biases_from_torch(layer, *biases)
        if readout is not None:
            params["weight_ho"] = readout["weight"].clone()
            params["bias_o"] = readout.get("bias", params["weight_ho"].new_zeros(self.output_size)).clone()
        return params

    def to_torch(self, params: Mapping[str, Tensor]) -> tuple[nn.RNNBase, nn.Linear | None]:
        """The torch.nn layer and read-out (None without one) of the same function, in the dtype of `params`."""
        self.spec.check(params, stacked=False)
        factory = {"device": params["weight_hh.0"].device, "dtype": params["weight_hh.0"].dtype}
        module, readout = self.torch_modules(bias=self.has_bias, readout_bias=self.has_bias, **factory)
        with torch.no_grad():
            for layer in range(self.num_layers):
                for name in ("weight_ih", "weight_hh"):
                    getattr(module, f"{name}_l{layer}").copy_(params[f"{name}.{layer}"].flatten(0, -2))
                if self.has_bias:
                    getattr(module, f"bias_ih_l{layer}").copy_(params[f"bias.{layer}"].flatten())
                    getattr(module, f"bias_hh_l{layer}").copy_(self._recurrent_bias(params, layer).flatten())
            if readout is not None:
                readout.weight.copy_(params["weight_ho"])
                if self.has_bias:
                    readout.bias.copy_(params["bias_o"])
        return module, readout

    def torch_modules(
        self, *, bias: bool = True, readout_bias: bool = True, **factory: Any
    ) -> tuple[nn.RNNBase, nn.Linear | None]:
        """A fresh torch.nn layer and read-out (None without one) of these sizes; `factory` has device and dtype."""
        torch_class: Any = self.torch_class
        options = self._options_to_torch()
        module = torch_class(self.input_size, self.hidden_size, self.num_layers, bias=bias, **options, **factory)
        if not self.has_readout:
            return module, None
        return module, nn.Linear(self.hidden_size, self.output_size, bias=readout_bias, **factory)

    @classmethod
    def _options_from_torch(cls, module: nn.RNNBase | nn.RNNCellBase) -> dict[str, Any]:
        return {}

    def _options_to_torch(self) -> dict[str, Any]:
        return {}

    def _biases_from_torch(self, layer: int, input_bias: Tensor, recurrent_bias: Tensor) -> Params:
        """Stored biases from torch.nn's b_ih and b_hh, each in the shape of `bias`."""
        return {f"bias.{layer}": input_bias + recurrent_bias}

    def _recurrent_bias(self, params: Mapping[str, Tensor], layer: int) -> Tensor:
        """torch.nn's b_hh, in the shape of `bias`, where b_ih is `bias`."""
        return torch.zeros_like(params[f"bias.{layer}"])

    @classmethod
    @abstractmethod
    def examples(cls) -> list[Self]:
        """Small instances that every contract test runs on."""


def refuse_unrepresented(family: type[Layered], options: Mapping[str, Any]) -> None:
    """Raise ValueError, naming the option, if the family cannot represent the options of a torch.nn layer."""
    for name, off in UNREPRESENTED.items():
        value = options.get(name, off)
        if value != off:
            raise ValueError(
                f"`{name}` (={str(value)[:80]}) of the torch.nn.{family.torch_class.__name__} has no place in "
                f"{family.__name__}; only modules with `{name}` {off} can be represented."
            )


def _refuse(family: type[Layered], module: nn.Module, readout: nn.Module | None) -> None:
    kind = parametrize.type_before_parametrizations(module)
    classes = [torch_class for torch_class in (family.torch_class, family.torch_cell) if torch_class is not None]
    if kind not in classes:
        names = " or ".join(f"torch.nn.{torch_class.__name__}" for torch_class in classes)
        raise ValueError(f"{family.__name__}.from_torch takes a {names}, not a {kind.__name__}.")
    refuse_unrepresented(family, {name: getattr(module, name, off) for name, off in UNREPRESENTED.items()})
    if getattr(module, "dropout", 0) and module.training:
        raise ValueError(
            f"`dropout` (={module.dropout}) of the torch.nn.{kind.__name__} acts in training mode, which has no place "
            f"in {family.__name__}; call `.eval()` first: in evaluation mode it does nothing."
        )
    if readout is None:
        return
    if parametrize.type_before_parametrizations(readout) is not nn.Linear:
        raise ValueError(
            f"The read-out is a {type(readout).__name__}, expected a torch.nn.Linear; leave it out to represent the "
            f"torch.nn.{kind.__name__} alone."
        )
    if readout.in_features != module.hidden_size:
        raise ValueError(
            f"The read-out has `in_features` (={readout.in_features}), but the torch.nn.{kind.__name__} "
            f"has `hidden_size` (={module.hidden_size})."
        )
