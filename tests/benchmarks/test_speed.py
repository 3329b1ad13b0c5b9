"""Ratios of speed, each measured in one run beside its alternative. Run with `pytest -m benchmark -n 0 -s`."""

import time
from collections.abc import Callable

import pytest
import torch
from torch_geometric.data import Batch

from tests.members import drive
from weightspace import families
from weightspace.encoders.message_passing import MessagePassing
from weightspace.families import Family
from weightspace.families.gru import GRU
from weightspace.graph import to_data
from weightspace.rollout import generator, rollout
from weightspace.store import Stack

pytestmark = pytest.mark.benchmark
EXAMPLES = [type(family.examples()[0]) for family in families.available().values()]


def seconds(work: Callable[[], object], repeats: int = 5) -> float:
    """Median CPU time of one call, after a first call that is not counted."""
    work()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return sorted(times)[repeats // 2]


def drawn(family: Family, models: int) -> dict[str, torch.Tensor]:
    draws = [family.init(generator(0, str(i), "init")) for i in range(models)]
    return {k: torch.stack([d[k] for d in draws]).requires_grad_() for k in family.spec.tensors}


def sized(kind: type[Family]) -> Family:
    config = kind.examples()[0].config
    return kind(**{**config, "input_size": 4, "hidden_size": 16, "output_size": 8})


@pytest.mark.parametrize("kind", EXAMPLES)
def test_a_stacked_gradient_is_faster_than_one_model_after_another(kind):
    family, models = sized(kind), 32
    params, (x, start, noise) = drawn(family, models), drive(family, models, 16, 16, torch.float32)

    def step(method):
        loss = rollout(family, params, x, start, noise=noise, method=method).outputs.square().sum()
        torch.autograd.grad(loss, list(params.values()))

    stacked, sequential = (seconds(lambda method=m: step(method)) for m in ("stacked", "sequential"))
    print(f"\n{kind.__name__}: stacked is {sequential / stacked:.1f} times as fast as the sequential reference")
    assert sequential > 2 * stacked


def test_a_stacked_gradient_against_a_loop_over_torch_nn():
    models, layers = 32, [torch.nn.GRU(4, 16, batch_first=True) for _ in range(32)]
    x = torch.randn(models, 16, 16, 4, generator=generator(0, "m", "x"))
    family = GRU(input_size=4, hidden_size=16, output_size=8)
    params = drawn(family, models)

    def loop():
        for layer, own in zip(layers, x, strict=True):
            layer.zero_grad()
            layer(own.transpose(0, 1))[0].square().sum().backward()

    def stacked():
        torch.autograd.grad(rollout(family, params, x).outputs.square().sum(), list(params.values()))

    ratio = seconds(loop) / seconds(stacked)
    print(f"\nGRU: stacked is {ratio:.1f} times as fast as a loop over torch.nn.GRU")
    assert ratio > 1


def test_the_dense_path_is_faster_than_the_sparse_path():
    family = sized(EXAMPLES[0])
    params = {k: v.detach() for k, v in drawn(family, 32).items()}
    encoder, stack = MessagePassing(), Stack(family, params, torch.arange(32))
    batch = Batch.from_data_list([to_data(family.spec, {k: v[i] for k, v in params.items()}) for i in range(32)])
    dense = seconds(lambda: encoder([stack]).sum().backward())
    sparse = seconds(lambda: encoder.forward_data(batch).sum().backward())
    print(f"\nMessagePassing: the dense path is {sparse / dense:.1f} times as fast as the sparse path")
    assert sparse > dense
