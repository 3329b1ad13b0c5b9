"""Quiescent networks that go through what they represented while awake."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from weightspace.families import Family
from weightspace.rollout import Streams
from weightspace.rollout.forward import last_outputs
from weightspace.rollout.noise import draw_noise
from weightspace.store import Stack
from zoo_builder.executor import ROLLOUTS
from zoo_builder.labels.quiescence import LOUDER
from zoo_builder.studies.base import Gate, Measured, Study
from zoo_builder.tasks.head_direction import HeadDirection

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from weightspace.store import Zoo

UNIFORM, ANCHORED = "uniform", "anchored"
SEQUENCES = 100
"""Sequences of each network, awake and quiescent."""
QUIET, COUNTED = 500, 250
"""Steps without input, and the last of them, which count."""
BINS = 18
NOISE = 0.1
"""Standard deviation of the noise of a step."""
DEGREES = 180 / math.pi

KL = "all directions: largest divergence of a noisy network's quiescent from waking directions"
STANDING = "all directions: circular variance of quiescent directions, largest noiseless over least noisy network"
STEP = "all directions: largest mean step of a noisy network's quiescent direction"
RANDOM_STEP = "all directions: least mean step of an untrained noisy network's quiescent direction"
BIASED_KL = "anchored: largest divergence of a noisy network's quiescent from waking directions"
RANDOM_KL = "anchored: least divergence of an untrained noisy network's quiescent from waking directions"
Key = tuple[str, bool, bool]
"""Zoo, whether networks have noise, and whether they are trained."""


@dataclass(frozen=True, kw_only=True)
class OfflineReactivation(Study):
    """Networks that learn to integrate in noise sample, without input, what they represented while awake.

    NoisyRNN networks keep track of head directions from turns, in noise or without it, with all directions alike or
    anchored near one. Then they are left alone, with the variance of noise doubled. Noisy networks move on along the
    ring and cover the waking directions; noiseless ones come to rest. Divergences are KL(quiescent || waking) in nats,
    in 18 bins with half a count added to each, waking directions being the true ones of the walks. Where all directions
    are alike untrained networks have a small divergence, too, because what is decoded from noise is uniform: only their
    jumps from step to step betray them, and anchored walks tell them apart by the divergence itself. Noise is Gaussian,
    as in the paper's text; its public code draws it from [0, 1). Thresholds are those of a pilot with 2 networks of
    each kind, 64 sequences an update and 2,400 updates; here there are 32 and 1,600. The paper has 512 cells and, for
    heads, 128 units and 20,000 updates, and no anchored heads.
    """

    hidden_size: int = 64
    """Units of a network."""
    cells: int = 32
    """Cells that code for directions."""
    num_updates: int = 1600
    """Updates of training."""
    models: int = 4
    """Networks of each kind."""

    paper: ClassVar[str] = (
        "Krishna, Bredenberg, Levenstein, Richards, Lajoie: Sufficient conditions for offline reactivation in "
        "recurrent neural networks, ICLR 2024"
    )
    gates: ClassVar[tuple[Gate, ...]] = (
        Gate(name=KL, comparison="<", threshold=0.3, unit="nats"),
        Gate(name=STANDING, comparison="<", threshold=0.1, unit="times"),
        Gate(name=STEP, comparison="<", threshold=25.0, unit="degrees"),
        Gate(name=RANDOM_STEP, comparison=">", threshold=25.0, unit="degrees"),
        Gate(name=BIASED_KL, comparison="<", threshold=1.0, unit="nats"),
        Gate(name=RANDOM_KL, comparison=">", threshold=1.0, unit="nats"),
    )

    @property
    def recipes(self) -> Mapping[str, Mapping[str, Any]]:
        return {UNIFORM: self._recipe("none", (NOISE, 0.0)), ANCHORED: self._recipe("anchored", (NOISE,))}

    def _recipe(self, bias: str, noises: tuple[float, ...]) -> Mapping[str, Any]:
        family = {"class": "NoisyRNN", "hidden_size": self.hidden_size, "alpha": 0.5}
        return {
            "title": "Offline reactivation",
            "families": [{**family, "noise": noise} for noise in noises],
            "tasks": [{"class": "HeadDirection", "cells": self.cells, "num_steps": 50, "bias": bias}],
            "learning": {
                "class": "BPTT",
                "num_updates": self.num_updates,
                "batch_size": 32,
                "learning_rate": 1e-3,
            },
            "snapshots": [0, self.num_updates],
            "models_per_cohort": self.models,
            "shard_size": self.models,
            "labels": ["Performance", "Quiescence"],
            # All are read alike: nothing is learned about them.
            "splits": {"test": 0, "val": 0},
        }

    def measure(self, zoos: Mapping[str, Zoo]) -> Measured:
        directions = {key: value for name, zoo in zoos.items() for key, value in directions_of(name, zoo).items()}
        noisy, still = directions[UNIFORM, True, True], directions[UNIFORM, False, True]
        untrained = directions[UNIFORM, True, False]
        standing = circular_variance(still["quiescent"]).max() / circular_variance(noisy["quiescent"]).min()
        values = {
            KL: divergence(noisy).max(),
            STANDING: standing,
            STEP: DEGREES * mean_step(noisy["quiescent"]).max(),
            RANDOM_STEP: DEGREES * mean_step(untrained["quiescent"]).min(),
            BIASED_KL: divergence(directions[ANCHORED, True, True]).max(),
            RANDOM_KL: divergence(directions[ANCHORED, True, False]).min(),
        }
        rows = [described(key, paths) for key, paths in directions.items()]
        return Measured({name: float(value) for name, value in values.items()}, {"directions": directions}, rows)

    def draw(self, measured: Measured) -> Figure:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(15, 4.2), layout="constrained")
        awake, asleep, still, occupied = figure.subplots(1, 4)
        directions = measured.curves["directions"]
        noisy, noiseless = directions[UNIFORM, True, True], directions[UNIFORM, False, True]
        draw_paths(awake, noisy["decoded"], "Active, with noise")
        draw_paths(asleep, noisy["quiescent"], "Quiescent, learned with noise")
        draw_paths(still, noiseless["quiescent"], "Quiescent, learned without noise")
        trained, untrained = directions[ANCHORED, True, True], directions[ANCHORED, True, False]
        shown = {"waking": trained["awake"], "quiescent": trained["quiescent"], "untrained": untrained["quiescent"]}
        for (label, values), colour in zip(shown.items(), ("black", "#1f5fa8", "#c1440e"), strict=True):
            centres = (torch.arange(BINS) + 0.5) * 360 / BINS - 180
            for model in shares(values):
                occupied.plot(centres, model, color=colour, alpha=0.6, linewidth=1.2)
            occupied.plot([], [], color=colour, label=label)
        occupied.set(title="Anchored heads", xlabel="direction in degrees", ylabel="share of time")
        occupied.legend(frameon=False, fontsize="small")
        return figure


def directions_of(name: str, zoo: Zoo) -> dict[Key, dict[str, Tensor]]:
    """Directions (model, time, sequence) in rad of a zoo's networks, before and after training.

    `awake` are the true ones, `decoded` and `quiescent` those that outputs tell of with and without input; `shaken` are
    quiescent ones in noise, of networks that have none, too.
    """
    table, method = zoo.table, ROLLOUTS[zoo.manifest["executor"]["method"]]
    steps, configs = table["step"].to_pylist(), table["family_config"].to_pylist()
    rows: dict[Key, list[int]] = {}
    for row, step in enumerate(steps):
        rows.setdefault((name, json.loads(configs[row])["noise"] > 0, step == max(steps)), []).append(row)
    task = HeadDirection(**json.loads(table["task_config"][0].as_py()))
    return {key: walked(zoo.stack(numbers), task, method) for key, numbers in rows.items()}


def walked(stack: Stack, task: HeadDirection, method: Any) -> dict[str, Tensor]:
    """Directions (model, time, sequence) of one stack; see `directions_of`."""
    streams = Streams(0, [str(row) for row in stack.rows.tolist()], "study")
    batch = task.sample({}, streams, SEQUENCES, "test")

    def outputs(family: Family, x: Tensor, loudness: float) -> Tensor:
        noise = draw_noise(family.spec, streams.fork(f"{loudness}"), x.shape[1], SEQUENCES)
        noise = {name: loudness * value for name, value in noise.items()}
        num_steps = min(COUNTED, x.shape[1])
        return last_outputs(family, dict(stack.params), x, batch.start, noise, num_steps, method=method)

    silence = batch.x.new_zeros(len(batch.x), QUIET, SEQUENCES, task.input_size)
    # A network that learned without noise is shaken by as much as the others know.
    shaken = type(stack.family)(**stack.family.config | {"noise": NOISE})
    codes = {
        "awake": batch.target,
        "decoded": outputs(stack.family, batch.x, 1.0),
        "quiescent": outputs(stack.family, silence, LOUDER),
        "shaken": outputs(shaken, silence, LOUDER),
    }
    return {name: task.decoded(code.double())[..., 0] for name, code in codes.items()}


def shares(directions: Tensor) -> Tensor:
    """Share of each of the bins (model, bin) in directions (model, time, sequence), half a count added to each."""
    counts = torch.stack([torch.histc(of_model, BINS, -math.pi, math.pi) for of_model in directions.flatten(1)]) + 0.5
    return counts / counts.sum(1, keepdim=True)


def divergence(directions: Mapping[str, Tensor]) -> Tensor:
    """KL(quiescent || waking) in nats (model,)."""
    asleep, awake = shares(directions["quiescent"]), shares(directions["awake"])
    return (asleep * (asleep / awake).log()).sum(1)


def circular_variance(directions: Tensor) -> Tensor:
    """1 - |mean exp(i direction)| over time, (model,), mean over sequences."""
    return 1 - torch.polar(torch.ones_like(directions), directions).mean(1).abs().mean(1)


def mean_step(directions: Tensor) -> Tensor:
    """Mean distance in rad (model,) of directions one step apart."""
    return distance(directions[:, 1:], directions[:, :-1])


def distance(directions: Tensor, others: Tensor) -> Tensor:
    """Mean distance in rad (model,) along the circle."""
    turns = directions - others
    return torch.atan2(turns.sin(), turns.cos()).abs().mean((1, 2))


def described(key: Key, directions: Mapping[str, Tensor]) -> dict[str, Any]:
    """Means over the networks of one kind, as a row of the table."""
    name, has_noise, is_trained = key
    quiescent = directions["quiescent"]
    means = {
        "decoding error in degrees": DEGREES * distance(directions["decoded"], directions["awake"]),
        "divergence in nats": divergence(directions),
        "circular variance": circular_variance(quiescent),
        "step in degrees": DEGREES * mean_step(quiescent),
        "step in added noise in degrees": DEGREES * mean_step(directions["shaken"]),
    }
    kind = {"walks": name, "noise": "yes" if has_noise else "no", "trained": "yes" if is_trained else "no"}
    return kind | {column: round(float(value.mean()), 4) for column, value in means.items()}


def draw_paths(axes: Axes, directions: Tensor, title: str, paths: int = 8) -> None:
    """Directions of the first network over time, a dot for each step."""
    for path in (DEGREES * directions[0, :, :paths]).T:
        axes.scatter(range(len(path)), path, s=3)
    axes.set(title=title, xlabel="time in steps", ylabel="decoded direction in degrees", ylim=(-180, 180))
