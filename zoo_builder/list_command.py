"""The command `zoo-builder list`: options, and what it prints."""

from __future__ import annotations

from typing import Any

from zoo_builder.catalogue import KINDS, listing, listing_text

DESCRIPTION = (
    "Lists what recipes, configs and commands can name, with a definition and a citation each. With NAME: its fields "
    "with type, default and range, a label's columns with unit and meaning, or a recipe's text."
)
EPILOG = "Example: zoo-builder list tasks Copy"


def add_options(parser: Any) -> None:
    """Add the options of the command to its parser."""
    parser.add_argument("kind", choices=list(KINDS), help="what to list")
    parser.add_argument("name", nargs="?", type=str, help="one of them, in detail")
    parser.add_argument("--schema", action="store_true", help="of recipes: their JSON Schema, for editors of YAML")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def listed(options: Any) -> tuple[Any, str]:
    """Members of a kind as plain data and as text; with `--schema`, the JSON Schema of recipes and no text."""
    if not options.schema:
        rows = listing(options.kind, options.name)
        return rows, listing_text(rows)
    if options.kind != "recipes" or options.name is not None:
        raise ValueError("`--schema` is of recipes as a whole: zoo-builder list recipes --schema.")
    # Spreads need torch, which takes seconds.
    from zoo_builder.schema import recipe_schema

    return recipe_schema(), ""
