"""Functions of nested tensors: one graph for each form, replayed with new numbers; off CUDA they are just called."""

import logging
from dataclasses import dataclass

import pytest
import torch

from tests.weightspace.emulated_graph import emulate
from weightspace.rollout.captured import Captured, _form, mapped, tensors_in


@dataclass(frozen=True)
class Pair:
    first: torch.Tensor
    second: torch.Tensor | None = None


def test_every_tensor_of_a_structure_is_changed_and_nothing_else():
    value = ({"a": torch.ones(2), "b": 3}, [Pair(torch.zeros(1))], (torch.ones(1), None))
    doubled = mapped(value, lambda tensor: tensor + 1)
    assert [tensor.tolist() for tensor in tensors_in(doubled)] == [[2, 2], [1], [2]]
    assert doubled[0]["b"] == 3
    assert doubled[1][0].second is None
    assert doubled[2][1] is None


def test_a_form_heeds_names_shapes_types_and_what_is_no_tensor():
    forms = [
        _form(value)
        for value in (
            {"a": torch.ones(2)},
            {"b": torch.ones(2)},
            {"a": torch.ones(3)},
            {"a": torch.ones(2, dtype=torch.float64)},
            Pair(torch.ones(2)),
            Pair(torch.ones(2), torch.ones(2)),
            {"a": torch.ones(2), "c": 1},
            {"a": torch.ones(2), "c": 2},
        )
    ]
    assert len(set(forms)) == len(forms)
    assert _form({"a": torch.zeros(2)}) == forms[0]


def test_on_the_cpu_a_function_is_called_each_time_with_what_it_is_given():
    calls = []

    def add(pair):
        calls.append(pair)
        return {"sum": pair.first + 1}

    captured, pair = Captured(add), Pair(torch.ones(2))
    assert captured(pair)["sum"].tolist() == [2, 2]
    assert captured(pair)["sum"].tolist() == [2, 2]
    assert len(calls) == 2
    assert calls[0] is pair


def test_a_function_without_tensors_is_called():
    assert Captured(lambda: 5)() == 5


def test_a_graph_is_made_once_for_each_form_and_replayed_with_new_numbers(monkeypatch):
    graphs, calls = emulate(monkeypatch), []

    def product(pair):
        calls.append(1)
        return {"product": pair.first * pair.second, "first": pair.first.clone().mul_(2)}

    captured = Captured(product)
    for size in (2, 2, 3, 2, 3):
        first, second = torch.randn(size), torch.randn(size)
        result = captured(Pair(first, second))
        assert torch.equal(result["product"], first * second)
        assert torch.equal(result["first"], 2 * first)
    assert [graph.replays for graph in graphs] == [3, 2]
    # Two warm-ups and the capture.
    assert len(calls) == 6


def test_a_result_that_is_fed_back_is_read_before_it_is_overwritten(monkeypatch):
    emulate(monkeypatch)
    doubled, value = Captured(lambda tensor: tensor * 2), torch.ones(2)
    for _ in range(5):
        value = doubled(value)
    assert value.tolist() == [32, 32]


def test_gradients_can_be_captured(monkeypatch):
    emulate(monkeypatch)

    def gradient(x):
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(leaf.pow(3).sum(), leaf)[0]

    captured = Captured(gradient)
    for _ in range(3):
        x = torch.randn(4)
        torch.testing.assert_close(captured(x), 3 * x**2)


def test_what_cannot_be_captured_is_called_after_one_warning(monkeypatch, caplog):
    graphs = emulate(monkeypatch)
    captured = Captured(lambda x: x * float(x.sum()))
    with caplog.at_level(logging.WARNING):
        for scale in (1.0, 2.0, 3.0):
            assert captured(torch.full((2,), scale)).tolist() == [2 * scale**2] * 2
    assert [record.getMessage().split(" (")[0] for record in caplog.records] == ["A CUDA graph could not be captured"]
    assert [graph.replays for graph in graphs] == [0]


def test_an_error_of_the_function_itself_is_not_hidden(monkeypatch):
    emulate(monkeypatch)

    def refuse(x):
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        Captured(refuse)(torch.ones(1))
