"""Child processes: what they import, and what they do not, whatever lies in the folder they are started in."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from weightspace import child, quickstart
from zoo_builder.bench.case import cases
from zoo_builder.bench.run import bench
from zoo_builder.build import build, repair
from zoo_builder.relabel import relabel
from zoo_builder.workers import ray as ray_engine

NAMES = ("torch", "random", "json", "numpy", "runpy", "queue", "tqdm", "yaml", "weightspace", "zoo_builder")
RECIPE = {
    "families": [{"class": "Elman", "hidden_size": 2, "input_size": 1, "output_size": 1}],
    "learning": {"class": "Planted"},
    "snapshots": [0],
    "models_per_cohort": 4,
    "splits": {"test": 1, "val": 1},
}


def put_traps(folder, names=NAMES):
    """Modules that leave a file `run` where they are when somebody imports them, plain ones and packages."""
    for number, name in enumerate(names):
        file = folder / f"{name}.py" if number % 2 else folder / name / "__init__.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"open({str(folder / 'run')!r}, 'a').write({name!r})\n")


@pytest.fixture
def trapped(tmp_path, monkeypatch):
    """A working folder full of traps, which must not have been stepped on."""
    put_traps(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert not (tmp_path / "run").exists()


def printed(code, *arguments, cwd):
    """What a module `mine` prints that a child runs."""
    (cwd / "lib").mkdir(exist_ok=True)
    (cwd / "lib" / "mine.py").write_text(code)
    return subprocess.run(child.command("mine", *arguments), cwd=cwd, capture_output=True, text=True, check=True).stdout


def test_workers_run_no_file_of_the_folder_they_are_started_in(trapped):
    build(RECIPE, "zoo", workers=1)
    put_traps(trapped / "zoo")
    relabelled = relabel("zoo", ["MemoryMode"], 1)
    assert relabelled.columns
    shard = trapped / "zoo" / "shards" / "00000" / "table.parquet"
    shard.write_bytes(b"x")
    assert not [fault for fault in repair("zoo", 1) if "shards" in fault.path]
    assert not (trapped / "zoo" / "run").exists()


def test_the_benchmark_runs_no_file_of_the_folder_it_is_started_in(trapped):
    found = bench(cases(["LSTM"], [2], [1], [2], batch=2), ["loop"], repeats=1)
    assert [row["method"] for row in found["rows"]] == ["loop"]


def test_a_training_of_the_quickstart_runs_no_file_of_the_folder_it_is_started_in(trapped):
    process = quickstart._start(Path("/no/such/config.yaml"), Path("runs"), Path("zoo"), "supervised")
    assert process.wait(300) == 2
    process.stdin.close()
    assert "/no/such/config.yaml" in Path("runs", "supervised", quickstart.LOG).read_text()


class Ray:
    """As much of Ray as connecting takes."""

    def init(self, address, **options):
        self.folder = os.getcwd()

    def shutdown(self):
        pass


def test_ray_is_told_of_the_working_folder_only_where_the_builder_imports_from_it(trapped, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", Ray())
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    with ray_engine._cluster(None, 1) as ray:
        assert ray.folder == "/"
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    with ray_engine._cluster(None, 1) as ray:
        assert ray.folder == str(trapped)


def test_a_child_has_the_import_path_of_its_parent(tmp_path, monkeypatch):
    odd = [str(tmp_path / "lib"), str(tmp_path / "with:colon"), str(tmp_path / "ü 'quoted'\n\udcff")]
    monkeypatch.setattr(sys, "path", [*odd, *sys.path])
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "elsewhere"))
    assert printed("import sys; print(ascii(sys.path))", cwd=tmp_path) == f"{child.import_path()!a}\n"
    code = "import sys; assert __name__ == '__main__'; print(ascii(sys.argv[1:]))"
    assert printed(code, "--x", "a b", cwd=tmp_path) == "['--x', 'a b']\n"


def test_packages_in_the_folder_of_an_interactive_session_are_found_but_come_last(tmp_path, monkeypatch):
    put_traps(tmp_path)
    (tmp_path / "helper.py").write_text("answer = 42")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *(entry for entry in sys.path if entry), "lib"])
    code = "import json, random, queue, helper; print(helper.answer)"
    assert printed(code, cwd=tmp_path) == "42\n"
    assert not (tmp_path / "run").exists()
