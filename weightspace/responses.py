"""Responses of models to fixed inputs and kicks, summarised without learning: the bar for encoders that query."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from weightspace.families import Family
from weightspace.features import OF_COVARIANCES, OF_FADING, Columns
from weightspace.rollout import rollout
from weightspace.spec import Params, State
from weightspace.store import Stack, Zoo
from weightspace.store.layout import ROLLOUTS

NUM_STEPS, NUM_SEQUENCES = 32, 8
"""Size of the random inputs."""
NUM_KICKED = 4
"""Sequences whose state is kicked."""
KICK = 1e-3
"""Size of a kick of one unit's state; its effect is all but linear, and far above rounding in float64."""
LAGS = (1, 2, 4, 8)
NUM_SHARES = 12
CHUNK = 64
"""Models run at a time."""
MOST_NUMBERS = 2**24
"""Numbers of states kept at a time, which bounds memory."""
LARGEST, SMALLEST = 1e30, 1e-12
"""Numbers beyond are taken for these: a model whose states grow without bound still has finite features."""
ADJACENT = (*OF_COVARIANCES, *OF_FADING, "autocorrelation_time")
"""Labels that are functions of what is measured here, on other inputs: covariances and autocorrelations of states,
fading of kicks."""


def responses_of(zoo: Zoo) -> Columns:
    """Columns of all models: what they do on fixed random inputs, and on their stored task inputs where there are any.

    `random` inputs are standard normal, the same for all models with as many inputs; `task` inputs are those of the
    model's own stored rollouts. Noise that a family declares is 0, so that a response is that of the mean dynamics. All
    columns stay when hidden units are permuted or signs flipped, see `described`.
    """
    parts = []
    for stack in zoo.stacks(max_models=CHUNK):
        columns = {f"random.{name}": values for name, values in described(stack, _random_inputs(stack.family))}
        if ROLLOUTS in zoo.shards[zoo.shard_of(int(stack.rows[0]))].entry["files"]:
            inputs = zoo.rollouts(stack.rows.tolist())[0].transpose(1, 2)
            columns |= {f"task.{name}": values for name, values in described(stack, inputs)}
        parts.append((stack.rows.numpy(), {name: values.numpy() for name, values in columns.items()}))
    return Columns.joined(zoo.num_rows, parts)


def _random_inputs(family: Family) -> Tensor:
    """Inputs (1, time, sequence, input), the same for all families with as many inputs."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, NUM_STEPS, NUM_SEQUENCES, family.input_size, generator=generator)


@torch.no_grad()
def described(stack: Stack, x: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Names and values (models,) float64 of what a stack does on inputs (models or 1, time, sequence, input).

    Of outputs: mean and log spread of each, how sure the largest is (of logits), autocorrelation, and the size of
    correlations with earlier inputs. Of states, all of them together: log root mean square over time, the shares of
    the singular values of the Gram matrix of centred states and their entropy and participation rank (Roy and Vetterli,
    The effective rank, 2007), autocorrelation, correlations with earlier inputs. Of kicks of the state: log norms of
    what is left of them after some steps.
    """
    params = {name: tensor.double() for name, tensor in stack.params.items()}
    x = x.double().expand(len(stack), *x.shape[1:])
    outputs, states = _run(stack.family, params, x, None)
    yield from _of_outputs(outputs)
    yield from _of_states(states)
    for name, series in (("outputs", outputs), ("states", states)):
        yield from ((f"{name}.autocorrelation.{lag}", value) for lag, value in _autocorrelation(series))
        yield from ((f"{name}.echo.{lag}", value) for lag, value in _echoes(x, series))
    yield from _of_kicks(stack.family, params, x, states)


def _run(family: Family, params: Params, x: Tensor, state: State | None) -> tuple[Tensor, Tensor]:
    """Outputs (models, time, sequence, output) and states (models, time, sequence, state), within bounds."""
    zeros = {name: x.new_zeros(*x.shape[:3], family.spec.axes[axis].size) for name, axis in family.spec.noise.items()}
    ran = rollout(family, params, x, method="native", noise=zeros, state=state)
    states = torch.cat([ran.states[name] for name in family.spec.states], dim=-1)
    return _bounded(ran.outputs), _bounded(states)


def _bounded(values: Tensor) -> Tensor:
    return torch.nan_to_num(values, LARGEST, LARGEST, -LARGEST).clamp(-LARGEST, LARGEST)


def _log(values: Tensor) -> Tensor:
    return torch.log(values.clamp(SMALLEST, LARGEST))


def _rms(values: Tensor) -> Tensor:
    """Root mean square (models,) of values (models, ...)."""
    return values.flatten(1).square().mean(1).sqrt()


def _quarters(series: Tensor) -> Sequence[Tensor]:
    """Four parts of a series (models, time, ...), or as many as it has steps."""
    return series.tensor_split(min(4, series.shape[1]), dim=1) if series.shape[1] else ()


def _centred(series: Tensor) -> Tensor:
    """A series (models, time, sequence, channel) minus its mean over time and sequences, at a scale of 1."""
    centred = series - series.mean((1, 2), keepdim=True)
    return centred / _rms(centred).clamp(min=SMALLEST)[:, None, None, None]


def _of_outputs(outputs: Tensor) -> Iterator[tuple[str, Tensor]]:
    mean, spread = outputs.mean((1, 2)), outputs.flatten(1, 2).std(1, correction=0)
    for i in range(outputs.shape[-1]):
        yield f"outputs.mean.{i}", mean[:, i]
        yield f"outputs.spread.{i}", _log(spread[:, i])
    yield "outputs.rms", _log(_rms(outputs))
    sure = torch.log_softmax(outputs, dim=-1).amax(-1)
    for quarter, part in enumerate(_quarters(sure)):
        yield f"outputs.sure.{quarter}", part.mean((1, 2))


def _of_states(states: Tensor) -> Iterator[tuple[str, Tensor]]:
    for quarter, part in enumerate(_quarters(states)):
        yield f"states.rms.{quarter}", _log(_rms(part))
    for quarter, part in enumerate(_quarters(states.diff(dim=1))):
        yield f"states.change.{quarter}", _log(_rms(part) / _rms(states).clamp(min=SMALLEST))
    centred = _centred(states).flatten(1, 2)
    # Places x places and states x states have the same eigenvalues but zeros; the smaller one is decomposed.
    shares = torch.linalg.svdvals(centred).square()
    shares = shares / shares.sum(1, keepdim=True).clamp(min=SMALLEST)
    size = min(states.shape[-1], centred.shape[1])
    yield "states.entropy_rank", torch.special.entr(shares).sum(1).exp() / size
    yield "states.participation", 1 / shares.square().sum(1).clamp(min=SMALLEST) / size
    yield "states.stable_rank", 1 / shares[:, 0].clamp(min=SMALLEST) / size
    for i in range(min(NUM_SHARES, shares.shape[1])):
        yield f"states.share.{i}", _log(shares[:, i])


def _autocorrelation(series: Tensor) -> Iterator[tuple[int, Tensor]]:
    centred = _centred(series)
    for lag in (lag for lag in LAGS if lag < series.shape[1]):
        yield lag, (centred[:, lag:] * centred[:, :-lag]).flatten(1).mean(1)


def _echoes(x: Tensor, series: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Log sizes (models,) of the correlations of a series with inputs k steps before, for k up to half the time."""
    num_steps = x.shape[1]
    inputs, answers = _centred(x), _centred(series)
    for lag in range(num_steps // 2):
        correlation = torch.einsum("mtsi,mtso->mio", inputs[:, : num_steps - lag], answers[:, lag:])
        yield lag, _log(_rms(correlation) / ((num_steps - lag) * x.shape[2]))


def _of_kicks(family: Family, params: Params, x: Tensor, states: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Mean over sequences of the log of |dh_k| / |dh_0|, root mean square over kicks of every unit, half-way through.

    Each unit is kicked up and down, so that units and signs are alike: it is the Frobenius norm of the Jacobian of k
    steps, by central differences.
    """
    half = x.shape[1] // 2
    if not half:
        return
    start, x = states[:, half - 1, :NUM_KICKED], x[:, half:, :NUM_KICKED]
    squares = x.new_zeros(*x.shape[:3])
    models, num_steps, sequences, size = *x.shape[:3], states.shape[-1]
    together = max(1, MOST_NUMBERS // (2 * models * num_steps * sequences * size))
    for units in torch.eye(size, dtype=x.dtype).split(together):
        kicks = KICK * torch.stack([units, -units])
        kicked = (start[:, :, None, None] + kicks).flatten(1, 3)
        repeated = x.repeat_interleave(2 * len(units), dim=2)
        _, after = _run(family, params, repeated, _parted(family, kicked))
        up, down = after.unflatten(2, (sequences, 2, len(units))).unbind(3)
        squares += ((up - down) / (2 * KICK)).square().sum((3, 4))
    left = _log((squares / size).sqrt()).mean(2)
    yield from ((f"kick.{lag}", left[:, lag - 1]) for lag in LAGS if lag <= num_steps)
    yield "kick.last", left[:, -1]


def _parted(family: Family, states: Tensor) -> State:
    """Each state (models, sequence, axis) of all states (models, sequence, state) side by side."""
    sizes = [family.spec.size_of_state(name) for name in family.spec.states]
    return dict(zip(family.spec.states, states.split(sizes, dim=-1), strict=True))
