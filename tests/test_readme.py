"""What the README says is so."""

import re
import subprocess
from pathlib import Path

import pytest

from weightspace import encoders, families, objectives
from zoo_builder import labels, learning, tasks

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", README, re.DOTALL), ids=lambda b: b.split("\n")[0])
def test_python_in_the_readme_runs(block, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})


def test_the_file_tree_in_the_readme_is_the_file_tree():
    (tree,) = re.findall(r"<!-- file tree -->\n```\n(.*?)```", README, re.DOTALL)
    folder, told = "", set()
    for line in tree.splitlines():
        name = line.strip().split("  ")[0]
        if not line.startswith(" "):
            folder = name if name.endswith("/") else ""
            if folder:
                continue
        told.add(folder + name)
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    files = {f for f in listed.stdout.splitlines() if f.startswith(("weightspace/", "zoo_builder/", "probes/"))}
    files = {f for f in files if f.endswith(".py") and not f.endswith(("__init__.py", "__main__.py"))}
    missing = sorted(f for f in files if f not in told and Path(f).name != "base.py")
    assert missing == []
    assert sorted(f for f in told if not (ROOT / f).exists()) == []


@pytest.mark.parametrize("marker", ["quickstart command", "test command"])
def test_each_command_is_one_line(marker):
    (block,) = re.findall(rf"<!-- {marker} -->\n```\n(.*?)```", README, re.DOTALL)
    assert len(block.strip().splitlines()) == 1


@pytest.mark.parametrize("room", [families, tasks, learning, labels, encoders, objectives], ids=lambda m: m.__name__)
def test_everything_there_is_is_named(room):
    (told,) = re.findall(r"## What there is\n(.*?)\n## ", README, re.DOTALL)
    assert [name for name in room.available() if not re.search(rf"\b{name}\b", told)] == []


def test_every_test_that_the_readme_names_is_there():
    told = set(re.findall(r"`(test_\w+)`", README))
    there = {
        name for path in (ROOT / "tests").rglob("*.py") for name in re.findall(r"def (test_\w+)\(", path.read_text())
    }
    assert len(told) > 10
    assert sorted(told - there) == []
