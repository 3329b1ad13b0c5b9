"""Embeddings from one process and from two, by the command: the same file, every row once."""

import json
import subprocess
import sys

# Lightning's log handler keeps the stderr of its first import, which must outlive the capture of one test.
import lightning.pytorch  # noqa: F401
import pytest
import safetensors
import torch
import yaml

from tests.weightspace.zoos import write_zoo
from weightspace.cli import main
from weightspace.data.datamodule import ZooDataModule
from weightspace.encoders.message_passing import MessagePassing
from weightspace.objectives.supervised import Supervised
from weightspace.store import open_zoo
from weightspace.training.embed import embed
from weightspace.training.module import EmbeddingModule, fit

SIZES = {"embedding_dim": 5, "edge_dim": 4, "node_dim": 4, "product_dim": 2, "num_layers": 1}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Zoo, checkpoint, its embeddings by `embed`, and the arguments of `predict`."""
    folder = tmp_path_factory.mktemp("prediction")
    zoo = write_zoo(folder / "zoo", models=11, rollouts=False)
    module = EmbeddingModule(MessagePassing(**SIZES), Supervised(["score"]))
    best = fit(module, ZooDataModule(zoo, batch_size=16), folder / "run", max_epochs=1)
    alone = embed(best, zoo, folder / "alone.safetensors", batch_size=8)
    config = {
        "model": {
            "encoder": {"class_path": "MessagePassing", "init_args": SIZES},
            "objective": {"class_path": "Supervised", "init_args": {"targets": ["score"]}},
        },
        "data": {"zoo": str(zoo), "batch_size": 8},
        "trainer": {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu", "max_epochs": 2},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    options = ["--config", str(folder / "config.yaml"), "--trainer.logger", "false"]
    return zoo, best, alone, options


def test_one_process_writes_the_file_that_embed_writes(made, tmp_path):
    _, best, alone, options = made
    out = tmp_path / "new" / "e.safetensors"
    assert main(["predict", *options, "--ckpt_path", str(best), "--out", str(out)]) == 0
    assert out.read_bytes() == alone.read_bytes()


def test_rows_that_are_left_out_are_noticed_and_nothing_is_written(made, tmp_path, capsys):
    _, best, _, options = made
    predict = ["predict", *options, "--out", str(tmp_path / "e.safetensors")]
    assert main([*predict, "--ckpt_path", str(best), "--trainer.limit_predict_batches", "2"]) == 2
    assert "rows were not embedded exactly once" in capsys.readouterr().err
    assert main(predict) == 2
    assert "give its `--ckpt_path`" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def by_two(command, options, tmp_path):
    two = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    return subprocess.run(
        [sys.executable, "-m", "weightspace", command, *options, *two],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
def test_two_processes_write_the_file_of_one_to_the_last_bit(made, tmp_path):
    zoo, best, alone, options = made
    out = tmp_path / "e.safetensors"
    ended = by_two("predict", [*options, "--ckpt_path", str(best), "--out", str(out)], tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "GLOBAL_RANK: 1, MEMBER: 2/2" in ended.stderr + ended.stdout
    assert out.read_bytes() == alone.read_bytes()
    with safetensors.safe_open(out, framework="pt") as file:
        assert file.get_tensor("embedding").shape == (open_zoo(zoo).num_rows, 5)
        assert json.loads(file.metadata()["weightspace"])["zoo"] == open_zoo(zoo).fingerprint


@pytest.mark.slow
def test_two_processes_train_one_encoder_and_evaluate_it_as_one_would(made, tmp_path):
    _, _, _, options = made
    run = tmp_path / "run"
    fit_options = [*options[:2], "--trainer.default_root_dir", str(run)]
    ended = by_two("fit", fit_options, tmp_path)
    assert ended.returncode == 0, ended.stderr
    best = run / "checkpoints" / "best.ckpt"
    assert torch.load(best, weights_only=True)["weightspace"]["encoder"] == "MessagePassing"
    assert (run / "metrics.csv").is_file()
    printed = []
    for many in (False, True):
        validate = [*options, "--ckpt_path", str(best)]
        if many:
            ended = by_two("validate", validate, tmp_path)
        else:
            command = [sys.executable, "-m", "weightspace", "validate", *validate]
            ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert ended.returncode == 0, ended.stderr
        (line,) = [line for line in ended.stdout.splitlines() if "val/loss" in line]
        printed.append(float(line.split()[-2 if line.split()[-1] in "│|" else -1]))
    assert printed[1] == pytest.approx(printed[0], rel=1e-5)
