"""Linear maps of a layer as matrices, and the declared group as matrices, for tests of equivariance."""

import itertools

import torch

from weightspace.encoders.fields import read_fields
from weightspace.encoders.lifts import States
from weightspace.encoders.linear_maps import LinearMaps
from weightspace.spec import GroupElement


def group(spec):
    """Every permutation of every permutable axis."""
    choices = [itertools.permutations(range(spec.axes[axis].size)) for axis in spec.permutable]
    for chosen in itertools.product(*choices):
        yield GroupElement({a: torch.tensor(p) for a, p in zip(spec.permutable, chosen, strict=True)}, {})


def action(spec, element, name):
    """Matrix (entry, entry) by which an element moves one flattened tensor."""
    size = torch.Size(spec.shape(name)).numel()
    basis = torch.eye(size, dtype=torch.float64).view(size, *spec.shape(name))
    return torch.stack([spec.act(element, {name: one})[name].flatten() for one in basis], dim=1)


def maps_of(spec, *, draws, basis="complete", node_dim=24):
    """Matrices (draw, target entry, source entry) of layers of random weights, by (source tensor, target tensor)."""
    names, found = list(spec.tensors), {}
    for seed in range(draws):
        torch.manual_seed(seed)
        maps = LinearMaps(1, node_dim, 8, basis).double()
        for source in names:
            for target, matrix in _matrices(spec, maps, source).items():
                found.setdefault((source, target), []).append(matrix)
    return {pair: torch.stack(matrices) for pair, matrices in found.items()}


@torch.no_grad()
def _matrices(spec, maps, source):
    """Matrices of one layer from one tensor to each; the first channel of a node stands for its vector."""
    size = torch.Size(spec.shape(source)).numel()
    zeros = {name: torch.zeros(size + 1, *spec.shape(name), dtype=torch.float64) for name in spec.tensors}
    zeros[source][:size] = torch.eye(size, dtype=torch.float64).view(size, *spec.shape(source))
    fields = read_fields(spec, zeros)
    edges = {spec.node_axes(name): zeros[name][..., None] for name, _, _ in spec.matrices()}
    nodes = {axis: torch.zeros(size + 1, s.size, maps.node_dim, dtype=torch.float64) for axis, s in fields.sets.items()}
    for name, axis in spec.vectors():
        nodes[axis][..., 0] = zeros[name]
    graph = torch.zeros(size + 1, maps.node_dim, dtype=torch.float64)
    new_edges, new_nodes, _ = maps.over(fields)(States(edges=edges, nodes=nodes, present={}), graph)
    values = {name: new_edges[spec.node_axes(name)][..., 0] for name, _, _ in spec.matrices()}
    values |= {name: new_nodes[axis][..., 0] for name, axis in spec.vectors()}
    # Biases are there without input, too: only differences are linear.
    return {name: (value[:size] - value[size:]).flatten(1).T for name, value in values.items()}
