"""Models that encoders read per second on CUDA, beside a core of the CPU: `pytest -m "gpu and benchmark" -n 0 -s`."""

import time

import pytest
import torch

from tests.weightspace.test_captured_encoder import CAPTURED
from weightspace import encoders
from weightspace.families.gru import GRU
from weightspace.rollout import generator
from weightspace.store import Stack
from weightspace.training.captured import SIGHTINGS, CapturedEncoder

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.benchmark,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
SMALL, LARGE, ROUNDS = 64, 1024, 3
FAMILY = GRU(input_size=8, hidden_size=32, output_size=8)


def stack_of(models):
    draws = [FAMILY.init(generator(0, str(i), "init")) for i in range(models)]
    return Stack(FAMILY, {k: torch.stack([d[k] for d in draws]) for k in FAMILY.spec.tensors}, torch.arange(models))


def seconds(work):
    """Least wall time of some rounds, the first left out."""
    times = []
    for _ in range(1 + ROUNDS):
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def rates(encoder, stack):
    """Models per second, (forward, forward and backward)."""

    def both():
        encoder([stack]).square().mean().backward()
        encoder.zero_grad()

    def forward():
        with torch.no_grad():
            encoder([stack])

    return [len(stack) / seconds(work) for work in (forward, both)]


def captured_rate(reader, stack):
    """Models per second, forward and backward by replayed graphs."""

    def both():
        reader.begin_step()
        reader([stack]).square().mean().backward()
        reader.encoder.zero_grad()

    for _ in range(SIGHTINGS):
        both()
    return len(stack) / seconds(both)


def test_every_encoder_reads_large_batches_faster_on_cuda_than_on_a_core():
    torch.manual_seed(0)
    small, large = stack_of(SMALL), stack_of(LARGE)
    print(f"\n{torch.cuda.get_device_name()}, torch {torch.__version__}: {FAMILY}, models per second, forward and both")
    print(f"{'encoder':24}{'parameters':>12}{'a core, 64':>18}{'CUDA, 64':>18}{'CUDA, 1024':>18}{'captured, 64':>14}")
    behind = []
    for name, kind in encoders.available().items():
        encoder = kind()
        encoder.refuse_too_large(FAMILY)
        encoder.fit_standardisation([small])
        here = rates(encoder, small)
        encoder.to("cuda")
        there, many = (rates(encoder, stack.to("cuda")) for stack in (small, large))
        reader = CapturedEncoder(encoder)
        captured = captured_rate(reader, small.to("cuda")) if name in CAPTURED else None
        parameters = sum(p.numel() for p in encoder.parameters())
        cells = "".join(f"{f'{one:,.0f} {both:,.0f}':>18}" for one, both in (here, there, many))
        print(f"{name:24}{parameters:12,}{cells}{f'{captured:,.0f}' if captured else '-':>14}", flush=True)
        behind += [name] if many[1] < here[1] else []
    assert behind == []
