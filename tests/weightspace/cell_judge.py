"""Verdicts on the native engine, cell by cell, against torch; wrong cells are shrunk."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import random
import re
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import Any

import torch
from torch import Tensor

from tests.weightspace.cells import Cell, small_params
from tests.weightspace.test_native_drive import expected as measured
from weightspace.rollout import generator, native, rollout
from weightspace.rollout.criterion import NOT_ASKED, Criterion
from weightspace.rollout.forward import last_outputs, last_states
from weightspace.rollout.gradients import losses_and_gradients
from weightspace.rollout.native import availability
from weightspace.rollout.native.drive import LANES, Steps, native_drive
from weightspace.rollout.tangents import jacobians, tangent_rollout, unflatten

DRIVEN = Steps(warm_up=2, aligning=1, window=3, jacobians=2)
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-5}
BATCHES, TIMES = (1, 5, 16, 19, 33), (1, 2, 2, 7, 7, 60)
"""Fewer sequences than are run side by side and more; steps within one ring of recorded ones and beyond it."""
Values = dict[str, Tensor]


class Different(Exception):
    """Native answers that are not torch's."""


class Undecided(Exception):
    """Inputs on which torch itself has no answer to compare with: rounding decides, or numbers overflow."""


@dataclass
class Problem:
    """A cell with params, inputs and all else that goes in, of two models."""

    cell: Cell
    params: Values
    x: Tensor
    start: Tensor
    noise: Values
    state: Values
    draw: torch.Generator

    def of(self, dtype: torch.dtype) -> Problem:
        """The same numbers in another precision."""
        parts = ({k: v.to(dtype) for k, v in part.items()} for part in (self.params, self.noise, self.state))
        params, noise, state = parts
        return Problem(self.cell, params, self.x.to(dtype), self.start.to(dtype), noise, state, self.draw)

    def normal(self, *shape: int) -> Tensor:
        """Random numbers."""
        return torch.randn(shape, generator=self.draw, dtype=torch.float64)


def problem(cell: Cell, seed: int, time: int, batch: int, models: int = 2) -> Problem:
    """Random data for a cell."""
    draw = generator(seed, "cell", "data")
    drawn = [small_params(cell, draw, torch.float64) for _ in range(models)]
    params = {name: _laid_out(torch.stack([one[name] for one in drawn]), draw) for name in drawn[0]}

    def normal(*shape: int) -> Tensor:
        return _laid_out(torch.randn(models, *shape, generator=draw, dtype=torch.float64), draw)

    noise = {name: normal(time, batch, size) for name, size in cell.noises}
    state = {name: normal(batch, size) for name, size in cell.states}
    x, start = normal(time, batch, cell.input_size), normal(batch, cell.start_size)
    return Problem(cell, params, x, start, noise, state, draw)


def _laid_out(tensor: Tensor, draw: torch.Generator) -> Tensor:
    """The same numbers, now and then in another order in memory."""
    if torch.rand((), generator=draw) < 0.75:
        return tensor
    return tensor.transpose(0, -1).contiguous().transpose(0, -1)


def judged(cell: Cell, seed: int, *, deep: bool = False) -> dict[str, Any]:
    """The outcome of a cell and, where there is one, its detail: the reason of a refusal or what is wrong."""
    # Values read before they are written are then NaN.
    torch.use_deterministic_algorithms(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _valid(cell, seed)
            # Remembered, unlike `why_not` of a cell that is refused.
            reason = availability._reason(cell, torch.float64)
            if reason is not None:
                return _fallen_back(cell, seed, reason)
            made = 0
            for check in _chosen(seed, deep):
                made += _decided(check, cell, seed)
        return {"outcome": "accepted" if made else "undecided", "detail": ""}
    except (Different, Undecided) as error:
        return {"outcome": type(error).__name__.lower(), "detail": str(error)}
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        detail = f"{type(error).__name__}: {error} ({where.filename.rpartition('/')[2]}:{where.lineno})"
        return {"outcome": "crashed", "detail": detail}
    finally:
        torch.use_deterministic_algorithms(False)


def _valid(cell: Cell, seed: int) -> None:
    """Raise Undecided if torch itself cannot run a cell: a draw that joins what cannot be joined."""
    own = problem(cell, seed, 2, 3)
    try:
        rollout(cell, own.params, own.x, own.start, noise=own.noise, method="sequential")
    except Exception as error:
        raise Undecided(f"torch cannot run it ({type(error).__name__}: {error})") from error


def _fallen_back(cell: Cell, seed: int, reason: str) -> dict[str, Any]:
    """A refused cell is run by torch: the native method gives what the stacked one gives, or the same error."""
    own = problem(cell, seed, 2, 3)
    try:
        expected = rollout(cell, own.params, own.x, own.start, noise=own.noise, method="stacked").outputs
    except Exception as error:
        try:
            rollout(cell, own.params, own.x, own.start, noise=own.noise, method="native")
        except type(error):
            return {"outcome": "refused", "detail": reason}
        raise
    found = rollout(cell, own.params, own.x, own.start, noise=own.noise, method="native").outputs
    if not torch.allclose(found, expected, equal_nan=True):
        raise Different(f"refused ({reason}), but not run by torch")
    return {"outcome": "refused", "detail": reason}


def _chosen(seed: int, deep: bool) -> list[Callable[[Cell, int, int], None]]:
    """The checks that are made: all, or the first and one more."""
    return list(CHECKS) if deep else [CHECKS[0], CHECKS[1 + seed % (len(CHECKS) - 1)]]


def _decided(check: Callable[[Cell, int, int], None], cell: Cell, seed: int) -> bool:
    """Make a check, again with other data where torch has no answer; whether it had one.

    What differs by rounding alone, at a kink of the step, does not differ again.
    """
    differences = []
    for attempt in range(4):
        try:
            check(cell, seed, 1000 * attempt + seed)
        except Undecided:
            continue
        except Different as error:
            differences.append(error)
            if len(differences) == 2:
                raise differences[0] from None
            continue
        return True
    if differences:
        raise differences[0]
    return False


def sized(seed: int) -> tuple[int, int]:
    """Time and batch."""
    draw = random.Random(f"size {seed}")
    return draw.choice(TIMES), draw.choice(BATCHES)


def compare(
    what: str, found: Values, expected: Values, rounded: Values | None = None, dtype: torch.dtype = torch.float64
) -> None:
    """Raise Different unless all are near; `rounded` is what torch gives in float32, and bounds what can be asked."""
    if not all(bool(value.isfinite().all()) for value in expected.values()):
        raise Undecided
    largest = max((float(value.abs().max()) for value in expected.values() if value.numel()), default=0.0)
    for name, value in expected.items():
        if not value.numel():
            continue
        scale = max(float(value.abs().max()), 1e-3 * largest, 1e-6)
        allowed = TOLERANCE[dtype] * scale
        if rounded is not None:
            error = float((rounded[name].double() - value).abs().max())
            if not error <= 1e-4 * scale:
                raise Undecided
            allowed = max(allowed, 100 * error) if dtype == torch.float32 else allowed
        if found[name].shape != value.shape:
            raise Different(f"{what}: {name} has shape {tuple(found[name].shape)}, expected {tuple(value.shape)}")
        error = float((found[name].double() - value).abs().max())
        if not error <= allowed:
            raise Different(f"{what}: {name} is off by {error:.3g} where the largest number is {scale:.3g}")


def _refuse_rounding(found: Values, in_float32: Values, expected: Values) -> None:
    """Raise Undecided if what differs in float64 is smaller than in float32 as rounding is, by 2**-29.

    A wrong number is as wrong in both. What cancels in whole leaves rounding errors beside which nothing is large.
    """
    for name, value in expected.items():
        if not value.numel():
            continue
        error, rounding = (float((one[name].double() - value).abs().max()) for one in (found, in_float32))
        if not error <= max(1e-9 * float(value.abs().max()), 1e-6 * rounding):
            return
    raise Undecided


def everything(
    own: Problem, method: Any, wanted: Sequence[str], weights: Mapping[str, Tensor], *, given: bool
) -> Values:
    """Outputs, states, and the gradients of a weighted sum of some of them with respect to what is wanted."""
    leaves = {f"param {k}": v for k, v in own.params.items()} | {"x": own.x}
    leaves |= {f"noise {k}": v for k, v in own.noise.items()}
    leaves |= {f"initial {k}": v for k, v in own.state.items()} if given else {"start": own.start}
    leaves = {k: v.detach().clone().requires_grad_(k in wanted) for k, v in leaves.items()}

    def part(word: str) -> Values:
        return {k.removeprefix(word): v for k, v in leaves.items() if k.startswith(word)}

    state = part("initial ") if given else None
    start = own.start if given else leaves["start"]
    run = rollout(own.cell, part("param "), leaves["x"], start, noise=part("noise "), state=state, method=method)
    values = {"outputs": run.outputs, **{f"state {k}": v for k, v in run.states.items()}}
    values |= {f"final {k}": v for k, v in run.final.items()}
    found = {k: v.detach() for k, v in values.items()}
    asked = {k: v for k, v in leaves.items() if k in wanted}
    total = sum((values[k] * weight.to(own.x.dtype)).sum() for k, weight in weights.items())
    if asked and isinstance(total, Tensor) and total.requires_grad:
        gradients = torch.autograd.grad(total, list(asked.values()), allow_unused=True, materialize_grads=True)
        found |= {f"gradient of {k}": g for k, g in zip(asked, gradients, strict=True)}
    elif asked:
        found |= {f"gradient of {k}": torch.zeros_like(v) for k, v in asked.items()}
    return found


def _gradients(cell: Cell, seed: int, draw: int, dtype: torch.dtype, *, all_of_it: bool) -> None:
    time, batch = sized(draw)
    own, choose = problem(cell, draw, time, batch), random.Random(f"wanted {draw}")
    given = choose.random() < 0.5
    leaves = [f"param {k}" for k in own.params] + ["x", *(f"noise {k}" for k in own.noise)]
    leaves += [f"initial {k}" for k in own.state] if given else ["start"]
    shapes = {"outputs": cell.output_size, **{f"state {k}": size for k, size in cell.states}}
    weights = {k: own.normal(2, time, batch, size) for k, size in shapes.items()}
    weights |= {f"final {k}": own.normal(2, batch, size) for k, size in cell.states}
    what = f"{dtype} time {time} batch {batch} {'state' if given else 'start'} given"
    if not all_of_it:
        leaves = choose.sample(leaves, choose.randrange(1, min(3, len(leaves)) + 1))
        kept = choose.sample(list(weights), choose.randrange(1, 3))
        weights = {k: v for k, v in weights.items() if k in kept}
        what += f" gradients of {list(weights)} by {leaves}"
    wide, narrow = own, own.of(torch.float32)
    expected, rounded = (everything(one, "sequential", leaves, weights, given=given) for one in (wide, narrow))
    found = everything(own.of(dtype), "native", leaves, weights, given=given)
    try:
        compare(what, found, expected, rounded, dtype)
    except Different:
        if dtype == torch.float64:
            _refuse_rounding(found, everything(narrow, "native", leaves, weights, given=given), expected)
        raise


def _all_in_float64(cell: Cell, seed: int, draw: int) -> None:
    _gradients(cell, seed, draw, torch.float64, all_of_it=True)


def _all_in_float32(cell: Cell, seed: int, draw: int) -> None:
    _gradients(cell, seed, draw, torch.float32, all_of_it=True)


def _some_gradients(cell: Cell, seed: int, draw: int) -> None:
    _gradients(cell, seed, draw, torch.float64, all_of_it=False)


def _last_steps(cell: Cell, seed: int, draw: int) -> None:
    time, batch = sized(draw)
    own = problem(cell, draw, time, batch)
    last = random.Random(draw).randrange(1, time + 1)
    data, what = (cell, own.params, own.x), f"of the last {last} of {time} steps, batch {batch}"
    outputs = last_outputs(*data, own.start, own.noise, last, method="native")
    compare(f"outputs {what}", {"outputs": outputs}, *(
        {"outputs": rollout(cell, one.params, one.x, one.start, noise=one.noise).outputs[:, -last:]}
        for one in (own, own.of(torch.float32))
    ))  # fmt: skip
    found = last_states(*data, own.state, own.noise, last, method="native")
    compare(f"states {what}", found, *(
        last_states(cell, one.params, one.x, one.state, one.noise, last) for one in (own, own.of(torch.float32))
    ))  # fmt: skip


def _tangents(cell: Cell, seed: int, draw: int) -> None:
    time, batch = sized(draw)
    own = problem(cell, draw, time, min(batch, 19))
    moved = {k: torch.randn(v.shape, generator=own.draw, dtype=v.dtype) for k, v in own.state.items()}

    def measure(one: Problem, method: Any) -> Values:
        data, tangent = (cell, one.params, one.x, one.state), {k: v.to(one.x) for k, v in moved.items()}
        states, tangents = tangent_rollout(*data, tangent, one.noise, method=method)
        found = {f"state {k}": v for k, v in states.items()} | {f"tangent {k}": v for k, v in tangents.items()}
        return found | {"jacobians": jacobians(*data, one.noise, method=method)}

    try:
        expected, rounded = measure(own, "stacked"), measure(own.of(torch.float32), "stacked")
    except RuntimeError as error:
        # Not everything has a derivative in forward mode.
        raise Undecided from error
    compare(f"tangents, time {time} batch {batch}", measure(own, "native"), expected, rounded)


def _criteria(own: Problem, time: int, batch: int) -> Iterator[Criterion]:
    out, choose = own.cell.output_size, own.draw
    scored = int(torch.randint(1, time + 1, (), generator=choose))
    weight = torch.rand(len(own.x), scored, generator=choose, dtype=torch.float64)
    if scored > 1:
        weight[:, 0] = 0
    yield Criterion("squared_error", own.normal(len(own.x), scored, batch, out), weight)
    heads = next((heads for heads in (2, 1) if out % heads == 0 and out > heads), None)
    if heads is not None:
        target = torch.randint(out // heads, (len(own.x), scored, batch, heads), generator=choose)
        target[torch.rand(target.shape, generator=choose) < 0.3] = NOT_ASKED
        yield Criterion("cross_entropy", target, weight, out // heads)


def _losses(cell: Cell, seed: int, draw: int, dtype: torch.dtype = torch.float64) -> None:
    time, batch = sized(draw)
    own = problem(cell, draw, time, batch)
    trained = cell.spec.trained
    for criterion in _criteria(own, time, batch):
        def losses(one: Problem, method: Any, criterion: Criterion = criterion) -> Values:
            data = (one.x, one.start, criterion)
            found, gradients = losses_and_gradients(cell, one.params, trained, *data, method=method, noise=one.noise)
            return {"losses": found, **{f"gradient of {k}": g for k, g in gradients.items()}}

        try:
            expected, rounded = losses(own, "sequential"), losses(own.of(torch.float32), "sequential")
        except RuntimeError as error:
            # Losses that depend on no trained tensor.
            raise Undecided from error
        what = f"{criterion.kind} in {dtype}, {criterion.target.shape[1]} of time {time}, batch {batch}"
        compare(what, losses(own.of(dtype), "native"), expected, rounded, dtype)


def _losses_in_float32(cell: Cell, seed: int, draw: int) -> None:
    _losses(cell, seed, draw, torch.float32)


def _bytes(cell: Cell, seed: int, draw: int) -> None:
    """Losses and gradients do not depend on threads or the run, nor on neighbours where torch computes nothing."""
    time, batch = sized(draw)
    own = problem(cell, draw, time, batch, models=3).of(torch.float32)
    criterion = next(_criteria(own, time, batch))
    criterion = dataclasses.replace(criterion, target=criterion.target.float(), weight=criterion.weight.float())

    def run(models: list[int], threads: int) -> Tensor:
        torch.set_num_threads(threads)
        params, noise = ({k: v[models] for k, v in part.items()} for part in (own.params, own.noise))
        judge = Criterion(criterion.kind, criterion.target[models], criterion.weight[models], criterion.classes)
        losses, gradients = losses_and_gradients(
            cell, params, cell.spec.trained, own.x[models], own.start[models], judge, method="native", noise=noise
        )
        return torch.cat([losses[:, None], *(gradient.flatten(1) for gradient in gradients.values())], dim=1)

    try:
        whole = run([0, 1, 2], 1)
        if not whole.isfinite().all():
            raise Undecided
        # Products of stacks of one and of three matrices by torch differ in their last bits.
        parts = ([0, 1, 2], [1], [2, 0]) if _is_all_in_c(cell) else ([0, 1, 2],)
        for models, threads in itertools.product(parts, (1, 3)):
            if not torch.equal(run(models, threads), whole[models]):
                raise Different(f"bytes of models {models} with {threads} threads, time {time} batch {batch}")
    finally:
        torch.set_num_threads(1)


def _is_all_in_c(cell: Cell) -> bool:
    """Whether torch computes nothing of a cell; one may be refused in float32 alone, for a dtype that it names."""
    return availability._reason(cell, torch.float32) is None and native.can_descend_on(cell)


def _updates(cell: Cell, seed: int, draw: int) -> None:
    """Three updates made in one call of C are those made one by one, and by torch."""
    from weightspace.rollout.native import descend, descend_on
    from zoo_builder.learning.optimiser import Hyperparameters, StackedAdamW

    if not _is_all_in_c(cell) or not cell.spec.trained:
        return
    time, batch = sized(draw)
    own = problem(cell, draw, time, 3 * batch).of(torch.float32)
    criterion = next(_criteria(own, time, 3 * batch))
    criterion = dataclasses.replace(criterion, target=criterion.target.float(), weight=criterion.weight.float())
    parts = [slice(place * batch, (place + 1) * batch) for place in range(3)]
    rate = torch.full((2,), 1e-2, dtype=torch.float64)

    def optimiser() -> StackedAdamW:
        return StackedAdamW(cell.spec, own.params, Hyperparameters(rate, 0 * rate, 0 * rate), fused=True)

    together, apart = optimiser(), optimiser()
    weights, trained = criterion.weight.expand(3, *criterion.weight.shape), cell.spec.trained
    data = (own.x, own.start, criterion, weights, own.noise)
    make = partial(descend_on, cell, own.params | together.params(), trained, *data)
    losses = together.update_natively([None] * 3, make)
    for part in parts:
        one = dataclasses.replace(criterion, target=criterion.target[:, :, part])
        noise = {name: value[:, :, part] for name, value in own.noise.items()}
        params = own.params | apart.params()
        expected, gradients = descend(cell, params, trained, own.x[:, :, part], own.start[:, part], one, noise)
        if not all(bool(g.isfinite().all()) for g in gradients.values()):
            raise Undecided
        apart.update(expected, gradients)
    for name, value in apart.params().items():
        if not torch.equal(together.params()[name], value):
            raise Different(f"three updates in one call move {name} elsewhere, time {time} batch {batch}")
    if not torch.equal(losses, expected):
        raise Different(f"losses of three updates in one call, time {time} batch {batch}")


def _drive(cell: Cell, seed: int, draw: int) -> None:
    """Measurements along trajectories equal those of torch."""
    own = problem(cell, draw, DRIVEN.total, LANES)
    moved = torch.randn(2, LANES, cell.spec.state_size, generator=own.draw, dtype=torch.float64)
    moved = moved / torch.linalg.vector_norm(moved, dim=-1, keepdim=True)

    def data(one: Problem) -> tuple[Any, ...]:
        return cell, one.params, one.x, one.start, one.noise, unflatten(cell, moved.to(one.x)), DRIVEN

    try:
        expected, rounded = (measured(*data(one)) for one in (own, own.of(torch.float32)))
    except RuntimeError as error:
        raise Undecided from error
    driven = native_drive(*data(own), want_states=True)
    found = {name: getattr(driven, name) for name in expected}
    # A tangent that vanishes is minus infinity in both.
    sides = ({k: torch.where(v == -torch.inf, -9, v) for k, v in side.items()} for side in (found, expected, rounded))
    compare("drive", *sides)


CHECKS: tuple[Callable[[Cell, int, int], None], ...] = (
    _all_in_float64, _all_in_float32, _some_gradients, _last_steps, _tangents, _losses, _losses_in_float32, _bytes,
    _updates, _drive,
)  # fmt: skip


def shrunk(cell: Cell, seed: int, *, deep: bool = False, seconds: float = 60) -> str:
    """The smallest cell found in some time that goes wrong like this one, with what is wrong."""
    outcome, end = _apart(lambda: judged(cell, seed, deep=deep)), monotonic() + seconds
    if outcome["outcome"] not in ("different", "crashed"):
        return f"{outcome['outcome']}: {outcome['detail']}"
    kind = _kind(outcome)
    causes = (cause for cause in _causes(cell, seed, deep) if _kind(_apart(cause(cell))) == kind)
    cause = next(causes, lambda trial: lambda: judged(trial, seed, deep=deep))
    tried: set[Cell] = {cell}
    smaller = True
    while smaller and monotonic() < end:
        smaller = False
        for trial in _smaller(cell):
            if monotonic() > end:
                break
            if trial not in tried:
                tried.add(trial)
                found = _apart(cause(trial))
                if _kind(found) == kind:
                    cell, outcome, smaller = trial, found, True
                    break
    return f"{outcome['outcome']}: {outcome['detail']}\n{cell}"


def _causes(cell: Cell, seed: int, deep: bool) -> Iterator[Callable[[Cell], Callable[[], dict[str, Any]]]]:
    """For each check and its first data, what makes that check alone of a cell."""

    def of(check: Callable[[Cell, int, int], None], draw: int, trial: Cell) -> dict[str, Any]:
        torch.use_deterministic_algorithms(True)
        warnings.simplefilter("ignore")
        try:
            _valid(trial, seed)
            check(trial, seed, draw)
        except (Different, Undecided) as error:
            return {"outcome": type(error).__name__.lower(), "detail": str(error)}
        except Exception as error:
            return {"outcome": "crashed", "detail": f"{type(error).__name__}: {error}"}
        return {"outcome": "accepted", "detail": ""}

    for check in _chosen(seed, deep):
        for attempt in range(2):
            yield lambda trial, check=check, draw=1000 * attempt + seed: partial(of, check, draw, trial)  # type: ignore[misc]


def _kind(outcome: dict[str, Any]) -> tuple[str, str]:
    """Kind of outcome, kept while a cell is shrunk: for errors, their type."""
    return outcome["outcome"], outcome["detail"].partition(":")[0] if outcome["outcome"] == "crashed" else ""


def _apart(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """An outcome that is found in a process which may die of it."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, json.dumps(work()).encode()[:60000])
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    return json.loads(said) if said else {"outcome": "crashed", "detail": f"status {status}"}


def _smaller(cell: Cell) -> Iterator[Cell]:
    """Cells with a little less in them."""
    change = dataclasses.replace
    names = [name for name, _ in cell.states]
    if cell.first:
        yield change(cell, first=())
    if cell.reading:
        for name, size in cell.states:
            yield change(cell, reading=(), answer=name, output_size=size)
    if "(" in cell.answer:
        for name, size in cell.states:
            yield change(cell, answer=name, output_size=size)
    text = " ".join((*cell.body, *cell.after, *cell.reading, cell.answer, *cell.first))
    for place, (name, _) in enumerate(cell.states):
        if len(names) > 1 and not re.search(rf"\b{name}\b", text.replace(cell.after[place], "", 1)):
            yield change(cell, **{k: _without(getattr(cell, k), place) for k in ("states", "after", "first")})
    if any(not re.search(rf"\b{name}\b", text) for name, _ in cell.noises):
        yield change(cell, noises=())
    used = tuple(one for one in cell.tensors if re.search(rf"\b{one[0]}\b", text))
    if len(used) < len(cell.tensors) and used:
        yield change(cell, tensors=used)
    for field in ("body", "reading"):
        yield from _fewer_lines(cell, field)
    for place, one in enumerate(cell.after):
        defined = [n for line in cell.body for n in line.partition(" = ")[0].split(", ")]
        for other in ["x", *names, *defined[::-1]]:
            if re.search(r"\W", one) and other in [*re.findall(r"\w+", one), names[place]]:
                yield change(cell, after=(*cell.after[:place], other, *cell.after[place + 1 :]))
    for field in ("body", "after", "reading"):
        for place, line in enumerate(getattr(cell, field)):
            for part in re.split(r" [-+*] ", line.partition(" = ")[2] or line)[:-1]:
                for sign in " + ", " - ", " * ":
                    if part + sign in line:
                        lines = list(getattr(cell, field))
                        lines[place] = line.replace(part + sign, "", 1)
                        yield change(cell, **{field: tuple(lines)})


def _without(items: tuple[Any, ...], place: int) -> tuple[Any, ...]:
    return items[:place] + items[place + 1 :]


def _fewer_lines(cell: Cell, field: str) -> Iterator[Cell]:
    lines = getattr(cell, field)
    for place in range(len(lines) - 1, -1, -1):
        target = lines[place].partition(" = ")[0]
        without = {field: _without(lines, place)}
        yield dataclasses.replace(cell, **without)
        earlier = [n for line in lines[:place] for n in re.findall(r"\bt\d+\b", line.partition(" = ")[0])]
        known = [*(n for n, _ in cell.states), *(["x"] if field == "body" else []), *earlier]
        if re.fullmatch(r"w?t\d+", target):
            for other in known[::-1]:
                if re.search(rf"\b{other}\b", lines[place].partition(" = ")[2]) or other.startswith("h"):
                    yield _renamed(dataclasses.replace(cell, **without), target, other)


def _renamed(cell: Cell, name: str, other: str) -> Cell:
    def renamed(line: str) -> str:
        return re.sub(rf"\b{name}\b", other, line)

    lines = {k: tuple(renamed(line) for line in getattr(cell, k)) for k in ("body", "after", "reading")}
    return dataclasses.replace(cell, answer=renamed(cell.answer), **lines)
