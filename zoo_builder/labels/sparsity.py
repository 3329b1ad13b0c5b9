"""How many connections a recurrent network has, and how localised the modes of its weights are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from weightspace.rows import Row, rows
from weightspace.spec import Params, WeightSpec
from zoo_builder.labels.base import Label, LabelColumn, in_words, recurrent_matrices, rows_of_recurrent
from zoo_builder.labels.driven import Driven
from zoo_builder.labels.spectra import finite_only, of_each, or_nan

COUNTED = "A connection is a weight that is not 0, as the function uses it; those of units to themselves do not count"
SOURCE = "definition; as pruned networks are described by Chakraborty et al., ICLR 2024, arXiv 2403.03409"
RATIOS = {"mean": "Mean over the eigenvectors v", "max": "Largest among the eigenvectors v"}
SAME, FLAT = 1e-4, 1e-3
"""Distance up to which eigenvalues count as equal, as a share of the Frobenius norm, and singular values, as a share of
the largest, below which eigenvectors count as parallel: rounding moves those of defective matrices as far."""


@dataclass(frozen=True, kw_only=True)
class Sparsity(Label):
    """Density of connections, with and without the read-out, of connected units, and localisation of eigenvectors.

    Families without a recurrent matrix have none of these columns.
    """

    def columns(self, spec: WeightSpec) -> tuple[LabelColumn, ...]:
        if not spec.recurrent():
            return ()
        definitions = {
            "edge_density": f"Connections of the recurrent matrices as a share of their entries. {COUNTED}, nor do "
            "those of inputs and of the read-out. Null where there is a single unit.",
            "edge_density_with_readout": "Connections of the recurrent matrices and of the maps to the outputs as a "
            f"share of their entries. {COUNTED}, nor do those of inputs.",
            "unit_density": "Units with a recurrent connection from or to another unit as a share of the units of the "
            f"recurrent matrices. {COUNTED}, nor do those of inputs and of the read-out.",
        }
        described = [
            LabelColumn(name=name, unit="share", definition=text, source=SOURCE) for name, text in definitions.items()
        ]
        for prefix, row in rows_of_recurrent(spec).items():
            for which, over in RATIOS.items():
                described.append(
                    LabelColumn(
                        name=f"{prefix}_ipr_{which}",
                        unit="share",
                        definition=f"{over} of {in_words(row)}, as the function uses it, of the inverse participation "
                        "ratio sum |v_i|^4 / (sum |v_i|^2)^2: 1 where a unit has all of v, 1 over the size where all "
                        "units share alike. Of equal eigenvalues, whose eigenvectors are not unique, each has that of "
                        "the space they span, sum P_ii^2 / sum P_ii with the projection P. Null where all weights are "
                        "0.",
                        source="Wegner, Zeitschrift fuer Physik B 1980",
                    )
                )
        return tuple(described)

    def measure(self, driven: Driven) -> dict[str, Tensor]:
        spec = driven.family.effective_spec
        if not spec.recurrent():
            return {}
        return densities(spec, driven.effective) | of_each(
            recurrent_matrices(driven), lambda _, stack: participation(stack)
        )


def densities(spec: WeightSpec, params: Params) -> dict[str, Tensor]:
    """The three densities (models,) of stacked params (models, ...), float64."""
    recurrent = list(rows(spec, params, spec.recurrent()))
    outputs = [name for name, to, _ in spec.matrices() if spec.axes[to].kind == "output"]
    readout = list(rows(spec, params, outputs))
    joined: dict[str, Tensor] = {}
    for row in recurrent:
        edges = connections(row)
        units = edges.any(1) | edges.any(2)
        joined[row.nodes[0]] = joined.get(row.nodes[0], torch.zeros_like(units)) | units
    return {
        "edge_density": share(recurrent),
        "edge_density_with_readout": share([*recurrent, *readout]),
        "unit_density": torch.cat(list(joined.values()), dim=1).double().mean(1),
    }


def connections(row: Row) -> Tensor:
    """Which weights connect different nodes (models, to, from), bool."""
    edges = row.masked != 0
    if row.is_square:
        edges = edges & ~torch.eye(edges.shape[-1], dtype=torch.bool, device=edges.device)
    return edges


def share(matrices: Iterable[Row]) -> Tensor:
    """Connections of these rows as a share of those that could be (models,); NaN where none could."""
    counts, entries = [], 0
    for row in matrices:
        counts.append(connections(row).flatten(1).sum(1))
        size = row.value[0].numel()
        entries += size - row.value.shape[-1] if row.is_square else size
    total = torch.stack(counts).sum(0).double()
    return total / entries if entries else torch.full_like(total, torch.nan)


def participation(matrices: Tensor) -> dict[str, Tensor]:
    """Mean and largest inverse participation ratio (models,) of the eigenvectors of matrices (models, n, n)."""
    usable, finite = finite_only(matrices)
    pairs = or_nan(eigenpairs, usable)
    values, vectors = pairs[:, 0], pairs[:, 1:]
    shares = vectors.abs().square()
    ratios = shares.square().sum(1) / shares.sum(1).square()
    known = finite & (usable != 0).flatten(1).any(1) & values.isfinite().all(1)
    apart = (values[:, :, None] - values[:, None]).abs()
    equal = apart <= SAME * torch.linalg.matrix_norm(usable)[:, None, None]
    several = (equal.sum(2) > 1).any(1) & known
    for model in several.nonzero().flatten().tolist():
        ratios[model] = of_equal(ratios[model], equal[model], vectors[model])
    columns = {"ipr_mean": ratios.mean(1), "ipr_max": ratios.amax(1)}
    return {name: torch.where(known, column, torch.nan) for name, column in columns.items()}


def eigenpairs(matrices: Tensor) -> Tensor:
    """Eigenvalues of matrices (..., n, n) in the first row, above their eigenvectors: (..., 1 + n, n), complex."""
    values, vectors = torch.linalg.eig(matrices)
    return torch.cat([values[..., None, :], vectors], dim=-2)


def of_equal(ratios: Tensor, equal: Tensor, vectors: Tensor) -> Tensor:
    """Ratios (eigenvector,) of one matrix, those of equal eigenvalues (eigenvector, eigenvector) from their space.

    Any basis of that space is one of eigenvectors (unit, eigenvector): with it, ratios would depend on the order of
    the units. Pruned networks have such spaces, as units that nothing reads share the eigenvalue 0.
    """
    ratios = ratios.clone()
    for among in equal[equal.sum(1) > 1].unique(dim=0):
        # By squares: the divide-and-conquer SVD of torch fails on some eigenvectors with entries next to 0.
        squares, basis = torch.linalg.eigh(vectors[:, among] @ vectors[:, among].mH)
        shares = basis[:, squares > FLAT**2 * squares[-1]].abs().square().sum(1)
        ratios[(equal == among).all(1)] = shares.square().sum() / shares.sum()
    return ratios
