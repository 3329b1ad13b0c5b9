"""The command line: runs, resumed runs, checkpoints that win over options, errors that name the way out."""

import json

# Lightning's log handler keeps the stderr of its first import, which must outlive the capture of one test.
import lightning.pytorch  # noqa: F401
import pytest
import torch
import yaml
from jsonargparse import ArgumentParser

from tests.weightspace.zoos import write_zoo
from weightspace.cli import main
from weightspace.store import open_zoo

CONFIG = {
    "model": {
        "encoder": {
            "class_path": "MessagePassing",
            "init_args": {"embedding_dim": 4, "edge_dim": 4, "node_dim": 4, "product_dim": 2, "num_layers": 1},
        },
        "objective": {"class_path": "Supervised", "init_args": {"targets": ["score", {"name": "trace", "low": -2.0}]}},
        "learning_rate": 0.001,
    },
    "trainer": {"max_epochs": 1, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"},
}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    return write_zoo(tmp_path_factory.mktemp("cli") / "zoo", models=10, held_out=True)


@pytest.fixture
def config(zoo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**CONFIG, "data": {"zoo": str(zoo), "batch_size": 16}}))
    return str(path)


def call(*arguments):
    """Exit status of a call, whether it returns it or exits with it."""
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as end:
        return end.code


def test_a_run_leaves_config_metrics_and_checkpoints_and_can_be_evaluated_and_embedded(config, zoo, tmp_path, capsys):
    assert call("fit", "--config", config) == 0
    answer = capsys.readouterr().out.splitlines()[-1]
    run = tmp_path / "runs" / "version_0"
    assert answer.startswith("Trained to epoch 1, update ")
    assert answer.endswith(" in runs/version_0/checkpoints/best.ckpt")
    assert "; lowest val/loss " in answer
    assert {path.name for path in run.iterdir()} == {"config.yaml", "metrics.csv", "hparams.yaml", "checkpoints"}
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    resolved = yaml.safe_load((run / "config.yaml").read_text())
    assert resolved["model"]["objective"]["init_args"]["targets"][1]["low"] == -2.0
    best = run / "checkpoints" / "best.ckpt"
    for command in ("validate", "test", "predict"):
        assert call(command, "--config", config, "--ckpt_path", best) == 0
    capsys.readouterr()
    assert call("embed", "--checkpoint", best, "--zoo", zoo, "--out", "e.safetensors") == 0
    assert capsys.readouterr().out == "e.safetensors\n"
    assert (tmp_path / "e.safetensors").exists()


def test_an_encoder_is_fitted_for_a_fold_and_judged_by_no_other_split(config, zoo, tmp_path, capsys):
    split = ("--data.split", "new_family", "--data.fold", 1)
    assert call("fit", "--config", config, *split, "--trainer.default_root_dir", "mine") == 0
    best = tmp_path / "mine" / "checkpoints" / "best.ckpt"
    assert yaml.safe_load((tmp_path / "mine" / "config.yaml").read_text())["data"]["fold"] == 1
    said = torch.load(best, weights_only=True)["weightspace"]
    assert (said["split"], said["fold"]) == ("new_family", 1)
    assert call("test", "--config", config, *split, "--ckpt_path", best) == 0
    assert call("test", "--config", config, "--ckpt_path", best) == 2
    error = capsys.readouterr().err
    assert "give `--data.split new_family --data.fold 1`" in error
    assert "Traceback" not in error


def test_the_saved_config_alone_repeats_the_run_bit_for_bit(config, tmp_path):
    assert call("fit", "--config", config) == 0
    assert call("fit", "--config", "runs/version_0/config.yaml") == 0
    states = [torch.load(f"runs/version_{n}/checkpoints/last.ckpt", weights_only=True)["state_dict"] for n in (0, 1)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


class Own:
    """What a program that calls a command lets its own configs name."""


def test_a_command_leaves_what_its_caller_may_import_as_it_was(tmp_path):
    assert call("check", "families", "--name", "Elman") == 0
    assert call("fit", "--config", tmp_path / "nowhere.yaml") == 2
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--own", type=Own)
    made = parser.instantiate_classes(parser.parse_args([f"--own={__name__}.Own"]))
    assert isinstance(made.own, Own)


def test_a_run_in_a_named_folder_goes_on_there_and_is_not_written_over(config, tmp_path, capsys):
    fit = ("fit", "--config", config, "--trainer.default_root_dir", "mine")
    assert call(*fit) == 0
    first = (tmp_path / "mine" / "metrics.csv").read_bytes()
    assert call(*fit) == 2
    assert "mine already holds a run; go on with `--ckpt_path mine/checkpoints/last.ckpt`" in capsys.readouterr().err
    assert (tmp_path / "mine" / "metrics.csv").read_bytes() == first
    assert call(*fit, "--trainer.max_epochs", 2, "--ckpt_path", "mine/checkpoints/last.ckpt") == 0
    assert (tmp_path / "mine" / "metrics-1.csv").read_bytes() == first
    assert torch.load("mine/checkpoints/last.ckpt", weights_only=True)["epoch"] == 1


def test_a_run_that_goes_on_stays_in_its_folder(config, tmp_path):
    assert call("fit", "--config", config) == 0
    last = "runs/version_0/checkpoints/last.ckpt"
    assert call("fit", "--config", config, "--ckpt_path", last, "--trainer.max_epochs", 2) == 0
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["version_0"]
    assert torch.load(last, weights_only=True)["epoch"] == 1


def test_evaluating_without_a_logger_leaves_no_config_behind_and_can_be_repeated(config, tmp_path):
    assert call("fit", "--config", config) == 0
    for _ in range(2):
        assert call("predict", "--config", config, "--trainer.logger", "false") == 0
    assert not (tmp_path / "config.yaml").exists()


def test_an_option_that_the_checkpoint_would_overrule_is_refused(config, capsys):
    assert call("fit", "--config", config) == 0
    fit = ("fit", "--config", config, "--ckpt_path", "runs/version_0/checkpoints/last.ckpt")
    assert call(*fit, "--model.learning_rate", "0.5") == 2
    assert "`--model.learning_rate 0.5` has no effect with this checkpoint" in capsys.readouterr().err
    assert call(*fit, "--model.encoder.init_args.node_dim", "9") == 2
    assert "trained with 4" in capsys.readouterr().err
    assert call(*fit, "--model.objective", "Emulation") == 2
    assert "Supervised" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["--model.encoder", "MessagePasing"], "Did you mean 'MessagePassing'?"),
        (["--model.objective", "Supervized"], "Did you mean 'Supervised'?"),
        (["--model.encoder.embeding_dim", "3"], "Did you mean 'embedding_dim'?"),
        (["--model.learnin_rate", "3"], "Did you mean 'learning_rate'?"),
        (["--data.augment", "[{class_path: GroupMove}]"], "Did you mean 'GroupMoves'?"),
        (["--data.batch_size", "many"], "many"),
        (["--data.zoo", "nowhere"], "nowhere is not a folder"),
        (["--data.split", "new_tsk"], "new_task"),
        (["--data.split", "new_family"], "has the folds [0, 1], and none was chosen"),
        (["--model.objective.targets", "[sore]"], "Did you mean 'score'?"),
    ],
)
def test_mistakes_are_one_short_message_with_the_way_out(config, capsys, arguments, hint):
    assert call("fit", "--config", config, *arguments) == 2
    error = capsys.readouterr().err
    assert hint in error
    assert "Traceback" not in error
    assert "usage" not in error


@pytest.mark.parametrize(
    "arguments", [["fitt"], [], ["embed", "--checkpoint", "x"], ["check", "family"], ["fit", "--config", "none.yaml"]]
)
def test_bad_usage_exits_with_status_2(arguments, capsys):
    assert call(*arguments) == 2
    assert "error" in capsys.readouterr().err


def test_a_class_outside_the_package_is_refused_and_its_module_never_imported(config, tmp_path, monkeypatch, capsys):
    (tmp_path / "foreign.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')\nclass Thing: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    for option in ("--model.encoder", "--model.objective", "--trainer.callbacks", "--trainer.logger"):
        assert call("fit", "--config", config, option, "foreign.Thing") == 2
        assert "not allowed" in capsys.readouterr().err
    assert not (tmp_path / "imported").exists()


def test_a_checkpoint_that_names_a_class_outside_is_refused_and_its_module_never_imported(
    config, tmp_path, monkeypatch, capsys
):
    assert call("fit", "--config", config) == 0
    (tmp_path / "foreign.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')\nclass Thing: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    content = torch.load("runs/version_0/checkpoints/last.ckpt", weights_only=True)
    content["hyper_parameters"]["encoder"] = {"class_path": "foreign.Thing", "init_args": {}}
    torch.save(content, "evil.ckpt")
    assert call("predict", "--config", config, "--ckpt_path", "evil.ckpt") == 2
    assert "'foreign.Thing', which is not part of this package" in capsys.readouterr().err
    assert not (tmp_path / "imported").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ckpt_path", "recipe.yaml"], "no checkpoint of plain data"),
        (["--ckpt_path", "best"], "There is no checkpoint best"),
        (["--trainer.accelerator", "cuda"], "CUDAAccelerator"),
    ],
)
def test_what_lightning_would_answer_with_a_traceback_is_one_line(config, capsys, arguments, message):
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("CUDA is there, so asking for it is no mistake")
    assert call("fit", "--config", config, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_checks_print_rows_and_fail_with_status_1(capsys, monkeypatch):
    assert call("check", "families", "--name", "Elman", "--json") == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert rows
    assert all(row["passed"] for row in rows)
    bad = [{"name": "X", "move": "m", "declared": True, "dtype": "float64", "error": 1.0, "passed": False}]
    monkeypatch.setattr("weightspace.checks.check_families", lambda name=None: bad)
    assert call("check", "families") == 1
    assert "FAILED" in capsys.readouterr().out


def test_an_interrupt_exits_with_status_130(monkeypatch, capsys):
    def interrupted(name=None):
        raise KeyboardInterrupt

    monkeypatch.setattr("weightspace.checks.check_families", interrupted)
    assert call("check", "families") == 130


def test_a_zoo_damaged_on_disk_is_named(config, zoo, tmp_path, capsys):
    import shutil

    damaged = tmp_path / "damaged"
    shutil.copytree(zoo, damaged)
    (damaged / "shards" / "00001" / "params.safetensors").write_bytes(b"short")
    assert call("fit", "--config", config, "--data.zoo", damaged) == 2
    error = capsys.readouterr().err
    assert "00001" in error
    assert "zoo-builder verify" in error
    assert open_zoo(zoo).num_rows == 60
