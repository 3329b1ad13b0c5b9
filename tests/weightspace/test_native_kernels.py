"""Kernels of the native engine, compiled by every compiler at hand, for every machine that is here or emulated."""

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from weightspace.rollout.native.engine import compiler

SOURCE = Path(__file__).parent / "kernels.c"
NATIVE = Path(compiler.__file__).parent.parent / "c"
WAYS = {
    "gcc": ("gcc -march=native", ""),
    "clang": ("clang -march=native", ""),
    "neon": ("aarch64-linux-gnu-gcc -march=armv8-a -static", "qemu-aarch64-static"),
}
"""How to compile and how to run what comes out."""
FARTHEST = {"float": 1e-6, "double": 1e-14}
KERNELS = {"product", "pairs", "gradient", "sigmoid", "tanh", "exp"}


@pytest.mark.parametrize(
    ("real", "lanes"),
    [
        ("double", 16),
        ("float", 32),
        # Each takes seconds to compile, and has every line of the C in common with one of those above.
        pytest.param("double", 32, marks=pytest.mark.slow),
        pytest.param("float", 16, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("way", sorted(WAYS))
def test_kernels_equal_plain_loops_at_every_size(way, real, lanes, tmp_path):
    command, runner = (words.split() for words in WAYS[way])
    missing = [words[0] for words in (command, runner) if words and not shutil.which(words[0])]
    if missing or (not runner and platform.machine() not in ("x86_64", "aarch64")):
        pytest.skip(f"there is no {missing[0] if missing else 'such switch'} here")
    flags = [flag for flag in compiler.FLAGS if flag not in ("-march=native", "-fPIC", "-shared")]
    defines = [f"-DREAL={real}", f"-DREAL_IS_DOUBLE={int(real == 'double')}", f"-DLANES={lanes}", f"-I{NATIVE}"]
    made = tmp_path / "kernels"
    subprocess.run([*command, *flags, *defines, str(SOURCE), "-o", str(made), "-lm"], check=True, timeout=300)
    lines = subprocess.run([*runner, str(made)], check=True, capture_output=True, text=True, timeout=300).stdout
    found = [line.split() for line in lines.splitlines()]
    assert {name for name, *_ in found} == KERNELS
    assert len(found) > 100
    # Written so that what is no number is refused.
    assert [line for line in found if not float(line[-1]) < FARTHEST[real]] == []
