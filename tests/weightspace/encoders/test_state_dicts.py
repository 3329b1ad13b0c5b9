"""State dicts of encoders: names and shapes, on which checkpoints depend, and embeddings of the packaged encoder."""

import json
from pathlib import Path

import pytest
import torch

from weightspace import encoders
from weightspace.encoders import Encoder
from weightspace.families.cfc import CfC
from weightspace.families.elman import Elman
from weightspace.families.leaky import Leaky
from weightspace.families.lstm import LSTM
from weightspace.store import Stack

FAMILIES = [
    CfC(input_size=3, output_size=2, hidden_size=5, mode="default"),
    Elman(input_size=2, output_size=3, hidden_size=4, nonlinearity="relu"),
    Leaky(input_size=1, output_size=1, hidden_size=4, nonlinearity="tanh"),
    LSTM(input_size=3, output_size=2, hidden_size=5),
]
RECORDED = json.loads((Path(__file__).parent / "state_dicts.json").read_text())


def tensors_of(encoder):
    return {name: list(tensor.shape) for name, tensor in encoder.state_dict().items()}


@pytest.mark.parametrize("name", encoders.available())
def test_names_and_shapes_are_those_of_earlier_checkpoints(name):
    with torch.device("meta"):
        assert tensors_of(encoders.available()[name]()) == RECORDED["tensors"][name]


def waves(family):
    """A model whose weights are waves: numbers that no generator of random numbers decides."""
    params = {}
    for count, name in enumerate(family.spec.tensors):
        shape = family.spec.shape(name)
        size = torch.Size(shape).numel()
        params[name] = (0.5 + 0.4 * torch.sin(torch.arange(size) + count)).view(1, *shape)
    return Stack(family, params, torch.zeros(1, dtype=torch.int64))


def test_the_packaged_encoder_embeds_to_the_recorded_numbers():
    encoder = Encoder.from_pretrained("state-geometry-small")
    for family, expected in zip(FAMILIES, RECORDED["embeddings"], strict=True):
        with torch.no_grad():
            torch.testing.assert_close(encoder([waves(family)])[0, :8], torch.tensor(expected), atol=1e-4, rtol=1e-4)
