"""Functions of tensors captured as CUDA graphs: one launch replays all of their operations."""

from __future__ import annotations

import dataclasses
import gc
import logging
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

WARM_UPS = 2
"""Calls before the capture, in which libraries allocate their workspaces."""

T = TypeVar("T")


class Captured(Generic[T]):
    """A function whose every operation is captured on CUDA at the first call and launched as one from then on.

    A recurrence is thousands of small operations, which a GPU runs faster than they can be launched one by one; a
    CUDA graph launches them all at once. Arguments and result are tensors, or mappings, tuples, lists and dataclasses
    of them. Each set of shapes is captured once. The result is the graph's memory: the next call overwrites it.

    The function must be pure, draw no random numbers, and read no tensor's value on the host. Where a capture fails,
    one warning is logged and the function is called directly, as it always is on other devices.
    """

    def __init__(self, function: Callable[..., T]) -> None:
        self._function = function
        self._graphs: dict[Any, _Graph[T]] = {}
        self._usable = True

    def __call__(self, *arguments: Any) -> T:
        tensors = tensors_in(arguments)
        if not (self._usable and on_cuda(tensors)):
            return self._function(*arguments)
        key = _form(arguments)
        if key not in self._graphs:
            try:
                self._graphs[key] = _Graph(self._function, arguments)
            except RuntimeError as error:
                self._usable = False
                reason = str(error).split("\n")[0]
                logger.warning("A CUDA graph could not be captured (%s); going on without, which is slower.", reason)
                return self._function(*arguments)
        return self._graphs[key].replay(tensors)


class _Graph(Generic[T]):
    """One captured call: arguments are copied into its memory, which also contains its result."""

    def __init__(self, function: Callable[..., T], arguments: tuple[Any, ...]) -> None:
        copies = mapped(arguments, copy_of)
        self._inputs = tensors_in(copies)
        warm_up(lambda: function(*copies), self._inputs[0].device)
        self._graph, self._result = recorded(lambda: function(*copies))

    def replay(self, tensors: list[Tensor]) -> T:
        load(self._inputs, tensors)
        self._graph.replay()
        return self._result


def copy_of(tensor: Tensor) -> Tensor:
    """A contiguous copy, in which a graph finds an argument."""
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def warm_up(work: Callable[[], object], device: torch.device) -> None:
    """Call some work on a stream of its own, so that libraries allocate their workspaces outside a graph's memory."""
    # Unreferenced graphs keep their memory until they are collected.
    gc.collect()
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            work()
    torch.cuda.current_stream(device).wait_stream(stream)


def recorded(work: Callable[[], T], pool: Any = None) -> tuple[torch.cuda.CUDAGraph, T]:
    """The graph of the operations of some work, and its result: memory of the graph, or of the `pool` of another."""
    graph = torch.cuda.CUDAGraph()
    with warnings.catch_warnings():
        # Work that fails at its first operation says so itself.
        warnings.filterwarnings("ignore", message="The CUDA Graph is empty")
        with torch.cuda.graph(graph, pool=pool):
            result = work()
    return graph, result


@torch.no_grad()
def load(inputs: list[Tensor], tensors: list[Tensor]) -> None:
    """Copy arguments to where a graph finds them."""
    for copy, tensor in zip(inputs, tensors, strict=True):
        copy.copy_(tensor, non_blocking=True)


def on_cuda(tensors: list[Tensor]) -> bool:
    """Whether there are tensors, all of them on CUDA."""
    return bool(tensors) and all(tensor.is_cuda for tensor in tensors)


def mapped(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """The same structure of mappings, tuples, lists and dataclasses with every tensor changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: mapped(item, change) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(mapped(item, change) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **mapped(fields, change))
    return value


def tensors_in(value: Any) -> list[Tensor]:
    """Every tensor of such a structure, in order."""
    tensors: list[Tensor] = []
    mapped(value, tensors.append)
    return tensors


def _form(value: Any) -> str:
    """Key of a graph: the structure with the shape, dtype and device of each tensor."""
    return repr(mapped(value, lambda tensor: (tuple(tensor.shape), tensor.dtype, tensor.device)))
