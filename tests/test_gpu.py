"""The same code on CUDA: equal answers to stated tolerance. Off by default; run with `pytest -m gpu -n 0`."""

import pytest
import torch

from weightspace import families
from weightspace.encoders.message_passing import MessagePassing
from weightspace.rollout import Streams, generator, rollout
from weightspace.store import Stack
from zoo_builder import tasks
from zoo_builder.learning.bptt import BPTT

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
EXAMPLES = [example for family in families.available().values() for example in family.examples()]
TASKS = [example for task in tasks.available().values() for example in task.examples()]


def drawn(family, models: int = 4) -> dict:
    draws = [family.spec.random_params(generator(0, str(i), "params"), torch.float32) for i in range(models)]
    return {k: torch.stack([d[k] for d in draws]) for k in family.spec.tensors}


def on_cuda(tensors: dict) -> dict:
    return {k: v.cuda() for k, v in tensors.items()}


@pytest.mark.parametrize("family", EXAMPLES, ids=str)
def test_a_rollout_is_the_same_on_cuda(family):
    params = drawn(family)
    x = torch.randn(4, 8, 3, family.input_size, generator=generator(0, "m", "x"))
    outputs = rollout(family, on_cuda(params), x.cuda()).outputs
    torch.testing.assert_close(outputs.cpu(), rollout(family, params, x).outputs, rtol=1e-4, atol=1e-4)


def test_streams_are_the_same_on_cuda():
    here, there = Streams(3, ["a", "b"], "train"), Streams(3, ["a", "b"], "train", "cuda")
    assert torch.equal(here.bits(9), there.bits(9).cpu())
    assert torch.equal(here.uniform(9), there.uniform(9).cpu())


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_learning_runs_on_cuda(task):
    family = families.load("GRU", {"input_size": task.input_size, "output_size": task.output_size, "hidden_size": 5})
    learned = [
        BPTT(num_updates=3, batch_size=4).learn(family, task, {}, {}, 0, ["a", "b"], [0, 3], device=device)
        for device in ("cpu", "cuda")
    ]
    for name in family.spec.tensors:
        torch.testing.assert_close(learned[1].params[name], learned[0].params[name], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("family", EXAMPLES, ids=str)
def test_an_embedding_is_the_same_on_cuda(family):
    torch.manual_seed(0)
    encoder, stack = MessagePassing().eval(), Stack(family, drawn(family), torch.arange(4))
    expected = encoder([stack])
    torch.testing.assert_close(encoder.cuda()([stack.to("cuda")]).cpu(), expected, rtol=1e-3, atol=1e-4)
