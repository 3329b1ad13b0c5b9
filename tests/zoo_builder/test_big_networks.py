"""Networks of hundreds of units: labels taken in parts are those taken whole, and memory stays within bounds."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from weightspace.families.gru import GRU
from weightspace.families.lstm import LSTM
from zoo_builder import labels
from zoo_builder.labels import driven, lagged_response, memory_capacity
from zoo_builder.learning.base import fresh_params
from zoo_builder.members import Members

GENERAL = [name for name, label in labels.available().items() if label.for_all_families]
FAMILIES = [GRU(input_size=2, hidden_size=5, output_size=2), LSTM(input_size=3, hidden_size=4, output_size=2)]


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_labels_taken_in_parts_are_those_taken_whole(family, monkeypatch):
    params = {name: value.double() for name, value in fresh_params(family, 0, ["a"]).items()}
    whole = labels.measure(GENERAL, family, params, None, Members(0, ["a"]))
    monkeypatch.setattr(labels, "MOST_BYTES", 0)
    monkeypatch.setattr(driven, "MOST_BYTES", 0)
    # Three trajectories at a time, the last time two; and so on.
    monkeypatch.setattr(driven, "PART_BYTES", driven.jacobian_bytes(family) * 3 // driven.TRAJECTORIES)
    monkeypatch.setattr(memory_capacity, "KEPT", driven.TRAJECTORIES * family.spec.state_size * 7)
    monkeypatch.setattr(lagged_response, "MOST_NUMBERS", 1)
    parts = [part.shape[2] for _, part in driven.Driven(family, params, None, Members(0, ["a"])).jacobian_parts()]
    assert parts == [3] * 10 + [2]
    for method in ("stacked", "native"):
        found = labels.measure(GENERAL, family, params, None, Members(0, ["a"]), method)
        for name, column in whole.items():
            assert torch.allclose(found[name], column, rtol=1e-8, atol=1e-8, equal_nan=True), name


# Largest resident size of this process and of any of its children so far, in GB.
RUN = """
import json, resource, sys
from importlib import import_module
code = import_module(sys.argv[1]).main(sys.argv[2:])
peaks = [resource.getrusage(who).ru_maxrss / 2**20 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
print(json.dumps({"code": code, "peak": max(peaks)}))
"""


def peak(module, *arguments):
    command = [sys.executable, "-c", RUN, module, *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    said = json.loads(ended.stdout.splitlines()[-1])
    assert said["code"] == 0, ended.stderr
    print(f"{arguments[0]}: {said['peak']:.2f} GB")
    return said["peak"]


LARGE = {"lstm": lambda: nn.LSTM(40, 256, num_layers=3), "gru": lambda: nn.GRU(64, 1024)}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="resident sizes are in kB on Linux")
@pytest.mark.parametrize("name", LARGE)
def test_networks_of_a_thousand_units_are_imported_labelled_and_embedded_in_4_gb(name, tmp_path):
    torch.manual_seed(0)
    (tmp_path / "models").mkdir()
    safetensors.torch.save_file(LARGE[name]().state_dict(), tmp_path / "models" / "model.safetensors")
    zoo = tmp_path / "zoo"
    assert peak("zoo_builder.cli", "import", "--state_dicts", tmp_path / "models", "--out", zoo) < 4
    assert peak("zoo_builder.cli", "label", zoo, "--workers", 1, "--labels", *GENERAL) < 4
    assert peak("weightspace.cli", "embed", "--zoo", zoo, "--out", tmp_path / "embeddings.safetensors") < 4
    assert peak("zoo_builder.cli", "info", zoo) < 4
    assert Path(tmp_path / "embeddings.safetensors").is_file()
