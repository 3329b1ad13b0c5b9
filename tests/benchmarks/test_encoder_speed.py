"""Message passing in C beside the same by torch, in one run, on one thread. Run with `pytest -m benchmark -n 0 -s`."""

import time

import pytest
import torch

from weightspace.encoders import message_passing
from weightspace.encoders.message_passing import MessagePassing
from weightspace.families.elman import Elman
from weightspace.families.gru import GRU
from weightspace.rollout import generator
from weightspace.store import Stack

pytestmark = pytest.mark.benchmark
MODELS, ROUNDS = 64, 12
FAMILIES = [kind(input_size=8, hidden_size=32, output_size=8) for kind in (Elman, GRU)]
SIZE = 1024


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def stack_of(family):
    draws = [family.spec.random_params(generator(0, str(i), "speed"), torch.float32) for i in range(MODELS)]
    return Stack(family, {k: torch.stack([d[k] for d in draws]) for k in family.spec.tensors}, torch.arange(MODELS))


def cpu_seconds(**works):
    """Least CPU time of each work, one after another in turn, so that what else the machine does meets all alike."""
    least = dict.fromkeys(works, float("inf"))
    for _ in range(ROUNDS):
        for name, work in works.items():
            start = time.process_time()
            work()
            least[name] = min(least[name], time.process_time() - start)
    return least


def by_torch(work, monkeypatch):
    def run():
        with monkeypatch.context() as patch:
            patch.setattr(message_passing, "why_not", lambda *arguments: "torch is measured")
            work()

    return run


def forward_operations(nodes, edge=16, node=64, product=8, layers=3):
    """Multiplications and additions of one model's rounds forward, those of matrix products alone."""
    of_edges = edge * (2 * edge + 2 * product) + product * edge + nodes * product
    of_nodes = 3 * edge * node + (node + 4 * edge) * node + node * node
    return 2 * layers * (nodes**2 * of_edges + nodes * of_nodes)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: type(family).__name__)
def test_message_passing_in_c_is_five_times_as_fast_as_by_torch(family, monkeypatch):
    torch.manual_seed(0)
    encoder, stack = MessagePassing(), stack_of(family)
    a, b = torch.randn(SIZE, SIZE), torch.randn(SIZE, SIZE)

    @torch.no_grad()
    def forward():
        encoder([stack])

    def both():
        encoder.zero_grad()
        encoder([stack]).square().sum().backward()

    assert message_passing.why_not(encoder.widths, (torch.zeros(1, 1, 1, 5),), encoder.edge_in.weight) is None
    nodes = family.input_size + family.hidden_size + family.output_size
    for name, work, passes, least in (("forward", forward, 1, 5), ("forward and backward", both, 3, 5)):
        times = cpu_seconds(c=work, torch=by_torch(work, monkeypatch), peak=lambda: a @ b)
        ratio = times["torch"] / times["c"]
        # A large product of matrices is as near to the peak as the machine is now.
        rate = passes * MODELS * forward_operations(nodes) / times["c"] / (2 * SIZE**3 / times["peak"])
        print(
            f"\n{type(family).__name__}, {name}: {MODELS / times['c']:.0f} models a CPU-second in C, "
            f"{MODELS / times['torch']:.0f} by torch, {ratio:.1f} times as fast; {rate:.0%} of the rate of a product"
        )
        assert ratio > least
