"""The JSON Schema of recipes takes every recipe that comes with the package, and refuses what a build refuses."""

import copy
import json

import pytest
import yaml

from tests.members import EXAMPLES
from weightspace import recipes
from zoo_builder import learning, tasks
from zoo_builder.cli import main
from zoo_builder.planning.plan import make_plan
from zoo_builder.planning.recipe import read_recipe
from zoo_builder.schema import recipe_schema

jsonschema = pytest.importorskip("jsonschema")


@pytest.fixture(scope="module")
def validator():
    schema = recipe_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


ZOOS = {name: path for name, path in recipes.available().items() if "families" in yaml.safe_load(path.read_text())}


@pytest.mark.parametrize("name", ZOOS)
def test_every_recipe_of_the_package_is_valid(validator, name):
    validator.validate(yaml.safe_load(ZOOS[name].read_text()))


def quickstart():
    return yaml.safe_load(ZOOS["quickstart-tiny"].read_text())


BROKEN = {
    "unknown key": lambda r: r.update(modles=3),
    "missing key": lambda r: r.pop("snapshots"),
    "unknown option": lambda r: r["families"][0].update(hiden_size=3),
    "option missing": lambda r: r["families"][0].pop("hidden_size"),
    "text for a number": lambda r: r["learning"].update(learning_rate="0,01"),
    "unknown spread": lambda r: r["learning"].update(learning_rate={"unform": [0, 1]}),
    "below the least": lambda r: r["families"][0].update(hidden_size=0),
    "unknown choice": lambda r: r["learning"].update(schedule={"shape": "sawtooth"}),
    "unknown label": lambda r: r["labels"].append("Rnak"),
    "negative step": lambda r: r["snapshots"].append(-1),
    "share above 1": lambda r: r["splits"].update(test=1.5),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_what_a_plan_refuses_the_schema_refuses(validator, fault):
    recipe = copy.deepcopy(quickstart())
    BROKEN[fault](recipe)
    with pytest.raises(ValueError):  # noqa: PT011 - each fault has its words in tests of its part
        make_plan(read_recipe(recipe))
    assert list(validator.iter_errors(recipe))


def test_every_example_of_a_family_and_every_default_is_valid(validator):
    for example in EXAMPLES:
        entry = {"class": type(example).__name__, **json.loads(json.dumps(example.config))}
        validator.validate({**quickstart(), "families": [entry]})
    known = {name for name, kind in {**tasks.available(), **learning.available()}.items()}
    assert {"Copy", "BPTT"} <= known


def test_the_command_prints_it(capsys):
    assert main(["list", "recipes", "--schema"]) == 0
    assert json.loads(capsys.readouterr().out) == recipe_schema()
    assert main(["list", "tasks", "--schema"]) == 2
