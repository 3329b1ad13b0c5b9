"""The shape of the house: who imports whom, what is named how, and that documents say what the code does."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("weightspace", "zoo_builder", "probes")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
TOP_LEVEL = {"pyproject.toml", "weightspace", "zoo_builder", "probes", "tests", "configs", "README.md", "LICENSE"}

# Rooms of weightspace in the order in which data flows, each with the rooms it may import.
BASE = {"declaration", "group", "spec", "rows", "components", "terminal", "child"}
ZOO = BASE | {"families", "rollout", "store"}
READING = ZOO | {"features", "graph", "summaries"}
TRAINING = READING | {"data", "encoders", "objectives"}
ROOMS = {
    "terminal": set(),
    "child": set(),
    "container": set(),
    "recipes": {"components"},
    "components": {"terminal"},
    "declaration": set(),
    "group": {"declaration"},
    "spec": {"declaration", "group"},
    "rows": {"declaration", "spec"},
    "families": BASE,
    "rollout": BASE | {"families"},
    "store": BASE | {"families"},
    "features": ZOO,
    "markov": BASE,
    "responses": ZOO | {"features"},
    "graph": ZOO,
    "summaries": ZOO | {"features", "graph", "markov"},
    # A zoo may be an export, or on the Hub.
    "data": READING | {"exchange"},
    "encoders": READING | {"exchange"},
    "objectives": READING | {"data", "encoders"},
    "exchange": ZOO,
    "training": TRAINING | {"exchange"},
    "violations": {"spec"},
    "checks": READING | {"encoders", "violations"},
    "models": ZOO | {"exchange"},
    "transformer": {"face", "encoders", "models"},
    "watched": {"cli"},
    "training_help": {"components", "recipes"},
    "cli": TRAINING | {"training", "exchange", "checks", "quickstart", "recipes", "training_help"},
}
FROM_OUTSIDE = {
    "zoo_builder": ZOO | {"container"},
    # Networks trained elsewhere come in through the readers of their files.
    "zoo_builder/bring.py": ZOO | {"exchange"},
    "zoo_builder/bring_command.py": ZOO | {"exchange"},
    "zoo_builder/cli.py": ZOO | {"recipes"},
    "probes": BASE | {"container", "store", "features", "markov", "responses"},
    "probes/benchmark.py": TRAINING | {"training"},
    "probes/encoder_runs.py": TRAINING | {"training"},
}
LIBRARIES = {
    "lightning": {"data", "training", "probes/encoder_runs.py"},
    "torch_geometric": {"graph.py", "data", "encoders", "objectives"},
    # The digits come with scikit-learn.
    "sklearn": {"probes", "weightspace/transformer.py", "zoo_builder/tasks/tiled_digits.py"},
    "huggingface_hub": {"exchange"},
    "datasets": {"weightspace/exchange/hub.py"},
    "ray": {"zoo_builder/workers/ray.py"},
    "jax": {"zoo_builder/bench/jax_methods.py"},
    "neurogym": {"zoo_builder/tasks/trials.py"},
    "jsonargparse": {"weightspace/cli.py", "zoo_builder/cli.py", "probes/cli.py"},
}  # fmt: skip


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def room(name: str) -> str:
    return name.split(".")[1] if "." in name else ""


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_nothing_is_imported_against_the_flow(path):
    name = relative(path)
    # A notebook is a program of a user, who may use everything.
    programs = ("weightspace/quickstart.py", "weightspace/face.py", "weightspace/__main__.py")
    if name in programs or name.startswith("probes/notebooks/"):
        return
    package = name.split("/")[0]
    own = Path(name).parts[1].removesuffix(".py") if len(Path(name).parts) > 1 else ""
    for imported in imports(path):
        top = imported.split(".")[0]
        if top not in PACKAGES:
            continue
        if top != package:
            assert top == "weightspace", f"{name} imports {imported}"
            allowed = FROM_OUTSIDE.get(name, FROM_OUTSIDE.get(package, set()))
            assert room(imported) in allowed | {"", "__version__"}, f"{name} imports {imported}"
        elif package == "weightspace" and own in ROOMS and room(imported) not in ("", "__version__"):
            assert room(imported) in ROOMS[own] | {own}, f"{name} imports {imported}"


def test_no_file_imports_itself_round_a_circle():
    """Imports for type checking and inside functions count: a reader goes round with them, too."""
    names = {relative(path).removesuffix(".py").removesuffix("/__init__").replace("/", "."): path for path in FILES}
    modules = {name: path for name, path in names.items() if "notebooks" not in name}
    left = {}
    for name, path in modules.items():
        targets = {one if one in modules else one.rpartition(".")[0] for one in imports(path)}
        left[name] = targets & set(modules) - {name}
    while ends := [name for name, targets in left.items() if not targets & set(left)]:
        for name in ends:
            del left[name]
    while starts := [name for name in left if not any(name in left[other] for other in left)]:
        for name in starts:
            del left[name]
    assert not left, {name: sorted(targets & set(left)) for name, targets in left.items()}


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_libraries_stay_in_their_rooms(path):
    name = relative(path)
    for imported in imports(path):
        library = imported.split(".")[0]
        if library in LIBRARIES:
            allowed = LIBRARIES[library] | {f"weightspace/{room}" for room in LIBRARIES[library]}
            assert any(name == a or name.startswith(f"{a}/") for a in allowed), f"{name} imports {imported}"


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_files_and_functions_stay_short_and_names_say_what_they_hold(path):
    text = path.read_text()
    assert path.stem not in {"utils", "common", "helpers", "core", "misc", "types", "registry"}
    assert text.count("\n") <= 300, f"{relative(path)} has {text.count(chr(10))} lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 45, f"{relative(path)}: {node.name} is too long"


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_no_pickle_and_no_family_names_outside_families(path):
    text = path.read_text()
    assert not re.search(r"import (pickle|joblib)|allow_pickle=True|weights_only=False", text)
    if "/families/" not in relative(path):
        assert not re.search(r"==\s*[\"'](LSTM|GRU|Elman|CPRNN)[\"']", text)


def test_the_top_level_stays_as_listed():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    tops = {line.split("/")[0] for line in listed.stdout.splitlines()}
    assert {top for top in tops if not top.startswith(".")} <= TOP_LEVEL


@pytest.mark.parametrize("command", ["weightspace", "zoo_builder", "probes"])
def test_help_answers_without_loading_torch(command):
    code = f"import sys; from {command}.cli import main\nsys.argv = ['{command}', '--help']\n"
    code += "try:\n main()\nexcept SystemExit as e:\n assert not e.code, e.code\n"
    heavy = {"torch", "lightning", "sklearn", "torch_geometric", "ray", "jax"}
    code += f"assert not {heavy} & set(sys.modules), 'heavy import'"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout.lower()
