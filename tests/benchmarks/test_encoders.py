"""Models that encoders read per CPU second, beside each other in one run. Run with `pytest -m benchmark -n 0 -s`."""

import time

import pytest
import torch

from weightspace import encoders
from weightspace.encoders.equivariant_linear import EquivariantLinear
from weightspace.encoders.message_passing import MessagePassing
from weightspace.families.elman import Elman
from weightspace.rollout import generator
from weightspace.store import Stack

pytestmark = pytest.mark.benchmark
MODELS = 64
ROUNDS = 7


def stack():
    family = Elman(input_size=2, hidden_size=32, output_size=2)
    draws = [family.init(generator(0, str(i), "init")) for i in range(MODELS)]
    return Stack(family, {k: torch.stack([d[k] for d in draws]) for k in family.spec.tensors}, torch.arange(MODELS))


def made():
    """Every encoder at its default size that reads these models, and EquivariantLinear at about 50,000 parameters."""
    torch.manual_seed(0)
    models, ready = stack(), {}
    for name, kind in encoders.available().items():
        ready[name] = kind()
        ready[name].refuse_too_large(models.family)
    ready["EquivariantLinear, small"] = EquivariantLinear(embedding_dim=32, edge_dim=8, node_dim=16, num_layers=2)
    for encoder in ready.values():
        encoder.fit_standardisation([models])
    return models, ready


def rates(models, ready):
    """Models per CPU second, (forward, forward and backward) by encoder: the best of rounds that take turns."""
    best = {name: [0.0, 0.0] for name in ready}
    for _ in range(ROUNDS):
        for name, encoder in ready.items():
            start = time.process_time()
            with torch.no_grad():
                encoder([models])
            middle = time.process_time()
            encoder([models]).square().mean().backward()
            end = time.process_time()
            encoder.zero_grad()
            found = MODELS / (middle - start), MODELS / (end - middle)
            best[name] = [max(pair) for pair in zip(best[name], found, strict=True)]
    return best


def test_every_encoder_in_models_per_cpu_second():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        models, ready = made()
        best = rates(models, ready)
    finally:
        torch.set_num_threads(threads)
    reference = best[MessagePassing.__name__]
    print(f"\n{'encoder':28}{'parameters':>12}{'forward':>10}{'ratio':>7}{'+backward':>11}{'ratio':>7}")
    for name, rate in best.items():
        parameters = sum(p.numel() for p in ready[name].parameters())
        ratios = [a / b for a, b in zip(rate, reference, strict=True)]
        print(f"{name:28}{parameters:12,}{rate[0]:10,.0f}{ratios[0]:7.1f}{rate[1]:11,.0f}{ratios[1]:7.1f}")
    # A tenth of a slow machine's rate: an encoder that falls below it has lost its dense path.
    assert all(rate[1] > 10 for rate in best.values())
