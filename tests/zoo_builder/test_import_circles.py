"""No files of the builder import each other in a circle, imports for type checking and inside functions included."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import zoo_builder

FOLDER = Path(zoo_builder.__file__).parent
FILES = {
    ".".join(path.relative_to(FOLDER.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in FOLDER.rglob("*.py")
}


def imported(path):
    """Files of the builder that a file names in an import, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in FILES else node.module for name in full}
    return found & set(FILES)


def test_no_files_of_the_builder_import_each_other_in_a_circle():
    # Raises CycleError, which names the files of the circle.
    order = list(TopologicalSorter({name: imported(path) - {name} for name, path in FILES.items()}).static_order())
    assert order.index("zoo_builder.workers.environment") < order.index("zoo_builder.build")


def test_what_hands_out_shards_imports_nothing_that_makes_them():
    making = {"zoo_builder.build", "zoo_builder.relabel", "zoo_builder.shard", "zoo_builder.executor"}
    for name in ("processes", "job", "environment", "worker"):
        assert not imported(FILES[f"zoo_builder.workers.{name}"]) & making
