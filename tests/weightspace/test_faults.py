"""Faults of commands: one clear line, the traceback where it is asked for, and the short help."""

import subprocess
import sys

import pytest

import probes.cli
import zoo_builder.cli
from tests.weightspace.test_cli import call
from tests.weightspace.zoos import write_zoo
from weightspace import cli, training_help
from weightspace.components import faults, plugins

OWN = """
import torch
from weightspace.encoders.base import Encoder

class Faulty(Encoder):
    def __init__(self) -> None:
        super().__init__(embedding_dim=1)
        self.bias = torch.nn.Parameter(torch.zeros(1))
    def fit_standardisation(self, stacks):
        pass
    def forward(self, stacks):
        return {}["weight"]
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_faults.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(plugins, "_allowed", {})
    monkeypatch.delitem(sys.modules, "own_faults", raising=False)
    monkeypatch.chdir(tmp_path)
    return write_zoo(tmp_path / "zoo", models=5)


def fit(zoo, *options):
    model = ["--model.encoder", "own_faults.Faulty", "--model.objective", "Supervised"]
    model += ["--model.objective.targets", "[trace]", "--trainer.accelerator", "cpu", "--trainer.max_epochs", "1"]
    return call("fit", "--data.zoo", zoo, "--allow_import", "own_faults", *model, *options)


def test_a_fault_of_a_package_of_ones_own_is_one_line_with_its_place(own, capsys):
    assert fit(own) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "KeyError" in line]
    assert line.startswith("error: KeyError in ")
    assert "own_faults.py, line 12: 'weight'" in line
    assert line.endswith("`--debug` shows the traceback.")


def test_its_traceback_is_shown_where_debug_asks_for_it(own, capsys):
    assert fit(own, "--debug") == 2
    error = capsys.readouterr().err
    assert 'own_faults.py", line 12, in forward' in error
    assert error.splitlines()[-1].startswith("error: KeyError in ")


@pytest.mark.parametrize(
    ("main", "arguments"),
    [
        (cli.main, ["embed", "--out", "e"]),
        (zoo_builder.cli.main, ["info", "nowhere"]),
        (probes.cli.main, ["run", "--zoo", "nowhere", "--out", "p"]),
    ],
    ids=["weightspace", "zoo-builder", "probes"],
)
def test_every_command_says_one_line_and_with_debug_the_traceback_first(main, arguments, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    short = capsys.readouterr().err
    assert len(short.strip().splitlines()) == 1
    assert main([*arguments, "--debug"]) == 2
    long = capsys.readouterr().err
    assert long.startswith("Traceback")
    assert long.endswith(short)


def test_a_fault_of_our_own_is_not_hidden(monkeypatch):
    with pytest.raises(KeyError):
        faults.line_of(KeyError("ours"), debug=False)
    assert faults.line_of(KeyError("ours"), debug=True) == "KeyError: 'ours'."


def test_a_missing_label_names_the_command_that_adds_it(own, capsys):
    options = ["--model.encoder", "Statistics", "--model.objective", "Supervised", "--trainer.accelerator", "cpu"]
    assert call("fit", "--data.zoo", own, *options, "--model.objective.targets", "[memory_half_life]") == 2
    error = capsys.readouterr().err
    assert f"`zoo-builder label {own} --labels memory_half_life`" in error
    assert probes.cli.main(["run", "--zoo", str(own), "--out", "p", "--targets", "memory_half_life"]) == 2
    assert f"`zoo-builder label {own} --labels memory_half_life`" in capsys.readouterr().err


def test_the_help_of_training_is_short_and_loads_nothing_heavy():
    code = "import sys; from weightspace.cli import main\nassert main(['fit', '--help']) == 0\n"
    code += "assert not {'torch', 'lightning'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) < 40
    assert training_help.FULL in done.stdout
    assert "recipes: " in done.stdout
    assert "supervised" in done.stdout


@pytest.mark.slow
def test_every_option_of_the_short_help_is_in_the_full_one(capsys):
    assert call("fit", training_help.FULL) == 0
    full = capsys.readouterr().out
    for option in (option.split()[0] for option in training_help.OPTIONS if option != training_help.FULL):
        assert option in full, option
