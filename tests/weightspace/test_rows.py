"""Channel rows: one iterator gives all readers of weights the numbers that each found by itself before."""

import json

import pytest
import torch

from tests.weightspace.recording import EXAMPLES, PATH, numbers
from weightspace.rows import rows
from weightspace.spec import Axis, Gauge, TensorSpec, WeightSpec

RECORDED = json.loads(PATH.read_text())


@pytest.mark.parametrize("name", RECORDED)
def test_graphs_features_summaries_embeddings_completions_and_labels_are_what_they_were(name):
    found = numbers(EXAMPLES[name])
    for what, value in RECORDED[name].items():
        assert found[what] == (pytest.approx(value, rel=1e-5, abs=1e-5) if isinstance(value, float) else value), what


def test_a_row_holds_value_mask_role_slot_and_the_signs_of_either_end():
    axes = {
        "hidden": Axis(size=2, kind="hidden", permutable=True),
        "input": Axis(size=3, kind="input"),
        "gate": Axis(size=3, kind="channel", names=("i", "g", "o")),
    }
    tensors = {
        "weight": TensorSpec(axes=("gate", "hidden", "input"), row_roles=("gate", "drive", "gate"), mask="mask"),
        "mask": TensorSpec(axes=("gate", "hidden", "input"), role="mask", row_roles=("other",) * 3),
        "size": TensorSpec(axes=("hidden",), domain="even"),
    }
    sign = Gauge(axis="hidden", kind="sign", charges={"weight": (0, (0, 1, 2), 0), "size": (1,)})
    scale = Gauge(axis="input", kind="positive", charges={"weight": (0, 0, 1)})
    spec = WeightSpec(axes=axes, tensors=tensors, states={}, gauges={"sign": sign, "scale": scale})
    params = {name: torch.randn(4, *spec.shape(name)) for name in tensors}
    first, second, third, size = rows(spec, params)
    assert [row.label for row in (first, second, third, size)] == ["weight.i", "weight.g", "weight.o", "size"]
    assert [(row.role, row.slot) for row in (first, second, third)] == [("gate", 0), ("drive", 0), ("gate", 1)]
    # Only an odd charge flips a sign, and no scale does.
    nothing = frozenset()
    assert [row.signs for row in (first, second, third)] == [
        (nothing, nothing),
        (frozenset({"sign"}), nothing),
        (nothing, nothing),
    ]
    assert size.signs == (nothing,)
    for index, row in enumerate((first, second, third)):
        assert torch.equal(row.value, params["weight"][:, index])
        assert torch.equal(row.mask, params["mask"][:, index])
        assert torch.equal(row.masked, params["weight"][:, index] * params["mask"][:, index])
    assert torch.equal(size.value, params["size"].abs())
    assert size.mask is None
