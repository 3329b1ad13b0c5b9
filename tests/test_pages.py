"""What the README and the pages say is so."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from weightspace import encoders, families, objectives
from zoo_builder import labels, learning, tasks

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = {path.name: path.read_text() for path in [ROOT / "README.md", *sorted((ROOT / ".docs" / "pages").glob("*.md"))]}
BLOCKS = {
    block: f"{name}: {block.partition(chr(10))[0]}"
    for name, page in PAGES.items()
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL)
}
"""Each piece of Python of the pages once, with its page and first line."""
AFTER_QUICKSTART = [block for block in BLOCKS if '"quickstart/' in block]
"""Pieces that use what the quickstart leaves: `test_quickstart.py` runs them there."""


@pytest.mark.parametrize("block", [block for block in BLOCKS if block not in AFTER_QUICKSTART], ids=BLOCKS.get)
def test_python_in_the_pages_runs(block, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "page", "exec"), {"__name__": "page"})


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 200


@pytest.mark.parametrize("name", PAGES)
def test_every_link_of_a_page_leads_to_a_file_and_a_heading(name):
    folder = ROOT if name == "README.md" else ROOT / ".docs" / "pages"
    generated = {"catalogue.md", "recipes.md", "files.md"}
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", PAGES[name]):
        path, _, anchor = target.partition("#")
        assert path in generated or (folder / path).exists(), target
        if anchor:
            headings = re.findall(r"(?m)^#+ (.*)$", (folder / path).read_text())
            assert anchor in [re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in headings], target


@pytest.mark.parametrize("marker", ["quickstart command", "test command"])
def test_each_command_is_one_line(marker):
    (block,) = re.findall(rf"<!-- {marker} -->\n```\n(.*?)```", README, re.DOTALL)
    assert len(block.strip().splitlines()) == 1


@pytest.mark.parametrize("room", [families, tasks], ids=lambda m: m.__name__)
def test_every_family_and_task_is_named(room):
    (said,) = re.findall(r"## What there is\n(.*?)\n## ", README, re.DOTALL)
    assert [name for name in room.available() if not re.search(rf"\b{name}\b", said)] == []


def test_every_test_that_a_page_names_is_there():
    said = {name for page in PAGES.values() for name in re.findall(r"`(test_\w+)`", page)}
    there = {
        name for path in (ROOT / "tests").rglob("*.py") for name in re.findall(r"def (test_\w+)\(", path.read_text())
    }
    assert len(said) > 10
    assert sorted(said - there) == []


def test_every_path_that_a_page_names_is_there():
    rooms = r"(?:weightspace|zoo_builder|probes|tests|configs)"
    for name, page in PAGES.items():
        for path in re.findall(rf"`({rooms}/[\w./-]+)`", page):
            assert (ROOT / path).exists() or list(ROOT.glob(path + "*")), f"{name}: {path}"


def test_the_site_is_built_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason="needs the extra docs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run([*command, "--config-file", ROOT / ".docs" / "mkdocs.yml"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for page in ("catalogue", "recipes", "files", "api"):
        assert (tmp_path / "site" / f"{page}.html").stat().st_size > 5000
    catalogue = (tmp_path / "site" / "catalogue.html").read_text()
    rooms = (families, tasks, labels, learning, encoders, objectives)
    assert [name for room in rooms for name in room.available() if f'id="{name.lower()}"' not in catalogue] == []
    shutil.rmtree(tmp_path / "site")
