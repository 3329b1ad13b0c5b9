"""Work that CUDA launches as one: a function of tensors, captured as a CUDA graph and replayed."""

from __future__ import annotations

import dataclasses
import gc
import logging
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

WARM_UPS = 2
"""Calls before the capture, in which libraries make what they keep."""

T = TypeVar("T")


class Captured(Generic[T]):
    """A function whose every operation is captured on CUDA at the first call and launched as one from then on.

    A recurrence is thousands of small operations, which a GPU does faster than they can be launched one by one; a
    CUDA graph launches them all at once. Arguments and result are tensors, or mappings, tuples, lists and dataclasses
    of them. Each set of shapes has a graph of its own. The result is the graph's memory: it holds until the next call.

    The function must be pure, draw no random numbers, and read no tensor's value on the host. Where a capture fails,
    one warning says so, and the function is called as it is. Anywhere but on CUDA that is all that ever happens.
    """

    def __init__(self, function: Callable[..., T]) -> None:
        self._function = function
        self._graphs: dict[Any, _Graph[T]] = {}
        self._usable = True

    def __call__(self, *arguments: Any) -> T:
        given = tensors_in(arguments)
        if not (self._usable and _on_cuda(given)):
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
        return self._graphs[key].replay(given)


class _Graph(Generic[T]):
    """One captured call: arguments are copied into its memory, and its result lies there."""

    def __init__(self, function: Callable[..., T], arguments: tuple[Any, ...]) -> None:
        # Graphs that nobody has any more hold their memory until they are collected.
        gc.collect()
        own = mapped(arguments, lambda tensor: tensor.detach().clone(memory_format=torch.contiguous_format))
        self._inputs = tensors_in(own)
        aside = torch.cuda.Stream(self._inputs[0].device)
        aside.wait_stream(torch.cuda.current_stream(self._inputs[0].device))
        with torch.cuda.stream(aside):
            for _ in range(WARM_UPS):
                function(*own)
        torch.cuda.current_stream(self._inputs[0].device).wait_stream(aside)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._result = function(*own)

    def replay(self, given: list[Tensor]) -> T:
        with torch.no_grad():
            for own, tensor in zip(self._inputs, given, strict=True):
                own.copy_(tensor, non_blocking=True)
        self._graph.replay()
        return self._result


def _on_cuda(tensors: list[Tensor]) -> bool:
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
    """Every tensor of such a structure, in its order."""
    found: list[Tensor] = []
    mapped(value, found.append)
    return found


def _form(value: Any) -> str:
    """What two structures must have in common to share a graph: all but the numbers in their tensors."""
    return repr(mapped(value, lambda tensor: (tuple(tensor.shape), tensor.dtype, tensor.device)))
