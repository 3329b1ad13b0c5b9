"""Weights that a probe's prediction rests on: weight times gradient, or occlusion, summed over units and tensors."""

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
OCCLUDED_AT_ONCE = 256
# An encoder run in other batches differs by rounding; another encoder differs by the spread of the embedding.
AGREEMENT = 1e-3


class NoGradient(ValueError):
    """An encoder lets no gradient through to the weights of a model."""


@dataclass(frozen=True)
class Reading:
    """A linear probe: prediction = embedding (models, embedding_dim) @ weights (embedding_dim) + offset."""

    weights: np.ndarray
    offset: float


@dataclass(frozen=True)
class Attribution:
    """The prediction of one model (row of the zoo), and what each weight has to do with it.

    metric and value: how well the probe reads the target on all test models. tensors: by name, weight times the
    prediction's gradient with respect to it (or what the prediction loses without it), in the shape of the tensor.
    units: by permutable axis, the sums (axis) over the weights of each unit.
    """

    row: int
    target: str
    features: str
    method: str
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
    `NoGradient` for an encoder that lets no gradient through to the weights.
    """
    leaves = {name: tensor.detach().clone() for name, tensor in stack.params.items()}
    chosen = {name: leaves[name].requires_grad_() for name in _weights(stack)}
    with torch.enable_grad():
        prediction = _predicted(encode, reading, replace(stack, params=leaves))
        gradients: Sequence[Tensor | None] = [None] * len(chosen)
        if prediction.requires_grad:
            gradients = torch.autograd.grad(prediction.sum(), list(chosen.values()), allow_unused=True)
    if all(gradient is None for gradient in gradients):
        raise NoGradient(f"{type(encode).__name__} lets no gradient through to the weights; use `occlude`.")
    attributed = {
        name: torch.zeros_like(leaf) if gradient is None else (leaf * gradient).detach()
        for (name, leaf), gradient in zip(chosen.items(), gradients, strict=True)
    }
    return prediction.detach(), attributed


@torch.no_grad()
def occlude(encode: Encode, reading: Reading, stack: Stack) -> tuple[Tensor, Params]:
    """Predictions (models,) of a stack, and by tensor (models, ...) what they lose when one weight is taken out.

    Taken out is: set to 0, or to 1 where the declaration says that a tensor is positive (Zeiler and Fergus, 2014). It
    needs no gradient, but an embedding for each weight. Where p is linear in the weights it is weight x gradient.
    """
    prediction = _predicted(encode, reading, stack)
    values = prediction.tolist()
    attributed = {
        name: torch.stack([_losses(encode, reading, stack, model, name, p) for model, p in enumerate(values)])
        for name in _weights(stack)
    }
    return prediction, attributed


def _losses(encode: Encode, reading: Reading, stack: Stack, model: int, name: str, prediction: float) -> Tensor:
    """Losses of a model's prediction without each weight of a tensor, in the shape of the tensor."""
    weights = stack.params[name][model]
    neutral = 1.0 if stack.family.spec.tensors[name].domain in ("positive", "at_least_1") else 0.0
    lost = []
    for entries in torch.arange(weights.numel()).split(OCCLUDED_AT_ONCE):
        params = {key: tensor[model].expand(len(entries), *tensor[model].shape) for key, tensor in stack.params.items()}
        occluded = params[name].clone()
        occluded.flatten(1)[torch.arange(len(entries)), entries] = neutral
        batch = replace(stack, params={**params, name: occluded}, rows=torch.zeros(len(entries), dtype=torch.long))
        lost.append(prediction - _predicted(encode, reading, batch))
    return torch.cat(lost).reshape(weights.shape)


def _weights(stack: Stack) -> list[str]:
    """Names of the tensors of weights, masks being none."""
    tensors = stack.family.spec.tensors
    return [name for name, t in stack.params.items() if tensors[name].role != "mask" and t.is_floating_point()]


def _predicted(encode: Encode, reading: Reading, stack: Stack) -> Tensor:
    embedding = encode([stack])
    weights = torch.as_tensor(reading.weights, dtype=torch.float64, device=embedding.device)
    return embedding.double() @ weights + reading.offset


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
    attributions = []
    for row in _chosen(problem):
        stack = zoo.stack([row])
        method, (predicted, attributed) = _attributed(encode, reading, stack)
        units = unit_sums(stack.family.spec, attributed)
        attributions.append(
            Attribution(
                row=row,
                target=problem.target.name,
                features=features.name,
                method=method,
                metric=prediction.metric,
                value=value,
                true=float(problem.residual[row]),
                prediction=float(predicted[0]),
                spec=stack.family.spec,
                tensors={name: values[0] for name, values in attributed.items()},
                units={axis: values[0] for axis, values in units.items()},
            )
        )
    return attributions


def _attributed(encode: Encode, reading: Reading, stack: Stack) -> tuple[str, tuple[Tensor, Params]]:
    """The method that an encoder allows, with what it gives."""
    try:
        return "weight times gradient", attribute(encode, reading, stack)
    except NoGradient:
        return "occlusion", occlude(encode, reading, stack)


def _chosen(problem: Problem) -> list[int]:
    """The test row of each family (of the first few by name) with the largest deviation from the mean of its cell."""
    seen = problem.test[problem.seen[problem.test]]
    test = seen if len(seen) else problem.test
    families, far = problem.rows.column("family")[test], np.abs(problem.residual[test])
    rows = [int(test[families == name][np.argmax(far[families == name])]) for name in sorted(set(families))]
    return rows[:NUM_MODELS]
