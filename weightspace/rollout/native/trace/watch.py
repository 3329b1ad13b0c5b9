"""Watch of a family's calls while it is traced, for derivatives that the graph does not show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch.overrides import TorchFunctionMode

from weightspace.families.spike import SPIKE
from weightspace.rollout.native.trace.program import Untraceable

DETACHING = (torch.Tensor.detach, torch.detach)
"""Functions that each become a node in the graph."""
HOOKS = (torch.Tensor.register_hook, torch.Tensor.register_post_accumulate_grad_hook)
"""Functions that change gradients outside the graph."""
DETACHING_IN_PLACE = (torch.Tensor.detach_, torch.detach_)


class Watch(TorchFunctionMode):
    """Mode that sees every call of torch by a family, and refuses those whose derivative the graph would get wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.num_detached = 0

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Make the call unchanged."""
        if func in DETACHING_IN_PLACE:
            raise Untraceable("`detach_` leaves no trace; `detach` does the same")
        if func in HOOKS:
            raise Untraceable(f"`{func.__name__}` leaves no trace")
        # torch.no_grad stops gradients but not the tangents of torch.func, and an autograd.Function may say anything of
        # its derivative. The forward pass of one runs without gradients, too.
        if func is not SPIKE and not torch.is_grad_enabled() and func is not torch._C._set_grad_enabled:
            raise Untraceable(
                f"`{getattr(func, '__name__', func)}` is called where gradients are switched off (torch.no_grad, or an "
                "autograd.Function of its own), of which tracing sees nothing; it does see `detach`"
            )
        self.num_detached += func in DETACHING
        return func(*args, **(kwargs or {}))

    def check(self, graph: fx.GraphModule) -> None:
        """Refuse a graph in which torch itself inserted detach, as for derivatives inside a step."""
        num_in_graph = sum(node.target is torch.ops.aten.detach.default for node in graph.graph.nodes)
        if num_in_graph != self.num_detached:
            raise Untraceable(
                f"it detaches {self.num_detached} tensors, but its graph shows {num_in_graph}, so where gradients "
                "stop is unclear (derivatives within a step do that)"
            )
