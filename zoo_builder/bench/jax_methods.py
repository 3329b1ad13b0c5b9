"""The same training in JAX, as reference: cells written for the families below, scanned over time and compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from weightspace.families import Family
from weightspace.spec import Params
from zoo_builder.bench.case import LEARNING_RATE, WEIGHT_DECAY, Case, Data
from zoo_builder.bench.methods import Method

Cell = Callable[[Any, dict[str, Any], dict[str, Any], Any], tuple[dict[str, Any], Any]]
"""(family, params, state, x (batch, input)) -> the next state, and what the read-out reads (batch, hidden)."""
BETAS, EPSILON = (0.9, 0.999), 1e-8


def _linear(x: Any, weight: Any, bias: Any = 0.0) -> Any:
    return x @ weight.reshape(-1, weight.shape[-1]).T + jnp.ravel(bias)


def _elman(family: Any, params: dict[str, Any], state: dict[str, Any], x: Any) -> tuple[dict[str, Any], Any]:
    new: dict[str, Any] = {}
    for layer in range(family.num_layers):
        drive = _linear(x, params[f"weight_ih.{layer}"], params[f"bias.{layer}"])
        drive = drive + _linear(state[f"h.{layer}"], params[f"weight_hh.{layer}"])
        x = new[f"h.{layer}"] = getattr(jax.nn, family.nonlinearity)(drive)
    return new, x


def _gru(family: Any, params: dict[str, Any], state: dict[str, Any], x: Any) -> tuple[dict[str, Any], Any]:
    new: dict[str, Any] = {}
    for layer in range(family.num_layers):
        h = state[f"h.{layer}"]
        from_input = _linear(x, params[f"weight_ih.{layer}"], params[f"bias.{layer}"])
        r_x, z_x, n_x = jnp.split(from_input, 3, axis=-1)
        r_h, z_h, n_h = jnp.split(_linear(h, params[f"weight_hh.{layer}"]), 3, axis=-1)
        z = jax.nn.sigmoid(z_x + z_h)
        n = jnp.tanh(n_x + jax.nn.sigmoid(r_x + r_h) * (n_h + params[f"bias_hn.{layer}"]))
        x = new[f"h.{layer}"] = n + z * (h - n)
    return new, x


def _lstm(family: Any, params: dict[str, Any], state: dict[str, Any], x: Any) -> tuple[dict[str, Any], Any]:
    new: dict[str, Any] = {}
    for layer in range(family.num_layers):
        drive = _linear(x, params[f"weight_ih.{layer}"], params[f"bias.{layer}"])
        drive = drive + _linear(state[f"h.{layer}"], params[f"weight_hh.{layer}"])
        i, f, g, o = jnp.split(drive, 4, axis=-1)
        c = jax.nn.sigmoid(f) * state[f"c.{layer}"] + jax.nn.sigmoid(i) * jnp.tanh(g)
        x = jax.nn.sigmoid(o) * jnp.tanh(c)
        new |= {f"h.{layer}": x, f"c.{layer}": c}
    return new, x


def _cprnn(family: Any, params: dict[str, Any], state: dict[str, Any], x: Any) -> tuple[dict[str, Any], Any]:
    h = state["h"]
    second_order = _linear(h, params["factor_a"]) * _linear(x, params["factor_b"])
    drive = _linear(second_order, params["factor_c"], params["bias"])
    if family.first_order:
        drive = drive + _linear(h, params["weight_hh"]) + _linear(x, params["weight_ih"])
    h = jnp.tanh(drive)
    return {"h": h}, h


CELLS: dict[str, Cell] = {"Elman": _elman, "GRU": _gru, "LSTM": _lstm, "CPRNN": _cprnn}
"""The families that have a rival in JAX."""


class VmapScan(Method):
    """jit(vmap(scan)): all models at every step together. Params and moments are donated, so moved in place."""

    def __init__(self, case: Case, data: Data) -> None:
        self.passing_gradients = self.at_once(case)
        update = _update_of(case.load(), CELLS[case.family])
        self._update = jax.jit(self.mapped(update), donate_argnums=0)
        params = {name: jnp.array(tensor.numpy()) for name, tensor in data.params.items()}
        zeros = [{name: jnp.zeros_like(value) for name, value in params.items()} for _ in range(2)]
        self._standing = (params, *zeros, jnp.zeros(case.models))
        self._x, self._target = jnp.array(data.x.numpy()), jnp.array(data.target.numpy(), dtype=jnp.int32)

    @staticmethod
    def at_once(case: Case) -> int:
        """Number of models whose gradients exist together."""
        return case.models

    @staticmethod
    def mapped(update: Any) -> Any:
        """Update of all models from `update` of one model."""
        return jax.vmap(update)

    def update_once(self) -> torch.Tensor:
        self._standing, losses = self._update(self._standing, self._x, self._target)
        return torch.from_numpy(np.array(losses))

    def params(self) -> Params:
        return {name: torch.from_numpy(np.array(value)) for name, value in self._standing[0].items()}

    @staticmethod
    def why_not(case: Case) -> str | None:
        if case.family not in CELLS:
            return f"no cell is written in JAX for it; there are {', '.join(CELLS)}"
        return None


class MapScan(VmapScan):
    """jit(lax.map(scan)): one model after another, inside one compiled program."""

    @staticmethod
    def at_once(case: Case) -> int:
        return 1

    @staticmethod
    def mapped(update: Any) -> Any:
        return lambda *stacks: jax.lax.map(lambda own: update(*own), stacks)


def _update_of(family: Family, cell: Cell) -> Any:
    """(standing, inputs (time, batch, input), classes (time, batch)) of one model -> standing, loss."""

    def loss(params: dict[str, Any], x: Any, target: Any) -> Any:
        sizes = {name: family.spec.size_of_state(name) for name in family.spec.states}
        state = {name: jnp.zeros((x.shape[1], size)) for name, size in sizes.items()}
        _, read = jax.lax.scan(lambda state, now: cell(family, params, state, now), state, x)
        log_odds = jax.nn.log_softmax(_linear(read, params["weight_ho"], params["bias_o"]))
        return -jnp.take_along_axis(log_odds, target[..., None], axis=-1).mean()

    def update(standing: Any, x: Any, target: Any) -> Any:
        params, first, second, number = standing
        nats, gradients = jax.value_and_grad(loss)(params, x, target)
        return _adamw(params, first, second, number + 1, gradients), nats

    return update


def _adamw(params: Any, first: Any, second: Any, number: Any, gradients: Any) -> Any:
    """torch.optim.AdamW's update of one model (Loshchilov and Hutter, ICLR 2019)."""
    beta1, beta2 = BETAS
    first = jax.tree.map(lambda m, g: beta1 * m + (1 - beta1) * g, first, gradients)
    second = jax.tree.map(lambda v, g: beta2 * v + (1 - beta2) * g * g, second, gradients)

    def moved(p: Any, m: Any, v: Any) -> Any:
        size = LEARNING_RATE / (1 - beta1**number)
        spread = jnp.sqrt(v / (1 - beta2**number)) + EPSILON
        return p * (1 - LEARNING_RATE * WEIGHT_DECAY) - size * m / spread

    return jax.tree.map(moved, params, first, second), first, second, number
