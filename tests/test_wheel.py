"""The wheel in an environment of its own, outside the tree: recipes by name, the face, the commands of the README."""

import json
import os
import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from weightspace import recipes

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
OPTIONS = {
    "zoo-builder build": "--config quickstart-tiny",
    "weightspace fit": "--config supervised-tiny --trainer.max_epochs 1",
    "probes run": "--targets score --splits in_distribution",
}
"""Options that make a command of the README cheap; the last of two of one name counts."""
LEFT_OUT = {
    "python3 -m venv": "a whole environment is what this test makes",
    "mkdocs serve": "pages come from the source tree",
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    builder = pytest.importorskip("hatchling.builders.wheel", reason="only who builds wheels has hatchling")
    (built,) = builder.WheelBuilder(str(ROOT)).build(
        directory=str(tmp_path_factory.mktemp("wheel")), versions=["standard"]
    )
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """An environment with the wheel, which borrows what it depends on from the one that runs the tests."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    venv.create(folder, with_pip=True)
    (site,) = folder.glob("lib/python*/site-packages")
    borrowed = [path for path in sys.path if path.endswith("site-packages")]
    # Paths alone: an editable install of the tree, which stands in a .pth of its own, is not borrowed.
    (site / "borrowed.pth").write_text("\n".join(borrowed) + "\n")
    pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", wheel]
    subprocess.run(pip, check=True, env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"})
    return folder / "bin"


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("outside")


@pytest.fixture(scope="module")
def run(installed, work):
    def run(*command):
        """Standard output of a command of the environment, in a folder outside the tree."""
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environment["PATH"] = f"{installed}{os.pathsep}{environment['PATH']}"
        program = str(installed / command[0])
        done = subprocess.run([program, *command[1:]], cwd=work, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"
        return done.stdout

    return run


def commands_of_the_readme():
    """Lines of its code blocks that call a command, without comments, in their order."""
    # Each block with its end, or the end of one would open the next.
    blocks = [text for kind, text in re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE) if not kind]
    lines = [line.partition("#")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith(tuple(LEFT_OUT))]


@pytest.mark.slow
def test_the_package_is_that_of_the_wheel_and_typed(run, installed):
    code = "import weightspace, zoo_builder, probes; print(weightspace.__file__, zoo_builder.__file__, probes.__file__)"
    paths = run("python", "-c", code).split()
    assert all(Path(path).is_relative_to(installed.parent) for path in paths)
    assert (Path(paths[0]).parent / "py.typed").is_file()
    assert (Path(paths[0]).parent / "__init__.pyi").is_file()


@pytest.mark.slow
def test_every_recipe_is_there_by_its_name(run):
    rows = json.loads(run("zoo-builder", "list", "recipes", "--json"))
    assert {row["name"] for row in rows} == set(recipes.available())
    assert "models" in run("zoo-builder", "build", "--config", "quickstart", "--out", "nowhere", "--dry_run")


@pytest.fixture(scope="module")
def quickstart(run):
    """Output of the tiny quickstart, which leaves the folder `quickstart` that Python of the README opens."""
    return run("weightspace", "quickstart", "--size", "tiny", "--out", "quickstart")


@pytest.mark.slow
def test_the_tiny_quickstart_goes_the_whole_way(run, work, quickstart):
    assert (work / "quickstart" / "probes" / "report.html").is_file()
    assert "\nOn unseen models, supervised (learned with labels) " in quickstart
    assert run("zoo-builder", "verify", "quickstart/zoo").strip().endswith("every byte is as promised")


@pytest.mark.slow
def test_the_commands_of_the_readme_work_one_after_another(run, work):
    commands = commands_of_the_readme()
    assert {" ".join(line.split()[:2]) for line in commands} >= {*OPTIONS, "zoo-builder info", "weightspace embed"}
    for line in commands:
        run(*line.split(), *OPTIONS.get(" ".join(line.split()[:2]), "").split())
    assert {"zoo", "run", "embeddings.safetensors", "probes"} <= {path.name for path in work.iterdir()}


@pytest.mark.slow
def test_files_of_networks_become_a_zoo_by_the_command_of_the_readme(run, work):
    (said,) = re.findall(r"`(zoo-builder import\s[^`]*)`", README)
    code = (
        "import torch; from pathlib import Path; from safetensors.torch import save_file; Path('models').mkdir();"
        "[save_file(torch.nn.GRU(3, 8).state_dict(), f'models/{i}.safetensors') for i in range(3)]"
    )
    run("python", "-c", code)
    out = said.split().index("--out") + 1
    command = said.split()
    command[out] = "imported"
    run(*command)
    assert "3" in run("zoo-builder", "info", "imported")
    assert run("zoo-builder", "verify", "imported").strip().endswith("every byte is as promised")


@pytest.mark.slow
def test_python_of_the_readme_runs(run, quickstart):
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) >= 3
    for block in blocks:
        run("python", "-c", block)


@pytest.mark.slow
@pytest.mark.parametrize("program", ["weightspace", "zoo-builder", "probes"])
def test_every_command_says_its_version_and_helps(run, program):
    assert run(program, "--version").split()[0] == program
    assert "example" in run(program, "--help")
