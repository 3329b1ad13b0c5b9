"""Output of `zoo-builder list` for every kind, and for one member in detail."""

import dataclasses
import importlib
import json
from pathlib import Path

import pytest
import yaml

from weightspace import families
from weightspace.recipes import available as recipes
from zoo_builder import labels, learning, tasks
from zoo_builder.catalogue import KINDS, listing, listing_text
from zoo_builder.cli import main
from zoo_builder.fields import docstrings, fields_of, type_text
from zoo_builder.learning.exams import Exams


@pytest.mark.parametrize("kind", KINDS)
def test_everything_listed_has_a_definition_of_one_line(kind):
    rows = listing(kind)
    assert [row["name"] for row in rows] == sorted(importlib.import_module(KINDS[kind]).available())
    for row in rows:
        assert len(row["definition"]) > 20
        assert "\n" not in row["definition"]
        assert row["citation"] or kind not in ("families", "tasks", "studies")


@pytest.mark.parametrize("kind", KINDS)
def test_every_member_is_shown_in_detail_as_json_and_as_text(kind, capsys):
    for name in importlib.import_module(KINDS[kind]).available():
        (row,) = listing(kind, name)
        assert json.loads(json.dumps(row, allow_nan=False)) == row
        assert listing_text([row]).startswith(f"{name}: {row['definition']}")
        assert ("text" if kind == "recipes" else "fields") in row
    assert main(["list", kind, name, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [row]


@pytest.mark.parametrize("kind", ["tasks", "learners", "labels", "studies"])
def test_every_field_of_what_zoos_are_made_with_says_what_it_means(kind):
    for name in importlib.import_module(KINDS[kind]).available():
        for field in listing(kind, name)[0]["fields"]:
            assert field["meaning"] is not None, (name, field["name"])
            assert field["meaning"].endswith("."), (name, field["name"])


def test_fields_are_those_of_the_constructor_with_groups_under_dotted_names():
    fields = {field["name"]: field for field in listing("learners", "BPTT")[0]["fields"]}
    declared = dataclasses.fields(learning.load("BPTT", {}))
    assert [name for name in fields if "." not in name] == [field.name for field in declared]
    assert {name.partition(".")[2] for name in fields if name.startswith("exams.")} == set(dataclasses.asdict(Exams()))
    assert fields["learning_rate"] == {
        "name": "learning_rate",
        "type": "float",
        "required": False,
        "default": 3e-3,
        "choices": None,
        "least": None,
        "varies": True,
        "meaning": "Step size of AdamW, above 0.",
    }
    assert fields["exams.threshold"]["varies"]
    assert not fields["exams.every"]["varies"]
    assert (fields["exams"]["type"], fields["exams"]["default"]) == ("Exams or null", None)
    assert fields["schedule.shape"]["choices"] == ["constant", "linear", "cosine", "exponential", "step"]


@pytest.mark.parametrize("kind", ["families", "tasks", "learners"])
def test_the_least_value_that_is_shown_is_the_least_that_is_taken(kind):
    judged = 0
    for name, member in importlib.import_module(KINDS[kind]).available().items():
        example = member.examples()[0] if hasattr(member, "examples") else member()
        for field in listing(kind, name)[0]["fields"]:
            if field["least"] is None or "." in field["name"]:
                continue
            judged += 1
            with pytest.raises(ValueError, match=rf"`{field['name']}` \(={field['least'] - 1}\)"):
                dataclasses.replace(example, **{field["name"]: field["least"] - 1})
            takes_least = kind != "tasks" or member.difficulty is None or member.difficulty[0] == field["name"]
            if takes_least:
                fields = {field["name"]: field["least"]}
                if kind == "families":
                    others = member.least(example.config | fields)
                    fields |= {other: max(getattr(example, other), least.number) for other, least in others.items()}
                dataclasses.replace(example, **fields)
    assert judged > 0


def test_a_label_names_its_columns_with_unit_and_meaning_and_the_families_that_have_them():
    columns = {column["name"]: column for column in listing("labels", "Rank")[0]["columns"]}
    every = sorted(families.available())
    assert sorted(columns["state_effective_rank"]["families"]) == every
    assert set(columns["weight_hh_0_i_stable_rank"]["families"]) == {"LSTM", "LowRankSparse"}
    example = families.available()["GRU"].examples()[0].effective_spec
    for column in labels.load("Rank", {}).columns(example):
        assert columns[column.name]["unit"] == column.unit
        assert columns[column.name]["meaning"] == column.definition
        assert "GRU" in columns[column.name]["families"]


def test_a_recipe_is_shown_as_its_file_says_it():
    (row,) = listing("recipes", "quickstart-tiny")
    assert yaml.safe_load(row["text"])["models_per_cohort"] == 40
    assert Path(row["path"]) == recipes()["quickstart-tiny"]
    assert "shard_size: 40" in listing_text([row])


def test_a_name_that_is_not_there_is_refused_with_the_near_match(capsys):
    assert main(["list", "tasks", "Coppy"]) == 2
    assert "Did you mean 'Copy'?" in capsys.readouterr().err


def test_docstrings_of_attributes_come_from_the_class_that_declares_them_last():
    assert docstrings(tasks.available()["NParity"])["window"] == 'Number of heads with `heads` "sliding".'
    assert "n" not in docstrings(Redeclared)
    assert docstrings(Redeclared)["window"] == "Another text, in two lines."


@dataclasses.dataclass(frozen=True, kw_only=True)
class Redeclared(tasks.available()["NParity"]):
    window: int = 2
    """Another text,
    in two lines."""
    n: int = 4


def test_types_are_in_the_words_of_a_recipe():
    assert type_text(int | None) == "int or null"
    assert type_text(tuple[int, ...]) == "list of int"
    assert type_text(dict[str, float]) == "mapping of text, float"
    assert type_text(bool) == "true or false"


def test_defaults_made_by_a_factory_are_shown():
    @dataclasses.dataclass
    class Listed:
        sizes: list[int] = dataclasses.field(default_factory=lambda: [1, 2])

    globals()["Listed"] = Listed
    (field,) = fields_of(Listed)
    assert (field["default"], field["type"]) == ([1, 2], "list of int")
