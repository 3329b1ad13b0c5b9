"""The encoder that comes with the package: small, in the wheel, and blind to the order of an nn.GRU's units."""

import json
import logging
import zipfile
from pathlib import Path

import pytest
import safetensors
import torch
from torch import nn

from weightspace.cli import main
from weightspace.encoders import Encoder
from weightspace.exchange import pretrained, state_dicts

ROOT = Path(__file__).parents[2]
LIMIT = 2_000_000


def permuted(module: nn.GRU, readout: nn.Linear, order: torch.Tensor, columns: bool = True):
    """Copies of a GRU of one layer and its read-out with the hidden units in this order; of rows only on request."""
    size = len(order)
    rows = torch.cat([order + gate * size for gate in range(3)])
    other, reading = nn.GRU(module.input_size, size), nn.Linear(size, readout.out_features)
    with torch.no_grad():
        for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
            getattr(other, name).copy_(getattr(module, name)[rows])
        if columns:
            other.weight_hh_l0.copy_(other.weight_hh_l0[:, order])
        reading.weight.copy_(readout.weight[:, order])
        reading.bias.copy_(readout.bias)
    return other, reading


def test_embeddings_of_state_dicts_need_no_zoo_and_no_training_and_no_order_of_units(tmp_path, capsys, caplog):
    torch.manual_seed(0)
    module, readout = nn.GRU(3, 20), nn.Linear(20, 2)
    order = torch.randperm(20)
    turned = permuted(module, readout, order)
    x = torch.randn(7, 4, 3)
    torch.testing.assert_close(readout(module(x)[0]), turned[1](turned[0](x)[0]))
    models = {"a": (module, readout), "b": turned, "c": permuted(module, readout, order, columns=False)}
    for name, (layer, head) in models.items():
        state_dicts.write(tmp_path / "models" / f"{name}.safetensors", layer, head)
    caplog.set_level(logging.INFO)
    command = ["embed", "--state_dicts", str(tmp_path / "models"), "--out", str(tmp_path / "e.safetensors")]
    assert main(command) == 0
    assert f"the encoder is '{pretrained.DEFAULT}', which comes with the package" in caplog.text
    with safetensors.safe_open(tmp_path / "e.safetensors", framework="pt") as file:
        a, b, c = file.get_tensor("embedding")
        said = json.loads(file.metadata()["weightspace"])
    assert (said["state_dicts"], said["learned_with"]) == (["a", "b", "c"], "no_labels")
    spread = a.std()
    assert (a - b).abs().max() < 1e-5 * spread
    # Rows that are permuted without their columns are another network.
    assert (a - c).abs().max() > 1e-3 * spread
    first = (tmp_path / "e.safetensors").read_bytes()
    assert main([*command, "--checkpoint", pretrained.DEFAULT]) == 0
    assert (tmp_path / "e.safetensors").read_bytes() == first


def test_networks_deeper_than_it_reads_are_refused_by_name(tmp_path, capsys):
    state_dicts.write(tmp_path / "models" / "deep.safetensors", nn.GRU(1, 2, num_layers=9), nn.Linear(2, 1))
    assert main(["embed", "--state_dicts", str(tmp_path / "models"), "--out", str(tmp_path / "e")]) == 2
    assert "GRU has 9 layers, but this MessagePassing reads 8 at most" in capsys.readouterr().err


@pytest.mark.parametrize("name", pretrained.packaged())
def test_each_is_small_loads_and_says_how_it_was_made(name):
    folder = pretrained.PACKAGED / name
    assert sum(path.stat().st_size for path in folder.iterdir()) < LIMIT
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", "config.json", "README.md", "MADE.md"}
    trained = Encoder.from_pretrained(name).provenance
    assert trained["zoo"] in (folder / "README.md").read_text()


def test_the_wheel_has_it_and_stays_small(tmp_path):
    wheel = pytest.importorskip("hatchling.builders.wheel", reason="only who builds wheels has hatchling")
    (built,) = wheel.WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(built) as archive:
        sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
    for name in pretrained.packaged():
        for file in ("model.safetensors", "config.json", "README.md"):
            path = f"weightspace/pretrained/{name}/{file}"
            assert sizes[path] == (ROOT / path).stat().st_size
    assert "weightspace/exchange/encoder_card.md.j2" in sizes
    assert sum(size for path, size in sizes.items() if path.startswith("weightspace/pretrained/")) < LIMIT
