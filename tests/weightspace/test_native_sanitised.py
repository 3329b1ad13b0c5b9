"""The C of the native engine under the address and undefined-behaviour sanitisers: no test or cell makes a report."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SANITISERS = "-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g -O1"
CELLS = 300
# Kernels of which the tests make programs of their own are compiled without the sanitisers.
TESTS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "tests").rglob("test_*.py")
    if path.stem in ("test_tangents", "test_learning_in_c", "test_labels_native")
    or (path.stem.startswith("test_native") and path.stem not in ("test_native_sanitised", "test_native_kernels"))
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux") or not shutil.which("gcc"), reason="needs gcc on Linux"),
]


@pytest.fixture
def sanitised(tmp_path):
    """Runs Python in an environment where all C is compiled with sanitisers: what it said, and what they report."""
    compiler = tmp_path / "cc"
    # Last, so that nothing that the engine asks for takes their place.
    compiler.write_text(f'#!/bin/sh\nexec gcc "$@" {SANITISERS}\n')
    compiler.chmod(0o755)
    reports = tmp_path / "reports"
    reports.mkdir()
    libraries = [_library(name) for name in ("libasan.so", "libubsan.so", "libstdc++.so.6")]
    around = {
        "CC": str(compiler),
        "WEIGHTSPACE_CACHE": str(tmp_path / "cache"),
        # The interpreter was not built with them, so they are loaded before all else; so is what C++ throws with.
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": f"detect_leaks=0:log_path={reports}/asan",
        "UBSAN_OPTIONS": f"print_stacktrace=1:log_path={reports}/ubsan",
        "OMP_NUM_THREADS": "1",
    }

    def run(*command):
        done = subprocess.run(
            [sys.executable, *command], cwd=ROOT, env={**os.environ, **around}, capture_output=True, text=True
        )
        said = (done.stdout + done.stderr)[-3000:]
        return done.returncode, said, "\n".join(path.read_text()[:3000] for path in sorted(reports.iterdir()))

    return run


def _library(name):
    found = subprocess.run(["gcc", f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
    if "/" not in found:
        pytest.skip(f"{name} is not installed")
    return str(Path(found).resolve())


BEYOND_THE_END = """
import ctypes, sys, torch
from weightspace.rollout.native.engine.compiler import library
room = torch.empty(1000, dtype=torch.float64)
lib = library(sys.argv[1])
lib.read.restype = ctypes.c_double
print(lib.read(ctypes.c_void_p(room.data_ptr()), ctypes.c_int64(1000)))
"""


def test_a_read_beyond_the_end_of_a_tensor_is_reported(sanitised, tmp_path):
    # What finds nothing in the engine has to find this.
    (tmp_path / "beyond.c").write_text("#include <stdint.h>\ndouble read(double *x, int64_t i) { return x[i]; }\n")
    status, said, reports = sanitised("-c", BEYOND_THE_END, str(tmp_path / "beyond.c"))
    assert status != 0, said
    assert "heap-buffer-overflow" in reports


def test_no_test_of_native_code_makes_a_report(sanitised):
    options = ["-n", "0", "-p", "no:cacheprovider"]
    status, said, reports = sanitised("-m", "pytest", *options, *TESTS)
    assert not reports, reports
    assert status == 0, said


def test_no_random_cell_makes_a_report(sanitised):
    status, said, reports = sanitised("-m", "tests.weightspace.cells", "--deep", "--count", str(CELLS))
    assert not reports, reports
    assert status == 0, said
