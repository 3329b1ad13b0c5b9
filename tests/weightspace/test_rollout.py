"""Rollouts and the random streams that feed them."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy import stats

from tests.members import EXAMPLES, drive
from tests.weightspace.thresholds import decided
from weightspace import families
from weightspace.families.elman import Elman
from weightspace.rollout import RolloutMethod, Streams, generator, rollout
from weightspace.rollout import streams as streams_file
from weightspace.rollout.native import philox as native_philox
from weightspace.rollout.streams import philox


def stack(family, models: int = 3, dtype: torch.dtype = torch.float64) -> dict:
    draws = [family.spec.random_params(generator(0, str(i), "params"), dtype) for i in range(models)]
    return {k: torch.stack([d[k] for d in draws]) for k in family.spec.tensors}


@pytest.mark.parametrize("family", EXAMPLES, ids=str)
@pytest.mark.parametrize(("time", "batch"), [(1, 1), (1, 3), (6, 1), (6, 3)])
def test_stacked_equals_sequential_in_float32(family, time, batch):
    params = stack(family, dtype=torch.float32)
    x, start, noise = drive(family, 3, time, batch, torch.float32)
    x, _ = decided(family, params, x, 2e-5, None, start, noise)
    a, b = (rollout(family, params, x, start, noise=noise, method=method) for method in ("stacked", "sequential"))
    torch.testing.assert_close(a.outputs, b.outputs, rtol=2e-5, atol=2e-5)
    for name in a.states:
        assert a.states[name].shape == (3, time, batch, family.spec.size_of_state(name))
        torch.testing.assert_close(a.states[name], b.states[name], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("method", ["stacked", "sequential"])
def test_a_rollout_goes_on_from_the_final_state_of_another(method):
    family = EXAMPLES[0]
    params = stack(family)
    x = torch.randn(3, 8, 2, family.input_size, dtype=torch.float64, generator=generator(0, "m", "x"))
    whole = rollout(family, params, x, method=method)
    first = rollout(family, params, x[:, :5], method=method)
    second = rollout(family, params, x[:, 5:], method=method, state=first.final)
    torch.testing.assert_close(torch.cat([first.outputs, second.outputs], 1), whole.outputs, rtol=1e-12, atol=1e-12)


def test_inputs_of_the_wrong_size_are_refused():
    family = Elman(input_size=3, hidden_size=2, output_size=1)
    with pytest.raises(ValueError, match="with 3 inputs"):
        rollout(family, stack(family), torch.zeros(3, 4, 2, 5))


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        (0x00000000, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (0xFFFFFFFF, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ],
)
def test_philox_gives_the_published_known_answers(word, expected):
    full = torch.full((1,), word, dtype=torch.int64)
    assert tuple(int(v) for v in philox([full] * 4, (full, full))) == expected


@pytest.mark.parametrize("position", [0, 5, 2**32 - 3, 2**40 + 7])
def test_words_drawn_in_c_are_those_of_torch(position, monkeypatch):
    assert native_philox.draws_here()
    in_c, by_torch = (Streams(3, ["a", "b", "c"], "train") for _ in range(2))
    in_c._position = by_torch._position = position
    for shape in ((1,), (0,), (127,), (2, 64), (3, 5, 43), (4,)):
        drawn = in_c.bits(*shape)
        with monkeypatch.context() as patch:
            patch.setattr(native_philox, "draws_here", lambda: False)
            assert torch.equal(by_torch.bits(*shape), drawn)


@pytest.mark.parametrize("shape", [(), (5,), (3, 7), (2, 40_001)])
def test_normal_draws_are_pairs_made_of_words_whatever_the_blocks(shape, monkeypatch):
    streams, others = Streams(3, ["a", "b", "c"], "train"), Streams(3, ["a", "b", "c"], "train")
    count, draws = math.prod(shape), streams.normal(*shape, dtype=torch.float64)
    shares, turns = others.bits(2, -(-count // 2)).numpy().swapaxes(0, 1) / 2.0**32
    radius = np.sqrt(-2 * np.log1p(-shares))
    expected = np.concatenate([radius * np.cos(2 * np.pi * turns), radius * np.sin(2 * np.pi * turns)], axis=1)
    np.testing.assert_allclose(draws.numpy(), expected[:, :count].reshape(3, *shape), rtol=1e-12, atol=1e-12)
    # Draws that follow go on where the words end.
    assert torch.equal(streams.bits(4), others.bits(4))
    monkeypatch.setattr(streams_file, "BLOCK", 37)
    assert torch.equal(Streams(3, ["a", "b", "c"], "train").normal(*shape, dtype=torch.float64), draws)


def test_a_model_draws_the_same_whatever_its_neighbours():
    alone, crowd = Streams(7, ["b"], "train"), Streams(7, ["a", "b", "c"], "train")
    for draw in ("uniform", "normal", "bits"):
        for shape in ((5,), (2, 3)):
            assert torch.equal(getattr(alone, draw)(*shape)[0], getattr(crowd, draw)(*shape)[1])
    assert torch.equal(alone.integers(10, 6)[0], crowd.integers(torch.tensor([3, 10, 99]), 6)[1])


def test_streams_differ_by_seed_model_purpose_and_position():
    one = Streams(0, ["a"], "train")
    draws = [
        one.uniform(4),
        one.uniform(4),
        Streams(1, ["a"], "train").uniform(4),
        Streams(0, ["b"], "train").uniform(4),
    ]
    draws += [Streams(0, ["a"], "test").uniform(4), one.fork("x").uniform(4)]
    assert len({tuple(d.flatten().tolist()) for d in draws}) == len(draws)


def test_draws_have_their_distributions():
    streams = Streams(0, ["a"], "train")
    uniform = streams.uniform(20_000)[0].numpy()
    normal = streams.normal(20_001, dtype=torch.float64)[0].numpy()
    assert stats.kstest(uniform, "uniform").pvalue > 1e-3
    assert stats.kstest(normal, "norm").pvalue > 1e-3
    counts = torch.bincount(streams.integers(7, 70_000)[0], minlength=7)
    assert counts.shape == (7,)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3
    assert math.isclose(uniform.max(), 1, abs_tol=1e-3)
    assert uniform.max() < 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counted(RolloutMethod):
    """The stacked answer, with an option and a report."""

    iterations: int = 3

    def run(self, family, params, x, start, noise, state):
        run = rollout(family, params, x, start, noise=noise, state=state)
        return dataclasses.replace(run, report={"iterations": torch.full((len(x),), self.iterations)})


class Unable(Counted):
    """A method that can run nothing."""

    def why_not(self, family, x):
        return "it never can"

    def run(self, family, params, x, start, noise, state):
        raise AssertionError("a method that cannot run a family was asked to")


def test_a_method_is_one_class_with_options_and_a_report():
    family = families.available()["Elman"].examples()[0]
    params = {k: v[None] for k, v in family.spec.random_params(generator(0, "m", "p"), torch.float32).items()}
    x = torch.randn(1, 4, 2, family.input_size, generator=generator(0, "m", "x"))
    expected = rollout(family, params, x)
    found = rollout(family, params, x, method=Counted(iterations=5))
    assert torch.equal(found.outputs, expected.outputs)
    assert found.report["iterations"].tolist() == [5]
    assert torch.equal(rollout(family, params, x, method=Unable()).outputs, expected.outputs)
    with pytest.raises(ValueError, match=r"No rollout method is called 'stacket'.*Did you mean 'stacked'"):
        rollout(family, params, x, method="stacket")
