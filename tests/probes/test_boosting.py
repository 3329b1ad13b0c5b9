"""Boosted trees in several processes: the same numbers, and no file of the working folder."""

import subprocess
import sys

import numpy as np
import pytest

from probes import boosting
from probes.boosting import Boosting, fit_all
from weightspace.child import import_path

CHILD = """
import sys
sys.path[:] = {path}
import os
import numpy as np
from probes import boosting
from tests.probes.test_boosting import tasks
os.chdir({folder!r})
boosting.WORTH_A_PROCESS, boosting.num_cores = 0, lambda: 2
print([float(fit.error) for fit in boosting.fit_all(tasks())])
"""


def tasks(number: int = 3):
    """Tasks of two columns; the last has no validation rows."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(90, 2))
    fold = (np.arange(30), np.arange(30, 60))
    made = []
    for i in range(number):
        y = x[:, 0] * x[:, 1] + i
        rows = slice(60, 60 if i == number - 1 else 75)
        made.append(Boosting(x[:60], y[:60], x[rows], y[rows], fold, x[75:], 30))
    return made


def test_fits_in_other_processes_are_those_of_this_one(monkeypatch):
    alone = fit_all(tasks())
    monkeypatch.setattr(boosting, "WORTH_A_PROCESS", 0)
    monkeypatch.setattr(boosting, "num_cores", lambda: 2)
    for here, there in zip(alone, fit_all(tasks()), strict=True):
        assert np.array_equal(here.predicted, there.predicted)
        assert here.error == there.error


def test_small_fits_start_no_process(monkeypatch):
    monkeypatch.setattr(boosting, "num_cores", lambda: 2)
    monkeypatch.setattr(boosting, "Parallel", lambda **options: pytest.fail("a process was started"))
    assert len(fit_all(tasks())) == 3
    assert fit_all([]) == []


@pytest.mark.parametrize("name", ["numpy", "random", "joblib"])
def test_processes_import_no_file_of_the_working_folder(name, tmp_path):
    (tmp_path / f"{name}.py").write_text("open('imported', 'w').close()\n")
    code = CHILD.format(path=import_path(), folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"{[float(fit.error) for fit in fit_all(tasks())]}\n"
    assert not (tmp_path / "imported").exists()
