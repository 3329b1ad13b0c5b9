"""Pages that are generated from the code when the site is built: the catalogue, the recipes and the files."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from zoo_builder.catalogue import KINDS, listing

ROOT = Path(__file__).parent.parent
PACKAGES = ("weightspace", "zoo_builder", "probes")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages to those of the folder."""
    for name, page in (("catalogue.md", catalogue()), ("recipes.md", recipes()), ("files.md", file_tree())):
        files.append(File.generated(config, name, content=page))
    return files


def catalogue() -> str:
    """Page of every family, task, label, learner, encoder and objective, with its fields and columns."""
    lines = ["# Catalogue", "", "What recipes and commands can name; `zoo-builder list KIND NAME` prints the same."]
    for kind in KINDS:
        if kind in ("recipes", "studies"):
            continue
        lines += ["", f"## {kind.capitalize()}"]
        for row in listing(kind):
            lines += ["", *_member(listing(kind, row["name"])[0])]
    return "\n".join(lines) + "\n"


def recipes() -> str:
    """Page of every recipe, whole."""
    lines = ["# Recipes", "", "`--config NAME` takes any of these, or the path of a file of your own."]
    for row in listing("recipes"):
        text = listing("recipes", row["name"])[0]["text"]
        lines += ["", f"## {row['name']}", "", "```yaml", text.rstrip(), "```"]
    return "\n".join(lines) + "\n"


def file_tree() -> str:
    """Page of every module with the first line of its docstring."""
    lines = ["# The files", "", "Every module, by the first line of its docstring."]
    for package in PACKAGES:
        lines += ["", f"## {package}", "", "| file | what it is |", "|---|---|", *_modules(ROOT / package)]
    return "\n".join(lines) + "\n"


def _modules(package: Path) -> Iterator[str]:
    """Rows of a table of the modules of a package, its folders in order."""
    for path in sorted(package.rglob("*.py")):
        doc = ast.get_docstring(ast.parse(path.read_text())) or ""
        if doc and "notebooks" not in path.parts:
            yield f"| `{path.relative_to(package)}` | {' '.join(doc.partition(chr(10) * 2)[0].split())} |"


def _member(row: dict[str, Any]) -> Iterator[str]:
    """Lines of one member: definition, fields, columns."""
    yield f"### {row['name']}"
    yield ""
    yield row["definition"]
    if row.get("not_native"):
        yield f"\nRun by torch: {row['not_native']}."
    if row.get("fields"):
        yield "\n| field | type | default | values | meaning |\n|---|---|---|---|---|"
        for field in row["fields"]:
            default = "required" if field["required"] else f"`{field['default']}`"
            values = "" if field["least"] is None else f"at least {field['least']}"
            values = ", ".join(map(str, field["choices"])) if field["choices"] else values
            meaning = _cell(field["meaning"])
            yield f"| `{field['name']}` | {_cell(field['type'])} | {default} | {_cell(values)} | {meaning} |"
    if row.get("columns"):
        yield "\n| column | unit | meaning |\n|---|---|---|"
        for column in row["columns"]:
            yield f"| `{column['name']}` | {_cell(column['unit'])} | {_cell(column['meaning'])} |"


def _cell(value: Any) -> str:
    """A value as the text of a table's cell."""
    return "" if value is None else str(value).replace("|", "\\|").replace("\n", " ")
