"""Passes of encoders as CUDA graphs, emulated on the CPU: the same embeddings and gradients, the same training."""

import inspect

import pytest
import torch

from tests.weightspace.emulated_graph import emulate
from tests.weightspace.zoos import write_zoo
from weightspace import encoders
from weightspace.data.datamodule import ZooDataModule
from weightspace.encoders import message_passing
from weightspace.encoders.message_passing import MessagePassing
from weightspace.families.elman import Elman
from weightspace.families.gru import GRU
from weightspace.objectives.supervised import Supervised
from weightspace.rollout import generator, methods
from weightspace.store import Stack
from weightspace.training import captured
from weightspace.training.captured import SIGHTINGS, CapturedEncoder
from weightspace.training.module import EmbeddingModule, fit

CAPTURED = {"EquivariantLinear", "MatrixPower", "MessagePassing", "RelationalTransformer"}
"""Encoders whose passes CUDA captures; of the others, something waits for the host."""
EMULATED = CAPTURED | {"Querying", "SignEquivariant"}
"""Those that an emulated graph captures: it cannot see that a tensor is copied from the CPU to the GPU."""
FAMILIES = [GRU(input_size=2, output_size=1, hidden_size=4), Elman(input_size=2, output_size=1, hidden_size=3)]


@pytest.fixture(autouse=True)
def _by_torch(monkeypatch):
    """Computations by torch instead of C, which a recorder of torch's operations does not see."""
    monkeypatch.setattr(message_passing, "why_not", lambda *arguments: "graphs are emulated")
    monkeypatch.setattr(type(methods.named("native")), "why_not", lambda *arguments: "graphs are emulated")
    # On CUDA the numbers of classes are not looked at on the host.
    monkeypatch.setattr(torch.nn.functional, "one_hot", one_hot)


def one_hot(classes, number):
    return (classes[..., None] == torch.arange(number)).long()


def graphs_of(monkeypatch):
    monkeypatch.setattr(captured, "on_cuda", bool)
    return emulate(monkeypatch, from_host=False)


def stack_of(family, seed, models=3):
    draws = [family.init(generator(seed, str(i), "init")) for i in range(models)]
    params = {k: torch.stack([d[k] for d in draws]).double() for k in family.spec.tensors}
    return Stack(family, params, torch.arange(models))


def passed(encoder, stacks):
    """Embeddings, and gradients of the encoder by name."""
    embeddings = encoder(stacks)
    module = getattr(encoder, "encoder", encoder)
    module.zero_grad()
    weights = torch.linspace(-1, 1, embeddings.numel(), dtype=torch.float64).view_as(embeddings)
    (embeddings.sin() * weights).sum().backward()
    return embeddings.detach(), {n: p.grad if p.grad is None else p.grad.clone() for n, p in module.named_parameters()}


def assert_same(found, expected):
    torch.testing.assert_close(found[0], expected[0], rtol=1e-9, atol=1e-9)
    for name, gradient in expected[1].items():
        assert (found[1][name] is None) == (gradient is None), name
        if gradient is not None:
            torch.testing.assert_close(found[1][name], gradient, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", sorted(encoders.available()))
def test_captured_passes_of_every_encoder_are_its_passes(name, monkeypatch, caplog):
    torch.manual_seed(0)
    kind = encoders.available()[name]
    encoder = kind(**({"dropout": 0.0} if "dropout" in inspect.signature(kind).parameters else {})).double()
    encoder.fit_standardisation([stack_of(family, 9) for family in FAMILIES])
    # Two stacks of one form in a step, whose activations must not be overwritten.
    forms = [FAMILIES[0], FAMILIES[0], FAMILIES[1]]
    steps = [[stack_of(family, 3 * i + j) for j, family in enumerate(forms)] for i in range(5)]
    expected = [passed(encoder, stacks) for stacks in steps]
    graphs, reader = graphs_of(monkeypatch), CapturedEncoder(encoder)
    for i, stacks in enumerate(steps):
        reader.begin_step()
        assert_same(passed(reader, stacks), expected[i])
        if name in EMULATED:
            assert len(graphs) == (6 if i + 1 >= SIGHTINGS else 0)
    # The others wait for the host, as for a number of weights, which a graph cannot: one warning.
    assert len(caplog.records) == (0 if name in EMULATED else 1)
    if name in EMULATED:
        assert [graph.replays for graph in graphs] == [3] * 6


def test_activations_of_an_earlier_step_are_not_taken_for_those_of_a_later_one(monkeypatch):
    encoder = MessagePassing(embedding_dim=4).double()
    graphs, reader = graphs_of(monkeypatch), CapturedEncoder(encoder)
    stack = stack_of(FAMILIES[1], 0)
    for _ in range(SIGHTINGS):
        reader.begin_step()
        first = reader([stack])
    assert len(graphs) == 2
    reader.begin_step()
    reader([stack])
    with pytest.raises(RuntimeError, match="overwritten"):
        first.sum().backward()


def test_training_with_graphs_is_training(monkeypatch, tmp_path):
    losses, zoo = [], write_zoo(tmp_path / "zoo", models=16)
    for name in ("plain", "captured"):
        torch.manual_seed(0)
        encoder = MessagePassing(embedding_dim=8, dropout=0.0)
        module = EmbeddingModule(encoder, Supervised(["score"]), learning_rate=1e-2)
        graphs = graphs_of(monkeypatch) if name == "captured" else []
        fit(module, ZooDataModule(zoo, batch_size=4, groups_per_batch=2), tmp_path / name, max_epochs=3)
        losses.append(module.state_dict())
    assert len(graphs) > 0
    assert sum(graph.replays for graph in graphs) > 10
    for key, value in losses[0].items():
        torch.testing.assert_close(losses[1][key], value, rtol=1e-3, atol=1e-4)
