"""Signs of lagged responses, learned from 500 models: exact sign symmetry beside message passing, at equal CPU time.

`pytest -m benchmark -n 0 -s tests/benchmarks/test_sign.py` builds both zoos and prints test R2, with CPU minutes from
SIGN_CPU_MINUTES (2 if unset) for each training and a number of seeds from SIGN_SEEDS (1 if unset).
"""

import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from weightspace.data.augment import GroupMoves
from weightspace.data.datamodule import ZooDataModule
from weightspace.encoders.message_passing import MessagePassing
from weightspace.encoders.sign_equivariant import SignEquivariant
from weightspace.objectives.supervised import Supervised
from weightspace.training.embed import embed_rows
from weightspace.training.module import EmbeddingModule, fit
from weightspace.training.restoring import load
from zoo_builder.build import build

pytestmark = pytest.mark.benchmark
RECIPES = Path(__file__).parents[2] / "configs/zoo"
MINUTES, SEEDS = float(os.environ.get("SIGN_CPU_MINUTES", "2")), int(os.environ.get("SIGN_SEEDS", "1"))
TARGETS = ["signed_response_lag_1", "log_response_energy_lag_3"]
ARMS = {
    "SignEquivariant": (SignEquivariant, []),
    "MessagePassing": (MessagePassing, []),
    "MessagePassing, augmented": (MessagePassing, [GroupMoves()]),
}


def scores(zoo, encoder, augment, seed, run):
    """Test R2 of the checkpoint that is best on validation, by its own head, for each target."""
    data = ZooDataModule(zoo, seed=seed, augment=augment)
    torch.manual_seed(seed)
    module = EmbeddingModule(encoder(), Supervised(TARGETS, residual_weight=0.0), weight_decay=0.05, seed=seed)
    best = load(fit(module, data, run, max_epochs=10_000, cpu_minutes=MINUTES)).eval()
    with torch.no_grad():
        predicted = best.objective.head(embed_rows(best.encoder, data))[:, : len(TARGETS)].double().numpy()
    labels = np.stack([data.zoo.table.column(name).to_numpy() for name in TARGETS], axis=1)
    train, test = data.rows("train"), data.rows("test")
    assert len(train) <= 500
    wanted = (labels - labels[train].mean(0)) / labels[train].std(0)
    return 1 - ((predicted - wanted)[test] ** 2).mean(0) / wanted[test].var(0)


@pytest.mark.parametrize("family", ["gru", "lstm"])
def test_exact_signs_beat_message_passing_without_augmentation(family, tmp_path):
    build(RECIPES / f"planted-sign-{family}.yaml", tmp_path / "zoo", workers=1)
    found = {}
    for name, (encoder, augment) in ARMS.items():
        one = partial(scores, tmp_path / "zoo", encoder, augment)
        runs = np.stack([one(seed, tmp_path / f"{name}-{seed}") for seed in range(SEEDS)])
        found[name] = runs.mean(0)
        print(f"{family} {name}: " + ", ".join(f"{t} {v:.3f}" for t, v in zip(TARGETS, found[name], strict=True)))
    assert found["SignEquivariant"][0] > found["MessagePassing"][0]
