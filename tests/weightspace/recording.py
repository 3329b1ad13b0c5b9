"""Numbers that readers of weights gave when each of them walked channel rows by itself, kept in recorded.json."""

import hashlib
import json
from pathlib import Path

import torch

from weightspace import families
from weightspace.data.augment import MaskEdges
from weightspace.encoders.message_passing import MessagePassing
from weightspace.features import spectra_of, statistics_of
from weightspace.graph import dense_graphs
from weightspace.objectives.completion import Completion
from weightspace.rollout import generator
from weightspace.spec import ROW_ROLES
from weightspace.store import Stack
from weightspace.summaries import summaries_of
from zoo_builder.labels.base import rows_of_recurrent

PATH = Path(__file__).with_name("recorded.json")
EXAMPLES = {
    f"{name}.{i}": example
    for name, kind in families.available().items()
    for i, example in enumerate(kind.examples())
}


def stack_of(family, models=3):
    draws = [family.spec.random_params(generator(0, str(i), "recorded"), torch.float32) for i in range(models)]
    return Stack(family, {k: torch.stack([d[k] for d in draws]) for k in family.spec.tensors}, torch.arange(models))


def folded(tensor):
    """A sum over all entries, each with a weight that follows from its place: it changes when entries move."""
    flat = torch.nan_to_num(tensor.double().flatten(), nan=0.5)
    return float((flat * torch.cos(torch.arange(flat.numel(), dtype=torch.float64))).sum())


@torch.no_grad()
def numbers(family):
    stack = stack_of(family)
    spec, params = stack.effective
    graphs, roles = dense_graphs(spec, params), len(ROW_ROLES)
    found = {f"graph.{k}": folded(getattr(graphs, k)[..., :roles].contiguous()) for k in ("edges", "nodes", "present")}
    for name, describe in (("statistics", statistics_of), ("spectra", spectra_of)):
        columns = describe(spec, params)
        found[name] = folded(torch.stack(list(columns.values()))) if columns else 0.0
        found[f"{name}.names"] = hashlib.sha256(" ".join(columns).encode()).hexdigest()[:16]
    found["summaries"] = folded(summaries_of(stack))
    torch.manual_seed(0)
    encoder = MessagePassing(embedding_dim=8, edge_dim=8, node_dim=8, product_dim=4, num_layers=2).eval()
    completion = Completion(8, 8).eval()
    encoder.fit_standardisation([stack])
    embedding = encoder([stack])
    found["embedding"] = folded(embedding)
    mask = MaskEdges(0.3)
    error, count = completion(stack, mask.draw(stack), embedding)
    found["completion"], found["hidden"] = folded(error), folded(count)
    prefixes = rows_of_recurrent(spec).items()
    found["label prefixes"] = str({k: (row.tensor, row.index if row.name else None) for k, row in prefixes})
    return found


if __name__ == "__main__":
    PATH.write_text(json.dumps({name: numbers(family) for name, family in EXAMPLES.items()}, indent=1) + "\n")
