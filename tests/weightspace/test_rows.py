"""Channel rows: one iterator gives all readers of weights the numbers that each found by itself before."""

import json

import pytest

from tests.weightspace.recording import EXAMPLES, PATH, numbers

RECORDED = json.loads(PATH.read_text())


@pytest.mark.parametrize("name", RECORDED)
def test_graphs_features_summaries_embeddings_completions_and_labels_are_what_they_were(name):
    found = numbers(EXAMPLES[name])
    for what, value in RECORDED[name].items():
        assert found[what] == (pytest.approx(value, rel=1e-5, abs=1e-5) if isinstance(value, float) else value), what
