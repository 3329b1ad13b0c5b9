"""The largest real part of the eigenvalues of Gaussian matrices, learned from 2,000 models: how encoders differ.

`pytest -m benchmark -n 0 -s tests/benchmarks/test_spectrum.py` builds the zoo of planted-spectrum.yaml with another
seed, SPECTRUM_SEED (1 if unset), and prints test R2 and CPU seconds after SPECTRUM_EPOCHS (40 if unset).
"""

import os
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from weightspace.data.datamodule import ZooDataModule
from weightspace.encoders.equivariant_linear import EquivariantLinear
from weightspace.encoders.matrix_power import MatrixPower
from weightspace.encoders.message_passing import MessagePassing
from weightspace.objectives.supervised import Supervised
from weightspace.training.embed import embed_rows
from weightspace.training.module import EmbeddingModule, fit
from weightspace.training.restoring import load
from zoo_builder.build import build

pytestmark = pytest.mark.benchmark
RECIPE = Path(__file__).parents[2] / "configs/zoo/planted-spectrum.yaml"
SEED, EPOCHS = int(os.environ.get("SPECTRUM_SEED", "1")), int(os.environ.get("SPECTRUM_EPOCHS", "40"))
TARGET = "spectral_abscissa"
ARMS = {
    "MatrixPower": (MatrixPower, 0.97),
    "EquivariantLinear, products": (partial(EquivariantLinear, basis="products"), 0.9),
    "EquivariantLinear, complete": (partial(EquivariantLinear, basis="complete"), None),
    "EquivariantLinear, six maps": (partial(EquivariantLinear, basis="six"), None),
    "MessagePassing": (MessagePassing, 0.9),
}
CHOSEN = [name for name in os.environ.get("SPECTRUM_ARMS", ";".join(ARMS)).split(";") if name in ARMS]


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spectrum") / "zoo"
    build(RECIPE, folder, seed=SEED, workers=1)
    return folder


@pytest.mark.parametrize("name", CHOSEN)
def test_the_largest_real_part_is_learned_by_encoders_that_multiply_matrices(name, zoo, tmp_path):
    (encoder, least), data = ARMS[name], ZooDataModule(zoo, seed=0)
    torch.manual_seed(0)
    module, start = EmbeddingModule(encoder(), Supervised([TARGET]), seed=0), time.process_time()
    best = load(fit(module, data, tmp_path / "run", max_epochs=EPOCHS)).eval()
    seconds = time.process_time() - start
    with torch.no_grad():
        predicted = best.objective.predict(embed_rows(best.encoder, data))[:, 0].double().numpy()
    labels, test = data.zoo.table.column(TARGET).to_numpy(), data.rows("test")
    r2 = 1 - np.mean((predicted - labels)[test] ** 2) / labels[test].var()
    print(f"\n{name}: test R2 {r2:.4f} after {EPOCHS} epochs, {seconds:.0f} CPU seconds")
    assert least is None or r2 > least
