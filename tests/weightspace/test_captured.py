"""Functions of nested tensors: what is taken for the same form, and that off CUDA they are just called."""

from dataclasses import dataclass

import torch

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
