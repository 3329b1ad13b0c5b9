"""A CUDA device for machines without one: tensors that lie on the CPU but say, and are held to, where they should lie.

Every operation is checked, below vmap and autograd, for tensors of two devices, as CUDA would refuse them.
"""

from contextlib import contextmanager

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from weightspace import graph
from weightspace.encoders import fields
from weightspace.rollout import captured

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
# Operations that take tensors of several devices on CUDA, too.
MIXING = ("copy_", "_to_copy", "index", "index_put_", "_index_put_impl_")


class Places:
    """Which device each piece of memory pretends to be on."""

    def __init__(self):
        self._of, self._alive = {}, []

    def of(self, tensor):
        """The device of a tensor, None where nobody has said."""
        while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            tensor = torch._C._functorch.get_unwrapped(tensor)
        return self._of.get(tensor.untyped_storage()._cdata)

    def mark(self, values, device):
        for tensor in tensors(values):
            while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
                tensor = torch._C._functorch.get_unwrapped(tensor)
            # Memory that is kept is not given to another tensor.
            self._alive.append(tensor.untyped_storage())
            self._of[tensor.untyped_storage()._cdata] = device


def tensors(value):
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


class Checking(TorchDispatchMode):
    """Refuses operations on tensors of two devices; what comes out lies where what went in does."""

    def __init__(self, places):
        super().__init__()
        self.places = places

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = tensors((args, kwargs or {}))
        found = {self.places.of(tensor) for tensor in given} - {None}
        # A number on the host goes with tensors anywhere.
        strict = {self.places.of(tensor) for tensor in given if tensor.dim()} - {None}
        name = function.overloadpacket.__name__
        if len(strict) > 1 and name not in MIXING:
            raise RuntimeError(
                f"{name}: expected all tensors to be on the same device, found {sorted(map(str, strict))}"
            )
        results = function(*args, **(kwargs or {}))
        if found:
            first = self.places.of(given[0]) if name in MIXING else CUDA if CUDA in found else CPU
            self.places.mark([tensor for tensor in tensors(results) if self.places.of(tensor) is None], first)
        return results


class Pretending(TorchFunctionMode):
    """Takes devices out of calls, and answers which device a tensor is on."""

    def __init__(self, places):
        super().__init__()
        self.places = places

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function == Tensor.device.__get__:
            return self.places.of(args[0]) or CPU
        if function == Tensor.is_cuda.__get__:
            return self.places.of(args[0]) == CUDA
        if function is Tensor.pin_memory:
            return args[0].clone()
        device = kwargs.pop("device", None)
        if function is Tensor.cpu:
            function, device = Tensor.clone, CPU
        elif function is Tensor.to:
            named = [arg for arg in args[1:] if isinstance(arg, (str, torch.device))]
            # A tensor lends its device and its type.
            named += [self.places.of(arg) or CPU for arg in args[1:] if isinstance(arg, Tensor)]
            device = named[0] if named else device
            args = tuple(arg for arg in args if arg is not None and not isinstance(arg, (str, torch.device)))
            args = (args[0].clone(), *(arg.dtype if isinstance(arg, Tensor) else arg for arg in args[1:]))
            if "dtype" not in kwargs and not any(isinstance(arg, torch.dtype) for arg in args):
                args = (args[0], args[0].dtype, *args[1:])
        results = function(*args, **kwargs)
        if device is not None:
            self.places.mark(results, torch.device(device))
        elif not tensors((args, kwargs)):
            self.places.mark(results, CPU)
        return results


@contextmanager
def pretended_cuda(monkeypatch):
    """Within, `device="cuda"` works; nothing is captured."""
    monkeypatch.setattr(captured, "on_cuda", lambda tensors: False)
    places = Places()
    # Tensors that were kept for "cuda" are no longer known to lie there, nor those that are kept now later on.
    kept = (graph._layout_on, fields._indices)
    for cache in kept:
        cache.cache_clear()
    with torch.backends.cudnn.flags(enabled=False), Checking(places), Pretending(places):
        yield
    for cache in kept:
        cache.cache_clear()
