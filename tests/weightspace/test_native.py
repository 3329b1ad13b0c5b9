"""Native rollouts against the sequential reference, forward and gradient, and what happens where they cannot be had."""

import dataclasses
import logging
import platform
import re
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tests.members import ONE_OF_EACH_FAST, Drive, drive
from tests.weightspace.thresholds import decided
from weightspace import families
from weightspace.families.elman import Elman
from weightspace.families.lstm import LSTM
from weightspace.rollout import generator, native, rollout
from weightspace.rollout.criterion import Criterion
from weightspace.rollout.gradients import losses_and_gradients
from weightspace.rollout.native.engine import compiler, records
from weightspace.rollout.native.engine import encoded as engine
from zoo_builder.catalogue import listing, listing_text

TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5}


def stack(family, models=3, dtype=torch.float64, scale=1.0):
    draws = [family.spec.random_params(generator(0, str(i), "params"), dtype) for i in range(models)]
    domains = {name: tensor.domain for name, tensor in family.spec.tensors.items()}
    return {k: torch.stack([d[k] for d in draws]) * (scale if domains[k] == "real" else 1) for k in family.spec.tensors}


def sized(example, hidden_size):
    """The family at this size, or at the least that its other fields allow."""
    fields = {"hidden_size": hidden_size}
    if getattr(example, "has_readout", True) is False:
        fields["output_size"] = hidden_size
    for name, least in example.least(example.config | fields).items():
        fields[name] = max(fields.get(name, 0), least.number)
    return dataclasses.replace(example, **fields)


def far(found, expected):
    """Largest difference, as a share of the largest number expected."""
    found, expected = found.detach(), expected.detach()
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-6))


def everything(family, params, x, initial, weights, method, noise=None):
    """Outputs, states and the gradients of a weighted sum of them with respect to all that goes in."""
    noise = noise or {}
    leaves = [*params.values(), x, *initial.values(), *noise.values()]
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    values = iter(leaves)
    params, x = {name: next(values) for name in params}, next(values)
    initial, noise = ({name: next(values) for name in part} for part in (initial, noise))
    run = rollout(family, params, x, method=method, state=initial, noise=noise)
    values = [run.outputs, *run.states.values()]
    total = sum((value * weight).sum() for value, weight in zip(values, weights, strict=True))
    return [*values, *torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("example", ONE_OF_EACH_FAST, ids=str)
def test_native_equals_sequential_forward_and_gradient(example, dtype):
    assert native.why_not(example, dtype) is None
    for hidden_size, time, batch in ((1, 3, 2), (5, 1, 1), (17, 5, 19), (33, 4, 37)):
        family = sized(example, hidden_size)
        draw = generator(0, "m", "state")
        # Random matrices of this size are chaotic at full scale, and chaos magnifies rounding without bound.
        params = stack(family, 2, dtype, scale=0.5)
        x, _, noise = drive(family, 2, time, batch, dtype)
        sizes = {name: family.spec.size_of_state(name) for name in family.spec.states}
        initial = {k: torch.randn(2, batch, size, dtype=dtype, generator=draw) for k, size in sizes.items()}
        x, initial = decided(family, params, x, TOLERANCE[dtype], initial, None, noise)
        shapes = [family.output_size, *sizes.values()]
        weights = [torch.randn(2, time, batch, size, dtype=dtype, generator=draw) for size in shapes]
        arguments = (family, params, x, initial, weights)
        found, expected = (everything(*arguments, method, noise) for method in ("native", "sequential"))
        for one, other in zip(found, expected, strict=True):
            assert far(one, other) < TOLERANCE[dtype], (hidden_size, time, batch)


def criteria(family, dtype, time, batch):
    draw, out = generator(0, "m", "target"), family.output_size
    step = torch.tensor([0.5, 0.0, 1.5], dtype=dtype).expand(3, 3)
    yield Criterion("squared_error", torch.randn(3, 3, batch, out, dtype=dtype, generator=draw), step)
    if out > 1:
        yield Criterion(
            "cross_entropy", torch.randint(out, (3, time, batch, 1), generator=draw), torch.rand(3, time), out
        )
    if out % 2 == 0:
        heads = torch.randint(-1, 2, (3, 3, batch, out // 2), generator=draw)
        yield Criterion("cross_entropy", heads, step, 2)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("example", ONE_OF_EACH_FAST, ids=str)
def test_a_declared_loss_gives_the_gradients_of_the_loss_it_declares(example, dtype):
    time, batch = 5, 19
    params = stack(example, 3, dtype, scale=0.5)
    x, start, noise = drive(example, 3, time, batch, dtype)
    x, _ = decided(example, params, x, TOLERANCE[dtype], None, start, noise)
    driven = Drive(x, start, noise)
    for criterion in criteria(example, dtype, time, batch):
        found, expected = (
            losses_on(example, params, driven, criterion, method)
            for method in ("native", "sequential")
        )
        assert far(found[0], expected[0]) < TOLERANCE[dtype]
        assert found[1].keys() == expected[1].keys()
        wide = {name: value.double() for name, value in params.items()}
        exact = losses_on(example, wide, driven.to(torch.float64), in_double(criterion), "sequential")[1]
        for name, gradient in expected[1].items():
            # A sum with cancellation is as inexact by torch: C may be off by a few times as much as torch is.
            bound = max(TOLERANCE[dtype], 3 * far(gradient.double(), exact[name]))
            assert far(found[1][name].double(), exact[name]) < bound, (criterion.kind, name)


def losses_on(family, params, driven, criterion, method):
    """Losses, and the gradients of all that a family trains."""
    x, start, noise = driven
    return losses_and_gradients(family, params, family.spec.trained, x, start, criterion, method=method, noise=noise)


def in_double(criterion):
    """The same criterion with targets and weights in float64, where they are numbers."""
    values = {field.name: getattr(criterion, field.name) for field in dataclasses.fields(criterion)}
    numbers = {name: v.double() for name, v in values.items() if torch.is_tensor(v) and v.is_floating_point()}
    return Criterion(**{**values, **numbers})


def test_a_criterion_is_the_loss_it_says():
    outputs = torch.randn(2, 5, 3, 4, generator=generator(0, "m", "outputs"), dtype=torch.float64)
    target = torch.randint(4, (2, 5, 3, 1), generator=generator(0, "m", "target"))
    uniform = torch.full((2, 5), 0.2, dtype=torch.float64)
    entropy = [F.cross_entropy(o.flatten(0, 1), t.flatten()) for o, t in zip(outputs, target, strict=True)]
    torch.testing.assert_close(Criterion("cross_entropy", target, uniform, 4)(outputs), torch.stack(entropy))
    values = torch.randn_like(outputs)
    error = [F.mse_loss(o, v) for o, v in zip(outputs, values, strict=True)]
    torch.testing.assert_close(Criterion("squared_error", values, uniform)(outputs), torch.stack(error))


def test_a_step_that_does_not_count_hides_even_an_infinite_loss():
    family = Elman(input_size=1, hidden_size=4, output_size=2, nonlinearity="relu")
    params = stack(family, 2, torch.float32)
    x = torch.ones(2, 3, 4, 1)
    x[:, 1] = torch.inf
    criterion = Criterion("squared_error", torch.zeros(2, 3, 4, 2), torch.tensor([[1.0, 0, 0]] * 2))
    losses, gradients = losses_and_gradients(
        family, params, family.spec.trained, x, x.new_zeros(2, 4, 0), criterion, method="native"
    )
    assert bool(losses.isfinite().all())
    last = dataclasses.replace(criterion, weight=torch.tensor([[0.0, 0, 1]] * 2))
    assert not bool(last(rollout(family, params, x, method="native").outputs).isfinite().all())
    assert gradients["weight_ho"].shape == params["weight_ho"].shape


@pytest.mark.parametrize("batch", [3, 40])
def test_bytes_depend_neither_on_neighbours_nor_on_threads(batch):
    family = LSTM(input_size=3, hidden_size=9, output_size=4)
    params = stack(family, 5, torch.float32)
    x = torch.randn(5, 7, batch, 3, generator=generator(0, "m", "x"))
    target = torch.randint(4, (5, 7, batch, 1), generator=generator(0, "m", "target"))

    def run(models, threads=1):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        own = {name: value[models] for name, value in params.items()}
        criterion = Criterion("cross_entropy", target[models], torch.full((len(models), 7), 1 / 7), 4)
        start = x.new_zeros(len(models), batch, 0)
        losses, gradients = losses_and_gradients(
            family, own, family.spec.trained, x[models], start, criterion, method="native"
        )
        torch.set_num_threads(before)
        return torch.cat([losses[:, None], *(gradient.flatten(1) for gradient in gradients.values())], dim=1)

    whole = run([0, 1, 2, 3, 4])
    assert torch.equal(run([4, 2, 0])[1], whole[2])
    assert torch.equal(run([3])[0], whole[3])
    assert torch.equal(run([0, 1, 2, 3, 4], threads=2), whole)
    # Fewer models than threads are shared out by sequences.
    assert torch.equal(run([3], threads=2)[0], whole[3])
    assert torch.equal(run([3, 1], threads=3), whole[[3, 1]])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Everything(Elman):
    """A step that uses every function of tiles that no family uses yet."""

    def step(self, params, state, x, noise):
        h = state["h.0"]
        drive = F.linear(x, params["weight_ih.0"], params["bias.0"])
        a, b = torch.cat([torch.sin(drive), torch.cos(drive)], dim=1).chunk(2, dim=1)
        c = torch.exp(-torch.abs(drive)) / (1 + h * h)
        d = torch.log(1 + c) + torch.sqrt(c + 0.5) - F.softplus(drive)
        e = torch.maximum(a, b) * torch.minimum(d, h) / params["bias.0"].square().add(1)
        low = torch.sigmoid(h[:, 1:] - params["bias.0"][1:]) * drive[:, :-1]
        return {
            "h.0": torch.cat([e[:, :1] ** 2, 0.5 * low - (2 - e[:, 1:])], dim=1) - F.linear(h, params["weight_hh.0"])
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sorting(Elman):
    """A step that no tile operation expresses."""

    def step(self, params, state, x, noise):
        return {"h.0": super().step(params, state, x, noise)["h.0"].sort(dim=1).values}


def test_every_tile_operation_equals_torchs():
    family = Everything(input_size=3, hidden_size=5, output_size=2)
    params = stack(family, 2, scale=0.5)
    x = torch.randn(2, 4, 19, 3, dtype=torch.float64, generator=generator(0, "m", "x"))
    initial = {"h.0": torch.randn(2, 19, 5, dtype=torch.float64, generator=generator(0, "m", "h"))}
    weights = [torch.randn(2, 4, 19, size, dtype=torch.float64, generator=generator(0, "m", "w")) for size in (2, 5)]
    found, expected = (everything(family, params, x, initial, weights, m) for m in ("native", "sequential"))
    for one, other in zip(found, expected, strict=True):
        assert far(one, other) < 1e-10


def test_what_cannot_be_traced_is_rolled_out_by_torch_and_said_once(caplog):
    family = Sorting(input_size=3, hidden_size=5, output_size=2)
    params = stack(family, 2)
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64, generator=generator(0, "m", "x"))
    with caplog.at_level(logging.WARNING):
        found = [rollout(family, params, x, method="native").outputs for _ in range(2)]
    torch.testing.assert_close(found[1], rollout(family, params, x, method="sequential").outputs)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("Sorting is rolled out by torch, not natively:")
    assert "aten.sort" in line


def test_gradients_can_be_taken_after_a_rollout_in_inference_mode():
    family = Elman(input_size=3, hidden_size=6, output_size=2)
    params, x = stack(family, 2), torch.ones(2, 4, 23, 3, dtype=torch.float64)
    with torch.inference_mode():
        expected = rollout(family, params, x, method="native").outputs
    x.requires_grad_()
    outputs = rollout(family, params, x, method="native").outputs
    assert torch.equal(outputs, expected)
    assert torch.autograd.grad(outputs.sum(), x)[0].abs().min() > 0


def test_extreme_numbers_go_through_as_in_torch():
    family = LSTM(input_size=1, hidden_size=2, output_size=2)
    params = stack(family, 1, torch.float32)
    for value in (1e30, -1e30, torch.inf, torch.nan):
        x = torch.full((1, 3, 2, 1), value)
        found, expected = (rollout(family, params, x, method=m).outputs for m in ("native", "sequential"))
        torch.testing.assert_close(found, expected, equal_nan=True, rtol=1e-5, atol=1e-5)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sigmoid(Elman):
    """A step that is nothing but a sigmoid."""

    def step(self, params, state, x, noise):
        return {"h.0": torch.sigmoid(F.linear(x, params["weight_ih.0"], params["bias.0"]))}


def forget():
    """Forget what this process has compiled or asked for."""
    available = native.availability
    for cache in (compiler.library, compiler._version, available._reason, available._warn, engine.engine):
        cache.cache_clear()


SWITCHES = ["", "-mno-avx512f", "-mno-avx512f -mno-avx2 -mno-avx -mno-fma"]
needs_gcc = pytest.mark.skipif(
    platform.machine() != "x86_64" or not shutil.which("gcc"), reason="names gcc's switches for x86-64"
)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """A folder for engines under all switches, so that each is compiled for one test alone."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture
def switches(request, compiled, monkeypatch):
    """Switches under which gcc compiles the engine; where there are none, it is the one that is there already."""
    if request.param:
        forget()
        monkeypatch.setenv("CC", f"gcc {request.param}")
        monkeypatch.setenv("WEIGHTSPACE_CACHE", str(compiled))
    yield
    if request.param:
        forget()


@needs_gcc
@pytest.mark.parametrize("switches", SWITCHES, indirect=True)
@pytest.mark.usefixtures("switches")
def test_sigmoids_and_tanh_are_exact_to_a_few_digits_in_the_last_place_everywhere():
    x = torch.cat([torch.linspace(-20, 20, 100_001), torch.logspace(-30, 1, 1000), torch.tensor([-1e4, 1e4])])
    for family, exact in ((Sigmoid, torch.sigmoid), (Elman, torch.tanh)):
        own = family(input_size=1, hidden_size=1, output_size=1)
        params = {name: torch.zeros(1, *own.spec.shape(name)) for name in own.spec.tensors}
        params["weight_ih.0"] += 1
        found = rollout(own, params, x[None, None, :, None], method="native").states["h.0"].flatten()
        assert found.abs().max() <= 1
        wrong = (found - exact(x.double())).abs()
        assert wrong.max() < 5e-7
        # In parts of what they are, too; the argument's own rounding counts as often as its size.
        near = x.abs() <= 20
        assert (wrong / exact(x.double()).abs())[near].max() < 2e-6


def test_data_that_do_not_fit_are_refused_before_c_reads_them():
    family = LSTM(input_size=3, hidden_size=4, output_size=2)
    params, x = stack(family, 2), torch.zeros(2, 5, 3, 3, dtype=torch.float64)
    start, small = x.new_zeros(2, 3, 0), {name: tensor[..., :1] for name, tensor in params.items()}
    state = {name: x.new_zeros(2, 3, 4) for name in family.spec.states}
    for wrong in (
        lambda: rollout(family, {k: v.float() for k, v in params.items()}, x, method="native"),
        lambda: rollout(family, {k: v[:1] for k, v in params.items()}, x, method="native"),
        lambda: rollout(family, small, x, method="native"),
        lambda: rollout(family, params, x, method="native", state={k: v[:, :2] for k, v in state.items()}),
        lambda: rollout(family, params, x, method="native", state={k: v.float() for k, v in state.items()}),
    ):
        with pytest.raises(ValueError, match=r"was expected|the declaration says"):
            wrong()
    target, weight = torch.zeros(2, 5, 3, 1, dtype=torch.int64), torch.ones(2, 5)
    for own in (
        Criterion("cross_entropy", target[:1], weight, 2),
        Criterion("cross_entropy", target, weight[:, :4], 2),
        Criterion("cross_entropy", target, weight, 1),
        Criterion("squared_error", x[..., :1], weight),
    ):
        with pytest.raises(ValueError, match="expected"):
            losses_and_gradients(family, params, family.spec.trained, x, start, own, method="native")


def test_python_and_c_number_things_alike():
    text = (Path(compiler.__file__).parent.parent / "c" / "engine.c").read_text()
    for name, expected in (("Opcode", records.OPCODES), ("Space", records.SPACES)):
        body = re.search(rf"enum {name} {{(.*?)}};", text, re.DOTALL).group(1)
        found = [word.strip().lower() for word in body.split(",")]
        assert [word for word in found if word != "num_spaces"] == list(expected)


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """A machine on which nothing has been compiled or asked for yet, with a cache of its own."""
    forget()
    monkeypatch.setenv("WEIGHTSPACE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield tmp_path
    forget()


def both_methods():
    family = Elman(input_size=1, hidden_size=3, output_size=1)
    params, x = stack(family, 2, torch.float32), torch.ones(2, 4, 3, 1)
    return [rollout(family, params, x, method=method).outputs for method in ("native", "native", "stacked")]


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("CC", "/nowhere/cc", "could not be run"),
        ("CC", "false", "could not be run|the C compiler failed"),
        ("PATH", "/nowhere", "no C compiler was found"),
    ],
)
def test_without_a_compiler_one_line_says_so_and_torch_takes_over(variable, value, reason, fresh, monkeypatch, caplog):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv(variable, value)
    *native_outputs, stacked = both_methods()
    assert all(torch.equal(outputs, stacked) for outputs in native_outputs)
    (line,) = [record.getMessage() for record in caplog.records]
    assert "rolled out by torch, not natively" in line
    assert re.search(reason, line)


@needs_gcc
@pytest.mark.parametrize("switches", SWITCHES[1:], indirect=True)
@pytest.mark.usefixtures("switches")
def test_narrower_vectors_give_the_same_answers():
    family = LSTM(input_size=3, hidden_size=17, output_size=4)
    params = stack(family, 2, torch.float32, scale=0.5)
    x = torch.randn(2, 5, 7, 3, generator=generator(0, "m", "x"))
    (criterion, *_) = criteria(family, torch.float32, 5, 7)
    criterion = dataclasses.replace(criterion, target=criterion.target[:2], weight=criterion.weight[:2])
    found, expected = (
        losses_and_gradients(family, params, family.spec.trained, x, x.new_zeros(2, 7, 0), criterion, method=method)
        for method in ("native", "sequential")
    )
    assert native.why_not(family) is None
    for name, gradient in expected[1].items():
        assert far(found[1][name], gradient) < TOLERANCE[torch.float32]


def test_every_family_here_is_traced_and_a_listing_says_what_is_not(monkeypatch):
    assert {row["not_native"] for row in listing("families")} == {None}
    monkeypatch.setattr(families, "available", lambda: {"Sorting": Sorting})
    (row,) = listing("families")
    assert "aten.sort" in row["not_native"]
    assert "Run by torch, not natively" in listing_text([row])
