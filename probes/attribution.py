"""Weights that a probe's prediction rests on: gradient times weight, summed over units and tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from probes.feature_sets import Embedding
from probes.fitting import Prediction
from probes.probe import Design
from probes.problem import Problem, Rows, diverged
from weightspace.spec import Params, WeightSpec
from weightspace.store import Stack, Zoo

Encode = Callable[[Sequence[Stack]], Tensor]
"""An encoder: embeddings (models, embedding_dim) of stacks, with gradients."""
NUM_MODELS = 4
CHECKED_ROWS = 8
# An encoder run in other batches differs by rounding; another encoder differs by the spread of the embedding.
AGREEMENT = 1e-3


@dataclass(frozen=True)
class Reading:
    """A linear probe: prediction = embedding (models, embedding_dim) @ weights (embedding_dim) + offset."""

    weights: np.ndarray
    offset: float


@dataclass(frozen=True)
class Attribution:
    """The prediction of one model (row of the zoo), and what each weight has to do with it.

    metric and value: how well the probe reads the target on all test models. tensors: by name, weight times the
    prediction's gradient with respect to it, in the shape of the tensor. units: by permutable axis, the sums (axis)
    over the weights of each unit.
    """

    row: int
    target: str
    features: str
    metric: str
    value: float
    true: float
    prediction: float
    spec: WeightSpec
    tensors: Params
    units: Mapping[str, Tensor]


def reading_of(problem: Problem, features: Embedding) -> Reading:
    """The ridge probe of what remains of labels within cells on an embedding, as a vector and an offset.

    A ridge prediction is affine in the features, so its values at 0 and at the unit vectors are all there is to know.
    """
    values = features.on(problem.division).values
    design = Design(values[problem.train], problem.rows.model[problem.train], values[problem.val])
    points = np.vstack([np.zeros(values.shape[1]), np.eye(values.shape[1])])
    at = design.ridge(problem.residual[problem.train, None], points).predicted[:, 0]
    return Reading(at[1:] - at[0], float(at[0]))


def attribute(encode: Encode, reading: Reading, stack: Stack) -> tuple[Tensor, Params]:
    """Predictions (models,) of a stack, and weight x gradient by tensor (models, ...), masks left out.

    A first-order reading (Simonyan et al., 2014; Shrikumar et al., 2017): a_w = w dp/dw. Where p is linear in the
    weights it is exact and sums to p less its offset. As p of a permuted model is p, so are its a_w the permuted ones.
    """
    spec = stack.family.spec
    leaves = {
        name: tensor.detach().clone().requires_grad_(spec.tensors[name].role != "mask" and tensor.is_floating_point())
        for name, tensor in stack.params.items()
    }
    with torch.enable_grad():
        embedding = encode([replace(stack, params=leaves)])
        weights = torch.as_tensor(reading.weights, dtype=torch.float64, device=embedding.device)
        prediction = embedding.double() @ weights + reading.offset
        chosen = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
        gradients = torch.autograd.grad(prediction.sum(), list(chosen.values()), allow_unused=True)
    attributed = {
        name: torch.zeros_like(leaf) if gradient is None else (leaf * gradient).detach()
        for (name, leaf), gradient in zip(chosen.items(), gradients, strict=True)
    }
    return prediction.detach(), attributed


def unit_sums(spec: WeightSpec, attributed: Mapping[str, Tensor]) -> Params:
    """Sums (models, axis) of attributed weights (models, ...) over the units of each permutable axis.

    A weight that joins two units of permutable axes counts half for each, so that all sums together are the sum over
    all weights that have such a unit.
    """
    sums: Params = {}
    for name, values in attributed.items():
        axes = spec.tensors[name].axes
        ends = [dim for dim, axis in enumerate(axes) if axis in spec.permutable]
        for dim in ends:
            others = [other + 1 for other in range(len(axes)) if other != dim]
            total = (values.sum(others) if others else values) / len(ends)
            sums[axes[dim]] = sums[axes[dim]] + total if axes[dim] in sums else total
    return sums


def made_by(encode: Encode, zoo: Zoo, rows: Rows, embeddings: Sequence[Embedding]) -> Embedding | None:
    """The embedding whose stored values an encoder gives for a few rows; None if it made none of these."""
    usable = np.flatnonzero(~diverged(rows))
    chosen = usable[:: max(1, len(usable) // CHECKED_ROWS)][:CHECKED_ROWS]
    computed = np.concatenate([_embedded(encode, zoo, int(row)) for row in chosen])
    for embedding in embeddings:
        for stored in embedding.made_for.values():
            spread = np.maximum(stored[usable].std(), np.finfo(np.float32).tiny)
            expected = stored[chosen]
            if expected.shape == computed.shape and np.abs(expected - computed).max() <= AGREEMENT * spread:
                return embedding
    return None


def _embedded(encode: Encode, zoo: Zoo, row: int) -> np.ndarray:
    with torch.no_grad():
        values: np.ndarray = encode([zoo.stack([row])]).double().cpu().numpy()
    return values


def explained(encode: Encode, zoo: Zoo, prediction: Prediction, value: float) -> list[Attribution]:
    """Attributions of a few test models of a ridge prediction from an embedding, in the headline metric, of this value.

    They are, for each family, the test row whose label stands out most; of several folds those of the first.
    """
    problem, features = prediction.question.problems[0], prediction.features
    assert isinstance(features, Embedding)
    reading = reading_of(problem, features)
    found = []
    for row in _chosen(problem):
        stack = zoo.stack([row])
        predicted, attributed = attribute(encode, reading, stack)
        units = unit_sums(stack.family.spec, attributed)
        found.append(
            Attribution(
                row=row,
                target=problem.target.name,
                features=features.name,
                metric=prediction.metric,
                value=value,
                true=float(problem.residual[row]),
                prediction=float(predicted[0]),
                spec=stack.family.spec,
                tensors={name: values[0] for name, values in attributed.items()},
                units={axis: values[0] for axis, values in units.items()},
            )
        )
    return found


def _chosen(problem: Problem) -> list[int]:
    """The test row of each family (of the first few by name) with the largest deviation from the mean of its cell."""
    seen = problem.test[problem.seen[problem.test]]
    test = seen if len(seen) else problem.test
    families, far = problem.rows.column("family")[test], np.abs(problem.residual[test])
    rows = [int(test[families == name][np.argmax(far[families == name])]) for name in sorted(set(families))]
    return rows[:NUM_MODELS]
