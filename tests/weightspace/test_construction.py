"""Components that know how they were made."""

import copy
import dataclasses
import importlib

import pytest
from torch import nn

from weightspace.components.construction import MOVED, Constructed, of_today, plain
from weightspace.encoders.message_passing import MessagePassing


@dataclasses.dataclass(frozen=True)
class Bounds:
    low: float
    high: float = 2.0


class Base(Constructed, nn.Module):
    def __init__(self, size):
        super().__init__()


class Part(Base):
    def __init__(self, size=3, *, bounds=(), inner=None):
        super().__init__(size + 1)


def test_construction_names_the_class_and_all_arguments_with_defaults():
    part = Part(5, bounds=[Bounds(low=1.0)], inner=Part())
    name = f"{__name__}.Part"
    inner = {"class_path": name, "init_args": {"size": 3, "bounds": [], "inner": None}}
    bounds = [{"low": 1.0, "high": 2.0}]
    assert part.construction == {"class_path": name, "init_args": {"size": 5, "bounds": bounds, "inner": inner}}
    assert copy.deepcopy(part).construction == part.construction


def test_encoders_can_be_made_again_from_their_construction():
    made = MessagePassing(embedding_dim=8, edge_dim=4, node_dim=6)
    again = MessagePassing(**made.construction["init_args"])
    assert [p.shape for p in made.parameters()] == [p.shape for p in again.parameters()]


def test_arguments_that_are_not_plain_are_refused():
    with pytest.raises(ValueError, match="of type object cannot be written to a checkpoint"):
        plain({"a": [object()]})


def test_class_paths_of_version_0_3_are_those_of_today():
    old = {"augment": {"class_path": "weightspace.augment.GroupMoves", "init_args": {"parts": [{"a": 1}]}}}
    new = {"augment": {"class_path": "weightspace.data.augment.GroupMoves", "init_args": {"parts": [{"a": 1}]}}}
    assert of_today(old) == new
    kept = {"_class_path": "weightspace.encoders.message_passing.MessagePassing"}
    assert of_today(kept) == kept
    for module in MOVED.values():
        importlib.import_module(module)
