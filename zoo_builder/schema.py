"""JSON Schema of recipes, generated from the classes that a recipe names: for editors that complete and check YAML."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from zoo_builder.catalogue import listing
from zoo_builder.planning.recipe import DEFAULTS, DEVICES, OPTIONAL, OUT_OF_DISTRIBUTION, REQUIRED, SPLITS
from zoo_builder.planning.spread import KINDS

DIALECT = "https://json-schema.org/draft/2020-12/schema"
TYPES = {"int": "integer", "float": "number", "text": "string", "true or false": "boolean", "null": "null"}
BY_TASK = ("input_size", "output_size", "start_size")
"""Fields of a family that its task decides."""
Schema = dict[str, Any]


def recipe_schema() -> Schema:
    """JSON Schema (draft 2020-12) of every recipe that the classes which are known here admit.

    What depends on several fields at once, such as a rank above its bound, is left to `zoo-builder build --dry_run`.
    """
    whole = {"type": "integer", "minimum": 1}
    learner = _one_of(_entry(row["name"], "learners", crossed=False) for row in listing("learners"))
    properties: dict[str, Schema] = {
        "title": {"type": "string"},
        "seed": {"type": "integer"},
        "families": {"type": "array", "minItems": 1, "items": _entries("families")},
        "tasks": {"type": "array", "items": _entries("tasks")},
        "learning": {"anyOf": [learner, {"type": "array", "minItems": 1, "items": learner}]},
        "snapshots": {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}},
        "models_per_cohort": whole,
        "tasks_per_family": whole,
        "shard_size": {"anyOf": [whole, _mapping(dict.fromkeys(DEVICES, whole))]},
        "labels": {"type": "array", "items": {"enum": [row["name"] for row in listing("labels")]}},
        "rollouts": {"anyOf": [{"type": "null"}, _mapping({"sequences": whole})]},
        "splits": _splits(),
    }
    # No recipe that a person writes has `models`.
    assert set(properties) == {*REQUIRED, *DEFAULTS, *OPTIONAL} - {"models"}
    return {"$schema": DIALECT, "title": "Recipe of a zoo", **_mapping(properties, REQUIRED)}


def _splits() -> Schema:
    """Shares or numbers of models, and what is held out."""
    share = {"anyOf": [{"type": "number", "minimum": 0, "exclusiveMaximum": 1}, {"type": "integer", "minimum": 1}]}
    part: Schema = {"type": "number", "minimum": 0, "maximum": 1}
    held: dict[str, Schema] = {"task_share": part, "largest_size": {"type": "boolean"}}
    assert set(held) == set(OUT_OF_DISTRIBUTION)
    out = {"anyOf": [{"type": "null"}, _mapping(held)]}
    return _mapping({name: out if name == "out_of_distribution" else share for name in SPLITS})


def _entries(kind: str) -> Schema:
    return _one_of(_entry(row["name"], kind, crossed=True) for row in listing(kind))


def _one_of(entries: Iterable[Schema]) -> Schema:
    """The entry of the class that is named; entries of plug-ins' classes are left to the build."""
    known = list(entries)
    classes = [entry["properties"]["class"] for entry in known]
    names = [kind["const"] for kind in classes]
    # Not oneOf: a fault is then told of the class that is meant, and not of all.
    rules = [
        {"if": {"properties": {"class": kind}}, "then": entry} for kind, entry in zip(classes, known, strict=True)
    ]
    named = {"properties": {"class": {"type": "string", "examples": names}}}
    return {"type": "object", "required": ["class"], **named, "allOf": rules}


def _entry(name: str, kind: str, crossed: bool) -> Schema:
    """Schema of one class's entry; where lists are crossed, a field may be a list of values."""
    (row,) = listing(kind, name)
    groups: dict[str, dict[str, Schema]] = {}
    properties: dict[str, Schema] = {"class": {"const": name}}
    for field in row["fields"]:
        group, _, option = field["name"].rpartition(".")
        value = _value(field)
        if group:
            groups.setdefault(group, {})[option] = value
        else:
            several = {"type": "array", "minItems": 1, "items": value}
            properties[option] = {"anyOf": [value, several]} if crossed else value
    for group, options in groups.items():
        properties[group] = {"anyOf": [{"type": "null"}, _mapping(options)]}
    needed = [field["name"] for field in row["fields"] if field["required"] and field["name"] not in BY_TASK]
    return {"description": row["definition"], **_mapping(properties, ["class", *needed])}


def _value(field: Mapping[str, Any]) -> Schema:
    """Schema of one field: its choices or type, its least value, and a spread where models may differ in it."""
    kinds = [field["type"]] if field["type"] in TYPES else field["type"].split(" or ")
    schema: Schema = {}
    if field["choices"] is not None:
        schema = {"enum": list(field["choices"])}
    elif all(kind in TYPES for kind in kinds):
        schema = {"type": [TYPES[kind] for kind in kinds]}
    if field["least"] is not None:
        schema["minimum"] = field["least"]
    if field["varies"]:
        schema = {"anyOf": [schema, spread_schema()]}
    if field["meaning"]:
        schema["description"] = field["meaning"]
    if not field["required"]:
        schema["default"] = field["default"]
    return schema


def spread_schema() -> Schema:
    """A distribution over models: one of the spreads, with its numbers."""
    numbers = {"type": "array", "minItems": 1, "items": {"type": "number"}}
    pair = {**numbers, "minItems": 2, "maxItems": 2}
    kinds = {kind: numbers if kind == "choice" else pair for kind in KINDS if kind != "fixed"}
    return {**_mapping(kinds), "minProperties": 1, "maxProperties": 1}


def _mapping(properties: Mapping[str, Schema], required: Sequence[str] = ()) -> Schema:
    """An object with these keys and no others."""
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(required),
        "additionalProperties": False,
    }
