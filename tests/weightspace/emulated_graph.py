"""CUDA graphs emulated on the CPU: every operation of a capture is recorded, and a replay does just these again.

What a graph cannot see is not seen here either: Python runs at the capture alone, so that a number that Python computes
stays what it was, and reading a tensor on the host is refused.
"""

from contextlib import contextmanager, nullcontext

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from weightspace.rollout import captured

REFUSED = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal")


class Graph:
    def __init__(self):
        self.calls, self.replays = [], 0

    def pool(self):
        return None

    def replay(self):
        self.replays += 1
        # What was recorded are the operations below autograd, which a graph knows nothing of.
        with torch._C._AutoDispatchBelowAutograd():
            for function, args, options, results in self.calls:
                for old, new in zip(tree_leaves(results), tree_leaves(function(*args, **options)), strict=True):
                    if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)


class Recorder(TorchDispatchMode):
    def __init__(self, graph, refused):
        super().__init__()
        self.graph, self.refused = graph, refused

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket.__name__ in self.refused:
            raise RuntimeError("operation not permitted when stream is capturing")
        results = function(*args, **(kwargs or {}))
        self.graph.calls.append((function, args, kwargs or {}, results))
        return results


class Stream:
    def __init__(self, device=None):
        pass

    def wait_stream(self, other):
        pass


def emulate(monkeypatch, from_host: bool = True) -> list[Graph]:
    """Have `Captured` make emulated graphs of work on the CPU; returns the list of those made so far.

    Without `from_host`, tensors made of numbers in Python are refused too: a graph cannot copy them to a GPU.
    """
    made = []

    def graph():
        made.append(Graph())
        return made[-1]

    @contextmanager
    def recording(graph, pool=None):
        with Recorder(graph, REFUSED if from_host else (*REFUSED, "lift_fresh")):
            yield

    monkeypatch.setattr(captured, "on_cuda", bool)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", graph)
    monkeypatch.setattr(torch.cuda, "graph", recording)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    return made
