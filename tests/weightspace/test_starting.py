"""Training that starts from a trained encoder: its tensors and scales, what is recorded of it, and what is refused."""

import json

import pytest
import torch
import yaml

from tests.weightspace.test_cli import CONFIG, call
from tests.weightspace.zoos import write_zoo
from weightspace.store import open_zoo
from weightspace.training.embed import embed_stacks
from weightspace.training.restoring import load


@pytest.fixture(scope="module")
def zoos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("starting")
    return [write_zoo(folder / str(seed), models=10, held_out=True, seed=seed) for seed in (0, 1)]


@pytest.fixture(scope="module")
def start(zoos, tmp_path_factory):
    """A checkpoint trained with labels on the first zoo."""
    folder = tmp_path_factory.mktemp("start")
    (folder / "recipe.yaml").write_text(yaml.safe_dump({**CONFIG, "data": {"zoo": str(zoos[0]), "batch_size": 16}}))
    run = ("--trainer.default_root_dir", folder / "run")
    assert call("fit", "--config", folder / "recipe.yaml", *run) == 0
    return folder / "run/checkpoints/best.ckpt"


@pytest.fixture
def fit(zoos, tmp_path, monkeypatch):
    """A call of `fit` without labels on a zoo, in an empty folder, with a learning rate that moves nothing."""
    monkeypatch.chdir(tmp_path)
    model = {**CONFIG["model"], "objective": {"class_path": "Reconstruction"}}
    model |= {"learning_rate": 1e-30, "weight_decay": 0.0}

    def run(zoo, *options):
        recipe = {**CONFIG, "model": model, "data": {"zoo": str(zoo), "batch_size": 16}}
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        return call("fit", "--config", "recipe.yaml", "--trainer.default_root_dir", "run", *options)

    return run


def embedded(checkpoint, zoo):
    return embed_stacks(load(checkpoint).encoder.eval(), [open_zoo(zoo).stack([0, 1, 2])])


def test_a_training_starts_from_the_tensors_and_scales_of_a_trained_encoder(fit, zoos, start, tmp_path):
    assert fit(zoos[1], "--start_from", start) == 0
    best = tmp_path / "run/checkpoints/best.ckpt"
    torch.testing.assert_close(embedded(best, zoos[1]), embedded(start, zoos[1]))
    assert fit(zoos[1], "--trainer.default_root_dir", "new") == 0
    assert (embedded(tmp_path / "new/checkpoints/best.ckpt", zoos[1]) - embedded(start, zoos[1])).abs().max() > 1e-2


def test_labels_and_zoos_of_the_earlier_training_stay_on_record(fit, zoos, start, tmp_path):
    assert fit(zoos[1], "--start_from", start) == 0
    best = tmp_path / "run/checkpoints/best.ckpt"
    record = load(best).encoder.provenance
    assert (record["objective"], record["learned_with"]) == ("Reconstruction", "labels")
    assert record["zoo"] == open_zoo(zoos[1]).fingerprint
    assert record["started_from"]["zoo"] == open_zoo(zoos[0]).fingerprint
    assert record["started_from"]["objective"] == "Supervised"
    assert call("pretrained", "--checkpoint", best, "--out", "shared") == 0
    card = (tmp_path / "shared/README.md").read_text()
    assert "## Training before" in card
    assert card.count("fingerprint of the zoo") == 2
    config = json.loads((tmp_path / "shared/config.json").read_text())
    assert config["provenance"]["started_from"]["objective"] == "Supervised"
    assert fit(zoos[0], "--start_from", "shared", "--trainer.default_root_dir", "third") == 0
    third = load(tmp_path / "third/checkpoints/best.ckpt").encoder.provenance
    assert third["started_from"]["started_from"]["objective"] == "Supervised"


def test_a_resumed_run_has_started_already(fit, zoos, start, tmp_path):
    copy = tmp_path / "copy.ckpt"
    copy.write_bytes(start.read_bytes())
    assert fit(zoos[1], "--start_from", copy) == 0
    copy.unlink()
    last = "run/checkpoints/last.ckpt"
    assert fit(zoos[1], "--start_from", copy, "--ckpt_path", last, "--trainer.max_epochs", 2) == 0
    assert load(last).encoder.provenance["started_from"]["objective"] == "Supervised"
    torch.testing.assert_close(embedded(last, zoos[1]), embedded(start, zoos[1]))


def test_an_encoder_that_has_seen_held_out_rows_is_refused(fit, zoos, start, capsys):
    assert fit(zoos[0], "--start_from", start, "--data.split", "new_task") == 2
    assert "has seen rows that new_task holds out" in capsys.readouterr().err
    assert fit(zoos[0], "--start_from", start) == 0


def test_an_encoder_of_other_sizes_or_of_unknown_training_is_refused(fit, zoos, start, tmp_path, capsys):
    wider = ("--model.encoder.init_args.node_dim", 6)
    assert fit(zoos[1], "--start_from", start, *wider) == 2
    assert "'node_dim': 4" in (message := capsys.readouterr().err)
    assert "'node_dim': 6" in message
    load(start).encoder.__class__(**CONFIG["model"]["encoder"]["init_args"]).save_pretrained(tmp_path / "unknown")
    assert fit(zoos[1], "--start_from", "unknown") == 2
    assert "does not say how it was trained" in capsys.readouterr().err
    assert fit(zoos[1], "--start_from", "nowhere.ckpt") == 2
    assert "There is no checkpoint nowhere.ckpt" in capsys.readouterr().err
