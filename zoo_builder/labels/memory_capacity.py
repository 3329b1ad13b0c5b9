"""How much of a random input's past can be read linearly from the state."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from weightspace.rollout.forward import last_states
from weightspace.rollout.noise import draw_noise
from weightspace.rollout.tangents import flatten, unflatten
from weightspace.spec import WeightSpec
from zoo_builder.labels.base import Label, LabelColumn
from zoo_builder.labels.driven import TRAJECTORIES, WARM_UP, Driven
from zoo_builder.labels.spectra import finite_only

AMPLITUDE = 0.1
"""Bound of the random input; larger inputs meet more of a model's nonlinearity."""
LAGS_PER_UNIT = 2
SAMPLES_PER_UNIT = 50
"""Samples for each state unit, half the trajectories each, to fit the read-outs and again to judge them."""
RIDGE = 1e-8
"""Penalty of the read-outs, as a share of the mean variance of the states."""
KEPT = 2**24
"""Most numbers of one model's states that are kept at once."""


@dataclass(frozen=True, kw_only=True)
class MemoryCapacity(Label):
    """Linear short-term memory capacity, corrected for chance."""

    def columns(self, spec: WeightSpec) -> tuple[LabelColumn, ...]:
        return (
            LabelColumn(
                name="memory_capacity",
                unit="steps",
                definition="Sum over lags k = 1 to 2 * state size of r(k)^2 - 1/(samples - 1), r(k) the correlation of "
                "u(t - k) with its best linear read-out of the state h(t), on trajectories other than those the "
                f"read-out is fitted on by ridge regression ({RIDGE:g} of the mean variance of the states); "
                f"{SAMPLES_PER_UNIT} samples per state unit in each half. The input is u(t) times a random unit "
                f"direction, u uniform in -{AMPLITUDE:g} to {AMPLITUDE:g}; {TRAJECTORIES} trajectories go on from "
                f"driven states, with {WARM_UP} steps and the longest lag to forget them. At most the state size.",
                source="Jaeger, Short term memory in echo state networks, GMD report 152, 2001",
            ),
        )

    def measure(self, driven: Driven) -> dict[str, Tensor]:
        size = driven.family.spec.state_size
        num_steps = -(-SAMPLES_PER_UNIT * size // (TRAJECTORIES // 2))
        u, states = _driven_by_noise(driven, num_steps)
        return {"memory_capacity": capacities(states, u, LAGS_PER_UNIT * size, num_steps).sum(1)}


def _driven_by_noise(driven: Driven, num_steps: int) -> tuple[Tensor, Iterator[Tensor]]:
    """The scalars (models, earlier + time, trajectory) that drive models, and their states (models, time, trajectory,
    state) during some steps after others."""
    family = driven.family
    size = family.spec.state_size
    streams = driven.streams("memory_capacity")
    direction = streams.normal(family.input_size, dtype=torch.float64)
    direction = direction / torch.linalg.vector_norm(direction, dim=1, keepdim=True)
    early = WARM_UP + LAGS_PER_UNIT * size
    u = AMPLITUDE * (2 * streams.uniform(early + num_steps, TRAJECTORIES, dtype=torch.float64) - 1)
    noise = {k: v.double() for k, v in draw_noise(family.spec, streams, early + num_steps, TRAJECTORIES).items()}

    def states() -> Iterator[Tensor]:
        state = unflatten(family, driven.trajectory.before[:, 0])
        # The same for a model whatever the others, so that its last bits are.
        together = max(KEPT // (TRAJECTORIES * size), 1)
        ends = [0, *range(early, early + num_steps, together)]
        for first, last in zip(ends, [*ends[1:], early + num_steps], strict=True):
            x = u[:, first:last, :, None] * direction[:, None, None]
            now = {name: value[:, first:last] for name, value in noise.items()}
            kept = last - first if first else 1
            after = last_states(family, driven.params, x, state, now, kept, method=driven.method)
            state = {name: value[:, -1] for name, value in after.items()}
            if first:
                yield flatten(family, after)

    return u, states()


def capacities(states: Iterable[Tensor], u: Tensor, num_lags: int, num_steps: int) -> Tensor:
    """r(k)^2 less its chance level, (models, lag), lags 1 to num_lags; NaN where states are not finite.

    `states`, (models, time, trajectory, state) of some steps after others, are those of the last `num_steps` of `u`
    (models, earlier + time, trajectory), of which at least num_lags are earlier. The first half of the trajectories
    fits, the second half judges, both by sums of products of states and lags: those of all steps need not be kept.
    """
    early = u.shape[1] - num_steps
    sums = [(_Sums(), _Sums()) for _ in u]
    finite = torch.ones(len(u), dtype=torch.bool, device=u.device)
    for part in states:
        usable, is_finite = finite_only(part)
        finite = finite & is_finite
        late = early + part.shape[1]
        # The last num_lags inputs before each step, the latest last; the copy is made model by model.
        past = u[:, early - num_lags : late - 1].unfold(1, num_lags, 1)
        half = part.shape[2] // 2
        for own, h, y in zip(sums, usable, past, strict=True):
            for side, lanes in zip(own, (slice(0, half), slice(half, None)), strict=True):
                side.add(h[:, lanes].flatten(0, 1), y[:, lanes].flip(-1).flatten(0, 1))
        early = late
    squared = torch.stack([_squared_correlation(*own) for own in sums])
    return torch.where(finite[:, None], squared, torch.nan)


class _Sums:
    """Sums of products of states (sample, state) and lags (sample, lag), added to part by part.

    Both are taken about their means over the first part, and states in units of their largest number there: sums of
    numbers far from 0, or huge, would lose their digits.
    """

    def __init__(self) -> None:
        self.count, self._sums = 0, list[Tensor]()

    def add(self, h: Tensor, y: Tensor) -> None:
        """Add samples."""
        if not self.count:
            largest = h.abs().amax()
            self._scale = torch.where(largest > 0, largest, 1)
            self._centres = (h / self._scale).mean(0), y.mean(0)
        h, y = h / self._scale - self._centres[0], y - self._centres[1]
        new = [h.sum(0), y.sum(0), h.T @ h, h.T @ y, y.square().sum(0)]
        self._sums = [a + b for a, b in zip(self._sums, new, strict=True)] if self.count else new
        self.count += len(h)

    def about_means(self) -> tuple[Tensor, Tensor, Tensor]:
        """Sums of products of states (state, state), of states and lags (state, lag), and of squares of lags (lag,)."""
        h, y, by_states, by_lags, squares = self._sums
        both = by_states - torch.outer(h, h / self.count), by_lags - torch.outer(h, y / self.count)
        return *both, squares - y.square() / self.count


def _squared_correlation(fitting: _Sums, judging: _Sums) -> Tensor:
    """Squared correlation (lag,) of lags and what the fitted read-outs say, less that of chance; 0 of constants."""
    gram, by_lags, _ = fitting.about_means()
    penalty = RIDGE * gram.diagonal().mean().clamp(min=torch.finfo(gram.dtype).tiny)
    eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    weights, _ = torch.linalg.solve_ex(gram + penalty * eye, by_lags)
    gram, by_lags, squares = judging.about_means()
    both = (weights * (gram @ weights)).sum(0) * squares
    along = (weights * by_lags).sum(0).square()
    squared: Tensor = torch.where(both > 0, along / torch.where(both > 0, both, 1), 0) - 1 / (judging.count - 1)
    return squared
