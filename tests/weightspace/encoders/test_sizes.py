"""Recipes of encoders at three sizes: each has about the parameters that its name says, and goes with any objective."""

import pytest
import yaml

from weightspace import encoders, recipes
from weightspace.cli import main

SIZES = {"50k": 50_000, "200k": 200_000, "1m": 1_000_000}
FILES = {path.stem: path for path in recipes.available().values() if path.parent.name == "sizes"}


@pytest.mark.parametrize("name", FILES)
def test_a_recipe_has_about_the_parameters_that_its_name_says(name):
    said = yaml.safe_load(FILES[name].read_text())["model"]["encoder"]
    encoder = encoders.available()[said["class_path"]](**said["init_args"])
    count = sum(parameter.numel() for parameter in encoder.parameters())
    assert count == pytest.approx(SIZES[name.rpartition("-")[2]], rel=0.14)


def test_every_encoder_has_a_recipe_of_every_size():
    named = {name: yaml.safe_load(path.read_text())["model"]["encoder"]["class_path"] for name, path in FILES.items()}
    sizes = {(kind, name.rpartition("-")[2]) for name, kind in named.items()}
    assert sizes == {(name, size) for name in encoders.available() for size in SIZES}


@pytest.mark.parametrize("objective", ["supervised", "state_geometry", "contrastive"])
def test_a_size_goes_with_the_recipe_of_any_objective(objective, capsys):
    paths = [str(recipes.recipe(f"encoder/{objective}.yaml")), str(FILES["statistics-50k"])]
    with pytest.raises(SystemExit) as done:
        main(["fit", *(option for path in paths for option in ("--config", path)), "--print_config"])
    assert done.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)["model"]
    assert printed["encoder"]["init_args"]["width"] == 40
    assert printed["objective"]["class_path"].lower().endswith(objective.replace("_", ""))
