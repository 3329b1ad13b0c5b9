"""Recipes by name, from a source tree and from an installed package alike, and the version of every command."""

import shutil

import pytest

import weightspace
from probes.cli import main as probes
from weightspace import recipes
from weightspace.cli import main
from zoo_builder.cli import main as zoo_builder

COMMANDS = {"weightspace": main, "zoo-builder": zoo_builder, "probes": probes}


def test_a_recipe_is_named_by_its_kind_and_stem():
    assert recipes.named("quickstart", "zoo") == recipes.recipe("zoo/quickstart.yaml")
    assert recipes.named("pretraining", "zoo") != recipes.named("pretraining", "encoder")
    assert {"zoo/pretraining", "encoder/pretraining", "quickstart", "supervised"} <= set(recipes.available())
    with pytest.raises(ValueError, match=r"No file or zoo recipe is called 'quickstrat'.*Did you mean 'quickstart'"):
        recipes.named("quickstrat", "zoo")


def test_paths_stay_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(recipes.named("supervised.yaml", "encoder")) == "supervised.yaml"
    assert str(recipes.named("mine/supervised", "encoder")) == "mine/supervised"
    (tmp_path / "supervised").write_text("")
    assert str(recipes.named("supervised", "encoder")) == "supervised"


def test_an_installed_package_has_its_recipes_inside(tmp_path, monkeypatch):
    shutil.copytree(recipes.FOLDERS[1], tmp_path / "configs")
    monkeypatch.setattr(recipes, "FOLDERS", (tmp_path / "configs", tmp_path / "nowhere"))
    assert recipes.named("quickstart", "zoo") == tmp_path / "configs" / "zoo" / "quickstart.yaml"


def test_options_of_a_command_line_name_recipes_of_encoders():
    path = str(recipes.recipe("encoder/supervised.yaml"))
    argv = ["fit", "--config", "supervised", "--config=supervised", "--data.zoo", "supervised"]
    assert recipes.with_paths(argv) == ["fit", "--config", path, f"--config={path}", "--data.zoo", "supervised"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_says_its_version(command, capsys):
    with pytest.raises(SystemExit) as end:
        COMMANDS[command](["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out.split() == [command, weightspace.__version__]


def test_a_zoo_is_built_from_a_name(tmp_path, capsys):
    assert zoo_builder(["build", "--config", "planted-spectrum", "--out", str(tmp_path / "zoo"), "--dry_run"]) == 0
    assert "models" in capsys.readouterr().out
